"""SQuAD's nested files become rows, and mistakes in them are told with their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.data.dataset import Data, load
from harness.data.files import read_file
from harness.errors import DataError
from harness.extraction.answers import Answers


def nested(articles: int = 12, *, is_second: bool = False) -> dict[str, Any]:
    """Two paragraphs of two questions each; in version 2.0 the second question has no answer."""
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(2):
            context = f"Article {a}, part {p}: it was in {1900 + a}."
            start = context.index(str(1900 + a))
            answers = [{"text": str(1900 + a), "answer_start": start}]
            qas: list[dict[str, Any]] = [
                {"id": f"{a}{p}{q}", "question": f"When {q}?", "answers": answers} for q in range(2)
            ]
            if is_second:
                qas[0]["is_impossible"] = False
                qas[1] |= {"is_impossible": True, "answers": [], "plausible_answers": answers}
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"Title {a}", "paragraphs": paragraphs})
    return {"version": "2.0" if is_second else "1.1", "data": data}


@pytest.mark.parametrize("is_second", [False, True])
def test_both_versions_are_read_and_split_by_article(tmp_path: Path, is_second: bool) -> None:
    file = tmp_path / "train-v.json"
    file.write_text(json.dumps(nested(is_second=is_second)))
    table = read_file(file)
    assert table.columns == ["id", "title", "context", "question", "answers"]
    rows = list(table.cells)
    assert len(rows) == 48
    place, cells = rows[5]
    assert place == f"{file}, data[1].paragraphs[0].qas[1]"
    assert (cells["id"], cells["title"], cells["question"]) == ("101", "Title 1", "When 1?")
    data = Data(name=str(file), text=["question", "context"], label="answers", group="title")
    splits = load(data, Answers())
    titles = [
        {e.pair.split(",")[0] for e in s.examples if e.pair} for s in (splits.train, splits.validation, splits.test)
    ]
    assert sum(map(len, titles)) == len(set.union(*titles)) == 12
    assert splits.labels == (["answerable", "unanswerable"] if is_second else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["data"][1].update(paragraphs=3), r"data\[1\]: no list of objects is called 'paragraphs'"),
        (lambda d: d["data"][0]["paragraphs"][1].pop("context"), r"data\[0\]\.paragraphs\[1\]: no context here"),
        (lambda d: d["data"][0]["paragraphs"][0].pop("qas"), r"data\[0\]\.paragraphs\[0\]: .* 'qas'"),
        (lambda d: d["data"][2]["paragraphs"][0]["qas"][1].pop("question"), r"qas\[1\]: no question here"),
    ],
)
def test_what_is_not_where_it_belongs_is_told(tmp_path: Path, change: Any, message: str) -> None:
    value = nested(3)
    change(value)
    (tmp_path / "train.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        read_file(tmp_path / "train.json")


def test_a_question_that_says_nothing_about_answers_is_incomplete(tmp_path: Path) -> None:
    value = nested(3)
    value["data"][0]["paragraphs"][0]["qas"][0].pop("answers")
    (tmp_path / "train.json").write_text(json.dumps(value))
    data = Data(name=str(tmp_path / "train.json"), text=["question", "context"], label="answers", group="title")
    with pytest.raises(DataError, match=r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: 1 of 12 rows are incomplete"):
        load(data, Answers())


def test_other_json_is_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"data": [1]}, {"data": [2]}]')
    assert [cells for _, cells in read_file(tmp_path / "rows.json").cells] == [{"data": [1]}, {"data": [2]}]
