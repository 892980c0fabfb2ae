from __future__ import annotations

from harness.data.dataset import Example, Split, Splits
from harness.yardsticks import tag_baselines

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def split(name: str, rows: list[tuple[str, str]]) -> Split:
    made = [
        Example(f"{i}", words, None, (tuple(words.split()), tuple(LABELS.index(tag) for tag in tags.split())))
        for i, (words, tags) in enumerate(rows)
    ]
    return Split(name, made, "")


TRAIN = [
    ("Paris Berg likes Paris", "B-PER I-PER O B-LOC"),
    ("in Paris", "O B-LOC"),
    ("New Oslo Bay is new", "B-LOC I-LOC I-LOC O O"),
    ("a new day", "O O O"),
]
TEST = [("new oslo bay or Paris", "B-LOC I-LOC I-LOC O B-LOC"), ("Berg likes a Zed", "B-PER O O B-PER")]


def splits() -> Splits:
    return Splits(split("train", TRAIN), split("validation", TEST), split("test", TEST), LABELS, "hand", {})


def named(found: list[list[int]]) -> list[str]:
    return [" ".join(LABELS[tag] for tag in tags) for tags in found]


def test_the_most_frequent_tag_of_each_word() -> None:
    """`new` is O twice of three times; `Paris` a place twice of three times; `Zed` was never seen."""
    assert named(tag_baselines.most_frequent(splits())) == ["O I-LOC I-LOC O B-LOC", "I-PER O O O"]


def test_names_are_found_again_the_longest_first() -> None:
    """`Berg` alone was no name."""
    assert named(tag_baselines.listed_names(splits())) == ["B-LOC I-LOC I-LOC O B-LOC", "O O O O"]


def test_a_word_that_is_rarely_a_name_is_not_listed() -> None:
    rows = [("may went", "B-PER O"), ("it may", "O O"), ("he may", "O O")]
    made = Splits(split("train", rows), split("validation", rows), split("test", rows), LABELS, "hand", {})
    assert named(tag_baselines.listed_names(made)) == ["O O", "O O", "O O"]


def test_all_are_scored() -> None:
    known = tag_baselines.of_tags(splits())
    scores = {name: measured() for name, measured in known.items()}
    assert all(set(one) == {"entity_f1", "tag_accuracy"} for one in scores.values())
    assert scores["list of the names in train"]["entity_f1"] == 2 * 2 / (4 + 2)
    assert scores["most frequent tag of each word"]["tag_accuracy"] == 6 / 9
