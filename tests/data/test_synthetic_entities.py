from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from harness.data import dataset
from harness.data.dataset import Data, Splits
from harness.data.entities import lenient
from harness.data.synthetic_entities import Sentences, make
from harness.errors import DataError
from harness.extraction.tagging import Tags

SMALL = {"train": 300, "validation": 60, "test": 100}


def cells(part: str = "train", **changed: Any) -> list[tuple[list[str], list[str]]]:
    return [(row["tokens"], row["ner_tags"]) for _, row in make(Sentences(**(SMALL | changed)), part)]


def load(**changed: Any) -> Splits:
    sentences = Sentences(**(SMALL | changed))
    return dataset.load(Data(name="builtin:ner", text="tokens", label="ner_tags", sentences=sentences), Tags())


def test_the_same_settings_make_the_same_sentences() -> None:
    assert cells() == cells()
    assert cells() != cells(seed=1)
    assert cells("test", train=400)[:10] != [] and len(cells("test")) == 100


def test_no_sentence_stands_twice() -> None:
    texts = [" ".join(words).casefold() for part in SMALL for words, _ in cells(part)]
    assert len(set(texts)) == len(texts) == 460


def test_splits_have_the_sizes_and_types_that_were_asked_for() -> None:
    splits = load()
    assert [len(s.examples) for s in (splits.train, splits.validation, splits.test)] == [300, 60, 100]
    assert splits.labels == ["O", *(f"{a}-{t}" for t in ("DATE", "LOC", "ORG", "PER") for a in "BI")]
    assert splits.test.examples[0].id == "test-1"
    assert load(types=["PER"]).labels == ["O", "B-PER", "I-PER"]
    assert load(types=["PER", "EVENT", "MONEY"]).labels[1::2] == ["B-EVENT", "B-MONEY", "B-PER"]


def test_types_that_are_not_asked_for_stay_as_words() -> None:
    assert [words for words, _ in cells()] == [words for words, _ in cells(types=["PER"])]


def test_tags_are_well_formed() -> None:
    for words, tags in cells():
        assert len(words) == len(tags) and all(re.fullmatch(r"O|[BI]-[A-Z]+", tag) for tag in tags)
        assert sum(one.end - one.start for one in lenient(tags)) == sum(tag != "O" for tag in tags)


def test_words_are_names_here_and_ordinary_there_and_many_names_are_new() -> None:
    kinds: dict[str, set[str]] = {}
    for words, tags in cells(train=1500):
        for word, tag in zip(words, tags, strict=True):
            kinds.setdefault(word.casefold(), set()).add(tag[2:])
    assert {"", "DATE", "PER"} <= kinds["may"] and {"PER", "LOC"} <= kinds["jordan"]
    names = [
        " ".join(words[one.start : one.end]).casefold() for words, tags in cells("test") for one in lenient(tags)
        if one.type != "DATE"
    ]  # fmt: skip
    assert sum(any(word not in kinds for word in name.split()) for name in names) > 0.4 * len(names)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_noise_is_in_train_alone_and_as_much_as_was_asked_for(share: float) -> None:
    for part in ("validation", "test"):
        assert cells(part, tag_noise=share) == cells(part)
    plain, noisy = cells(train=1500), cells(train=1500, tag_noise=share)
    assert [words for words, _ in plain] == [words for words, _ in noisy]
    true = [set(lenient(tags)) for _, tags in plain]
    kept = sum(len(gold & set(lenient(tags))) for gold, (_, tags) in zip(true, noisy, strict=True))
    assert 1 - kept / sum(map(len, true)) == pytest.approx(share, abs=0.03)


def test_typos_change_words_and_no_tags() -> None:
    for part in SMALL:
        plain, typed = cells(part), cells(part, typos=0.2)
        assert [tags for _, tags in plain] == [tags for _, tags in typed]
        pairs = [p for a, b in zip(plain, typed, strict=True) for p in zip(a[0], b[0], strict=True)]
        long = [(a, b) for a, b in pairs if len(a) >= 4 and a.isalpha()]
        assert all(a == b for a, b in pairs if (a, b) not in long)
        assert sum(a != b for a, b in long) / len(long) == pytest.approx(0.2, abs=0.06)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="types are distinct"):
        Sentences(types=["PER", "PER"])
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Sentences(tag_noise=1.5)
    with pytest.raises(ValidationError, match=r"sentences is for builtin:ner; a\.csv has its own"):
        Data(name="a.csv", text="t", label="l", sentences=Sentences())
    with pytest.raises(DataError, match=r"no column is called 'text'\n.*tokens, ner_tags"):
        dataset.load(Data(name="builtin:ner", text="text", label="label"), Tags())
