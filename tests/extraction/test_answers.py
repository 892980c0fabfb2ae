"""Answers stand in their context where they say; questions of one context stay in one split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.data.dataset import Data, Splits, load
from harness.errors import DataError
from harness.extraction.answers import NO_ANSWER, Answers

CONTEXT = "Ada met Bob. Bob met Ada."


def label(cell: Any, context: str = CONTEXT) -> Any:
    return Answers().label(cell, ["Who?", context], "f.jsonl:3", "answers")


def written(folder: Path, rows: list[dict[str, Any]]) -> Data:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(name=str(folder / "rows.jsonl"), text=["question", "context"], label="answers")


def row(number: int, *, answer: str | None = "Ada", context: int | None = None) -> dict[str, Any]:
    text = f"Text {number if context is None else context}. {CONTEXT}"
    found = {"text": [answer], "answer_start": [text.index(answer)]} if answer else {"text": [], "answer_start": []}
    return {"question": f"Who is {number}?", "context": text, "answers": found}


def loaded(folder: Path, rows: list[dict[str, Any]]) -> Splits:
    return load(written(folder, rows), Answers())


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"text": ["Ada", "Ada."], "answer_start": [0, 21]}, (("Ada", 0), ("Ada.", 21))),
        ([{"text": "Bob met", "answer_start": 13, "id": 1}], (("Bob met", 13),)),
        ({"text": [], "answer_start": []}, (NO_ANSWER,)),
        ([], (NO_ANSWER,)),
        (None, ()),
    ],
)
def test_both_forms_are_read(cell: Any, expected: Any) -> None:
    assert label(cell) == expected


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            {"text": ["Ada"], "answer_start": [1]},
            r"'Ada' does not stand at character 1 .*there stands 'da '.*stands at 0",
        ),
        ({"text": ["Eve"], "answer_start": [99]}, r"'Eve' does not .*has 25 characters.*nowhere"),
        ({"text": ["Ada"], "answer_start": [0, 1]}, "not two lists of one length"),
        ({"text": "Ada", "answer_start": 0}, "not two lists of one length"),
        ([{"text": "Ada"}], "start is None"),
        ([{"text": "Ada", "answer_start": True}], "start is True"),
        ([{"text": "Ada", "answer_start": -3}], "start is -3"),
        ([{"text": " ", "answer_start": 3}], "text is ' '"),
        ([{"text": 4, "answer_start": 3}], "text is 4"),
        ("Ada", "holds a str, not answers.*jsonl"),
        (["Ada"], "holds a list, not answers"),
    ],
)
def test_what_is_no_answer_is_told_with_its_place(cell: Any, message: str) -> None:
    with pytest.raises(DataError, match=r"f\.jsonl:3") as error:
        label(cell)
    assert error.match(f"(?s){message}")


def test_one_column_has_no_context() -> None:
    with pytest.raises(DataError, match=r"data\.text: answers stand in a context"):
        Answers().label([], ["Who?"], "f.jsonl:3", "answers")


def test_questions_of_one_context_stay_in_one_split(tmp_path: Path) -> None:
    splits = loaded(tmp_path, [row(number, context=number // 4) for number in range(80)])
    of = [{example.pair for example in split.examples} for split in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, of)) == len(set.union(*of)) == 20
    assert splits.labels == []
    assert splits.test.examples[0].label[0][0] == "Ada"


def test_questions_without_an_answer_are_counted_and_in_every_split(tmp_path: Path) -> None:
    splits = loaded(tmp_path, [row(number, answer=None if number % 3 else "Bob") for number in range(90)])
    assert splits.labels == ["answerable", "unanswerable"]
    counts = [facts["labels"] for facts in splits.report["splits"].values()]
    assert all(of["answerable"] and of["unanswerable"] for of in counts)
    assert sum(of["answerable"] for of in counts) == 30


def test_what_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train has no question with an answer"):
        loaded(tmp_path, [row(number, answer=None) for number in range(40)])
    (tmp_path / "test.jsonl").write_text(json.dumps(row(100, answer=None)) + "\n")
    data = written(tmp_path, [row(number) for number in range(40)]).model_copy(update={"test": "test"})
    with pytest.raises(DataError, match="test has 1 questions without an answer, train has none"):
        load(data, Answers())


def test_a_row_without_answers_is_incomplete(tmp_path: Path) -> None:
    rows = [row(number) for number in range(40)]
    rows[7]["answers"] = None
    with pytest.raises(DataError, match=r"rows\.jsonl:8: 1 of 40 rows are incomplete"):
        loaded(tmp_path, rows)
    data = written(tmp_path, rows).model_copy(update={"missing": "drop"})
    assert load(data, Answers()).report["dropped"] == 1
