"""Made articles say what their questions ask, once as an answer, and no building is in two splits."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.catalogue import landmarks
from harness.data.dataset import Data, load
from harness.errors import DataError
from harness.extraction.answers import Answers


@pytest.mark.parametrize("name", landmarks.NAMES)
def test_every_answer_stands_where_it_says(name: str) -> None:
    rows = landmarks.rows(name)
    assert rows == landmarks.rows(name), "the same on every machine"
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        found = row["answers"]
        assert set(row) == set(landmarks.COLUMNS)
        for text, start in zip(found["text"], found["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
            sentence = row["context"][: start + len(text)].rpartition(". ")[2]
            assert "{" not in row["context"] + row["question"] + sentence
    kinds = Counter(row["id"].partition("-")[2] for row in rows)
    assert len(kinds) == 12 and min(kinds.values()) > 20, "every kind of question"
    empty = sum(not row["answers"]["text"] for row in rows)
    assert empty == (len(rows) // 3 if landmarks.NAMES[name] else 0)


def test_the_neighbour_has_values_of_the_same_kind() -> None:
    """Whoever looks for a kind of value only, and not for whose it is, finds two."""
    articles = {row["title"]: row["context"] for row in landmarks.rows("landmarks")}
    mentions = [context.count(context.split("the other one is ")[1].split(".")[0][4:]) for context in articles.values()]
    assert min(mentions) >= 2


@pytest.mark.parametrize("name", landmarks.NAMES)
def test_no_building_is_in_two_splits(name: str) -> None:
    data = Data(name=f"builtin:{name}", text=["question", "context"], label="answers", group="title")
    splits = load(data, Answers())
    of = [{e.pair for e in split.examples} for split in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, of)) == len(set.union(*of)) == 120
    named = [{e.text.rpartition("the ")[2] for e in split.examples} for split in (splits.train, splits.test)]
    assert not named[0] & named[1]
    assert bool(splits.labels) == landmarks.NAMES[name]


def test_an_unknown_name_lists_them() -> None:
    with pytest.raises(DataError, match="landmarks_unanswerable"):
        load(Data(name="builtin:landmark", text=["question", "context"], label="answers"), Answers())
