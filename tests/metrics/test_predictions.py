from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from harness.metrics.predictions import PredictionTable
from harness.predictions import Classified
from tests.metrics.samples import LABELS, random_predictions


def lines(predictions: Classified, folder: Path) -> list[dict[str, str]]:
    """The table, read back."""
    PredictionTable().write(predictions, folder)
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_line_per_example_in_order(tmp_path: Path) -> None:
    predictions = random_predictions(41, LABELS)
    table = lines(predictions, tmp_path)
    assert list(table[0]) == [
        "id",
        "text",
        "label",
        "predicted",
        "correct",
        "confidence",
        "probability_negative",
        "probability_neutral",
        "probability_positive",
    ]
    assert [line["id"] for line in table] == [row["id"] for row in predictions.rows]
    assert [LABELS.index(line["label"]) for line in table] == predictions.labels.tolist()
    assert [LABELS.index(line["predicted"]) for line in table] == predictions.predicted.tolist()
    assert sum(line["correct"] == "true" for line in table) == (predictions.labels == predictions.predicted).sum()
    assert {line["correct"] for line in table} == {"true", "false"}


def test_probabilities_are_exact(tmp_path: Path) -> None:
    predictions = random_predictions(9, LABELS)
    for line, shares in zip(lines(predictions, tmp_path), predictions.probabilities, strict=True):
        assert [float(line[f"probability_{name}"]) for name in LABELS] == shares.tolist()
        assert float(line["confidence"]) == shares.max()


@pytest.mark.parametrize(
    "text", ['a "quoted", b', "two\nlines", "carriage\rreturn", "naïve 😀 señor", "=1+1", " spaces ", ""]
)
def test_text_survives(text: str, tmp_path: Path) -> None:
    one = Classified(np.array([0]), np.array([[1.0, 0.0]]), ["a,b", 'c"d'], [{"id": "1", "text": text}])
    (line,) = lines(one, tmp_path)
    assert line["text"] == text
    assert line["label"] == "a,b"
    assert 'probability_c"d' in line


def test_the_second_text_of_a_pair_has_a_column(tmp_path: Path) -> None:
    predictions = random_predictions(5, LABELS)
    rows = [{**row, "pair": f"second {i}"} for i, row in enumerate(predictions.rows)]
    paired = Classified(predictions.labels, predictions.scores, predictions.label_names, rows)
    assert [line["pair"] for line in lines(paired, tmp_path)] == [f"second {i}" for i in range(5)]
