"""Exact match and F1 of answers against SQuAD's evaluation, typed from its definition, and by hand."""

from __future__ import annotations

import csv
import itertools
import random
import re
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.metrics.squad import Squad
from harness.predictions import Spans


def spans(texts: list[str], references: list[list[str]]) -> Spans:
    rows = [{"id": str(i), "question": f"q{i}", "context": "c, d"} for i in range(len(texts))]
    size = len(texts)
    return Spans(texts, [0] * size, references, np.zeros((size, 2)), np.full(size, 0.5), rows)


def normalize_answer(s: str) -> str:
    """The composition of evaluate-v2.0.py."""

    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def compute_f1(a_gold: str, a_pred: str) -> float:
    gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
    num_same = sum((Counter(gold_toks) & Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return float(gold_toks == pred_toks)
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official(texts: list[str], references: list[list[str]]) -> dict[str, float]:
    exact, f1 = [], []
    for a_pred, of in zip(texts, references, strict=True):
        gold_answers = [a for a in of if normalize_answer(a)]
        gold_answers = gold_answers or [""]
        exact.append(max(int(normalize_answer(a) == normalize_answer(a_pred)) for a in gold_answers))
        f1.append(max(compute_f1(a, a_pred) for a in gold_answers))
    return {"squad_exact_match": sum(exact) / len(exact), "squad_f1": sum(f1) / len(f1)}


BY_HAND = [
    ("The Cat!", ["cat"], 1.0, 1.0),
    ("the black cat", ["a cat"], 0.0, 2 / 3),
    ("cat cat", ["cat"], 0.0, 2 / 3),
    ("cat", ["cat cat dog"], 0.0, 0.5),
    ("in 1994", ["1994", "in 1994."], 1.0, 1.0),
    ("don't", ["dont"], 1.0, 1.0),
    ("well-known", ["well known"], 0.0, 0.0),
    ("", [""], 1.0, 1.0),
    ("", ["cat"], 0.0, 0.0),
    ("cat", [""], 0.0, 0.0),
    ("the", [""], 1.0, 1.0),
    ("the", ["cat", "an"], 0.0, 0.0),
    ("Ünal", ["ünal"], 1.0, 1.0),
    ("theatre", ["atre"], 0.0, 0.0),
]


@pytest.mark.parametrize(("answer", "references", "exact", "f1"), BY_HAND)
def test_by_hand(answer: str, references: list[str], exact: float, f1: float) -> None:
    found = Squad().compute(spans([answer], [references]))
    assert found == {"squad_exact_match": exact, "squad_f1": pytest.approx(f1)}
    assert official([answer], [references]) == pytest.approx(found)


def test_every_pair_of_short_texts_against_the_script() -> None:
    words = ["a", "cat", "Cat", "the.", "dog"]
    texts = ["", *words, *(" ".join(pair) for pair in itertools.product(words, repeat=2))]
    for one, other in itertools.product(texts, repeat=2):
        assert Squad().compute(spans([one], [[other]])) == pytest.approx(official([one], [[other]])), (one, other)


def test_many_references_against_the_script() -> None:
    draw, words = random.Random(0), ["a", "the", "cat", "dog", "Dog!", "sat,", "1994", "1,994", "-"]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(0, 5)))

    for _ in range(200):
        texts = [text() for _ in range(6)]
        references = [[text() or "x" for _ in range(draw.randint(1, 4))] for _ in texts]
        expected = official(texts, references)
        assert Squad().compute(spans(texts, references)) == pytest.approx(expected)


def test_questions_without_an_answer_are_told_apart() -> None:
    found = Squad().compute(spans(["cat", "", "dog", ""], [["cat"], [""], [""], ["a dog"]]))
    assert found == {
        "squad_exact_match": 0.5, "squad_f1": 0.5, "squad_exact_match_answerable": 0.5, "squad_f1_answerable": 0.5,
        "squad_exact_match_unanswerable": 0.5, "squad_f1_unanswerable": 0.5,
    }  # fmt: skip


def test_a_table_for_people(tmp_path: Path) -> None:
    Squad().write(spans(["a cat", ""], [["cat", "dog", "cat"], [""]]), tmp_path)
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "id": "0", "question": "q0", "context": "c, d", "answer": "a cat", "start": "0", "references": "cat | dog",
        "exact_match": "1", "f1": "1.0", "confidence": "0.5",
    }  # fmt: skip
    assert [row["exact_match"] for row in rows] == ["1", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]
