from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import classification_report

from harness.metrics.accuracy import Accuracy
from harness.metrics.classification_report import ClassificationReport
from harness.metrics.f1 import F1
from harness.predictions import Classified
from tests.metrics.samples import LABELS, certain_predictions, random_predictions


def report(predictions: Classified, folder: Path) -> tuple[dict[str, Any], str]:
    """Both files."""
    ClassificationReport().write(predictions, folder)
    content = json.loads((folder / "classification_report.json").read_text(encoding="utf-8"))
    return content, (folder / "classification_report.txt").read_text(encoding="utf-8")


def test_by_hand(tmp_path: Path) -> None:
    """Only the second label is wrong, half of the time; the third does not occur."""
    content, _ = report(certain_predictions([0, 0, 1, 1], [0, 0, 1, 0], LABELS), tmp_path)
    assert [row["label"] for row in content["classes"]] == LABELS
    assert [row["support"] for row in content["classes"]] == [2, 2, 0]
    assert [row["precision"] for row in content["classes"]] == pytest.approx([2 / 3, 1, 0])
    assert [row["recall"] for row in content["classes"]] == pytest.approx([1, 0.5, 0])
    assert [row["f1"] for row in content["classes"]] == pytest.approx([0.8, 2 / 3, 0])
    assert content["accuracy"] == 0.75
    assert content["macro"]["f1"] == pytest.approx((0.8 + 2 / 3) / 3)
    assert content["weighted"]["recall"] == pytest.approx(0.75)
    assert content["weighted"]["support"] == 4


def test_agrees_with_the_metrics(tmp_path: Path) -> None:
    predictions = random_predictions(123, LABELS)
    content, _ = report(predictions, tmp_path)
    values = F1().compute(predictions) | Accuracy().compute(predictions)
    assert content["accuracy"] == pytest.approx(values["accuracy"])
    for average in ("macro", "weighted"):
        for key in ("precision", "recall", "f1"):
            assert content[average][key] == pytest.approx(values[f"{key}_{average}"])
    for row in content["classes"]:
        assert row["f1"] == pytest.approx(values[f"f1_{row['label']}"])


def test_text_is_scikit_learns(tmp_path: Path) -> None:
    predictions = random_predictions(44, LABELS)
    _, text = report(predictions, tmp_path)
    assert text == classification_report(predictions.labels, predictions.predicted, target_names=LABELS, digits=4)


def test_labels_called_like_the_averages_stay_apart(tmp_path: Path) -> None:
    content, text = report(certain_predictions([0, 1, 1], [0, 1, 1], ["accuracy", "macro", "macro"]), tmp_path)
    assert [row["label"] for row in content["classes"]] == ["accuracy", "macro", "macro"]
    assert content["accuracy"] == 1.0
    assert "weighted avg" in text
