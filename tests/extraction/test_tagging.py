from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness import notes
from harness.data import dataset
from harness.data.dataset import Data, Splits
from harness.errors import DataError
from harness.extraction.tagging import Tags, words_of

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ROWS = [
    (["Anna", "Berg", "slept", f"{i}"], ["B-PER", "I-PER", "O", "O"])
    if i % 2
    else (["in", "Oslo", f"{i}"], ["O", "B-LOC", "O"])
    for i in range(40)
]


def jsonl(folder: Path, rows: list[Any] = ROWS) -> Path:
    lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def parquet(folder: Path, rows: list[Any] = ROWS) -> Path:
    """Class numbers, with their names where `datasets` writes them."""
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=NAMES))}
    )
    columns = {"tokens": [words for words, _ in rows], "ner_tags": [[NAMES.index(t) for t in tags] for _, tags in rows]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def bio(folder: Path, rows: list[Any] = ROWS) -> Path:
    sentences = ["".join(f"{word}\t{tag}\n" for word, tag in zip(*row, strict=True)) for row in rows]
    (folder / "rows.bio").write_text("\n".join(sentences))
    return folder / "rows.bio"


def load(path: Path | str, **changed: Any) -> Splits:
    settings: dict[str, Any] = {"text": "tokens", "label": "ner_tags", "max_test_overlap": 1.0} | changed
    return dataset.load(Data(name=str(path), **settings), Tags())


@pytest.mark.parametrize("write", [jsonl, parquet, bio])
def test_every_format_gives_the_same_sentences(write: Callable[[Path], Path], tmp_path: Path) -> None:
    splits = load(write(tmp_path))
    order = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"] if write is parquet else ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert splits.labels == order
    examples = [e for split in (splits.train, splits.validation, splits.test) for e in split.examples]
    found = sorted((list(words), [order[tag] for tag in tags]) for words, tags in (e.label for e in examples))
    assert found == sorted(ROWS)
    assert {e.text for e in examples} == {" ".join(words) for words, _ in ROWS}
    counts = splits.report["splits"]["train"]["labels"]
    assert list(counts) == order and counts["B-PER"] == counts["I-PER"] > 0


def test_a_folder_of_conll_files(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        bio(tmp_path).rename(tmp_path / f"{name}.iob")
    assert len(load(tmp_path).test.examples) == len(ROWS)


def test_documents_stay_together(tmp_path: Path) -> None:
    text = "".join(f"-DOCSTART- O\n\nAnna B-PER\n{i} O\n\nOslo B-LOC\n{i} O\n\n" for i in range(30))
    (tmp_path / "rows.conll").write_text(text)
    splits = load(tmp_path / "rows.conll", group="document")
    sides = [{words[1] for words, _ in (e.label for e in split.examples)} for split in (splits.train, splits.test)]
    assert not sides[0] & sides[1] and len(splits.train.examples) == 2 * len(sides[0])


def test_other_schemes_are_turned_into_bio_and_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "_told", set())
    load(bio(tmp_path))
    assert "BIO" not in capfd.readouterr().err
    bioes = {"B-PER": "B-PER", "I-PER": "E-PER", "B-LOC": "S-LOC", "O": "O"}
    splits = load(jsonl(tmp_path, [(words, [bioes[tag] for tag in tags]) for words, tags in ROWS]))
    assert capfd.readouterr().err.count("are turned into BIO") == 1
    assert [e.label for e in splits.train.examples] == [e.label for e in load(bio(tmp_path)).train.examples]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(["a", "b"], ["O"])], r"rows\.jsonl:1: 2 words, but 1 tags"),
        ([(["a"], ["PER"])], r"rows\.jsonl:1: column 'ner_tags': word 1, 'a', has 'PER', which is no tag"),
        ([(["a"], [3])], r"rows\.jsonl:1: column 'ner_tags': word 1, 'a', has the number 3 for a tag\n.*names"),
        ([("a b", ["O", "O"])], r"rows\.jsonl:1: the text is no list of words"),
        ([(["a"], "O")], r"rows\.jsonl:1: column 'ner_tags' holds no list of tags"),
        ([([], [])], r"rows\.jsonl:1: 1 of 1 rows are incomplete"),
        ([([["a"]], ["O"])], r"rows\.jsonl:1: column 'tokens' holds a list"),
        ([([f"{i}"], ["O"]) for i in range(30)], r"data\.label: train has no entity"),
    ],
)
def test_mistakes_are_told_with_their_place(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(jsonl(tmp_path, rows))


def test_two_columns_of_words() -> None:
    with pytest.raises(DataError, match=r"data\.text: words stand in one column"):
        Tags().texts([["a"], ["b"]], "here", ["tokens", "more"])


def test_a_type_that_train_has_not(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        bio(tmp_path, [*ROWS, (["x"], ["B-ORG"])] if name == "test" else ROWS).rename(tmp_path / f"{name}.bio")
    with pytest.raises(DataError, match=r"data\.label: test has the label 'B-ORG' \(1 rows\), which train has not"):
        load(tmp_path)


def test_numbers_without_a_tag_are_rows_without_tags(tmp_path: Path) -> None:
    path = parquet(tmp_path)
    frame = datasets.Dataset.from_parquet(str(path))
    assert isinstance(frame, datasets.Dataset)
    rows = frame.to_list()
    rows[0]["ner_tags"] = [-1] * len(rows[0]["tokens"])
    datasets.Dataset.from_list(rows, features=frame.features).to_parquet(path)
    with pytest.raises(DataError, match=r"row 1: 1 of 40 rows are incomplete\n.*ner_tags"):
        load(path)
    assert load(path, missing="drop").report["dropped"] == 1


def test_the_hub_names_numbers_in_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = datasets.DatasetDict({"train": datasets.Dataset.from_parquet(str(parquet(tmp_path)))})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    splits = load("owner/entities")
    assert splits.labels == NAMES
    found = {
        (tuple(words), tuple(NAMES[tag] for tag in tags)) for words, tags in (e.label for e in splits.train.examples)
    }
    assert found <= {(tuple(words), tuple(tags)) for words, tags in ROWS}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna met J. Berg, of Shell Inc.", "Anna|met|J.|Berg|,|of|Shell|Inc."),
        ("It cost $1,000.50 on 3/10/1998!", "It|cost|$|1,000.50|on|3/10/1998|!"),
        ("the U.S. - a well-known (big) one", "the|U.S.|-|a|well-known|(|big|)|one"),
        ("Ürümqi’s  東京\t", "Ürümqi’s|東京"),
        ("", ""),
    ],
)
def test_words_of_a_text(text: str, words: str) -> None:
    assert words_of(text) == tuple(filter(None, words.split("|")))
    assert re.sub(r"\s", "", text) == "".join(words_of(text))


def test_words_of_a_list_stay() -> None:
    assert words_of(["New York", "a.b"]) == ("New York", "a.b")
    assert Tags().unknown([["a", "b"]]) == (("a", "b"), (0, 0))
