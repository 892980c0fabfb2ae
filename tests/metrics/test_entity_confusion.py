from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.data.entities import lenient
from harness.metrics.entity_confusion import EntityConfusion, confusion, wrong_ends
from harness.metrics.entity_f1 import counts
from tests.metrics.tagged import TYPES, random_tagged, tagged


def test_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC", "B-LOC"], ["O", "B-PER", "O"]]
    guess = [["B-PER", "O", "O", "B-PER", "B-LOC"], ["B-LOC", "O", "O"]]
    of = tagged(gold, guess, ["PER", "LOC"])
    assert confusion(of).tolist() == [[0, 0, 2], [1, 1, 0], [1, 1, 0]]
    assert wrong_ends(of) == {"PER": 1, "LOC": 0}


def test_sums_are_those_of_the_f1() -> None:
    for seed in range(20):
        of = random_tagged(seed)
        table, counted = confusion(of), counts(of, lenient)
        assert np.diag(table)[:-1].tolist() == [counted[type][0] for type in TYPES]
        assert table.sum(axis=1)[:-1].tolist() == [counted[type][1] for type in TYPES]
        assert table.sum(axis=0)[:-1].tolist() == [counted[type][2] for type in TYPES]
        assert table[-1, -1] == 0
        assert all(wrong_ends(of)[type] <= table[i, -1] for i, type in enumerate(TYPES))


def test_files(tmp_path: Path) -> None:
    of = random_tagged(3)
    EntityConfusion().write(of, tmp_path)
    facts = json.loads((tmp_path / "entity_confusion.json").read_text())
    assert facts["types"] == [*TYPES, "(none)"] and facts["counts"] == confusion(of).tolist()
    page = (tmp_path / "entity_confusion.html").read_text(encoding="utf-8")
    assert "<script src=" not in page and "Predicted type" in page and "(none)" in page
    assert (tmp_path / "entity_confusion.png").read_bytes().startswith(b"\x89PNG")
