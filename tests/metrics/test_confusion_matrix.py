from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from harness.metrics.confusion_matrix import ConfusionMatrix, confusion_counts
from harness.predictions import Classified
from tests.metrics.samples import LABELS, certain_predictions, random_predictions


def table(predictions: Classified, folder: Path) -> dict[str, Any]:
    """What is written for tools."""
    ConfusionMatrix().write(predictions, folder)
    content: dict[str, Any] = json.loads((folder / "confusion_matrix.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(
    "predictions",
    [
        random_predictions(311, LABELS),
        certain_predictions([0, 0, 2], [0, 2, 2], LABELS),
        random_predictions(5, [f"{i}" for i in range(40)]),
    ],
)
def test_against_scikit_learn(predictions: Classified) -> None:
    size = len(predictions.label_names)
    counts = confusion_counts(predictions)
    assert (counts == confusion_matrix(predictions.labels, predictions.predicted, labels=range(size))).all()
    assert counts.sum() == len(predictions.labels)
    assert (counts.sum(axis=1) == np.bincount(predictions.labels, minlength=size)).all()


def test_table_by_hand(tmp_path: Path) -> None:
    """Rows are true labels; the label without examples keeps its row and its column."""
    content = table(certain_predictions([0, 0, 0, 2], [0, 2, 2, 0], LABELS), tmp_path)
    assert content == {"labels": LABELS, "counts": [[1, 0, 2], [0, 0, 0], [1, 0, 0]], "row_totals": [3, 0, 1]}


def test_page_needs_no_network(tmp_path: Path) -> None:
    table(random_predictions(30, LABELS), tmp_path)
    page = (tmp_path / "confusion_matrix.html").read_text(encoding="utf-8")
    assert "<script src=" not in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert len(page) > 1_000_000  # the plotting library travels with the page
    for word in ("True label", "Predicted label", "% of row", *LABELS):
        assert word in page


def test_hostile_label_names_are_shown_as_text(tmp_path: Path) -> None:
    names = ["</script><script>alert(1)</script>", "$\\bad{$", "<b>bold</b>", "same", "same"]
    content = table(certain_predictions([0, 1, 2, 3, 4], [0, 1, 2, 3, 3], names), tmp_path)
    page = (tmp_path / "confusion_matrix.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert content["counts"][4] == [0, 0, 0, 1, 0]


def test_image_grows_with_the_labels(tmp_path: Path) -> None:
    widths = []
    for size in (2, 12, 30):
        table(random_predictions(60, [f"label {i}" for i in range(size)]), tmp_path)
        header = (tmp_path / "confusion_matrix.png").read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        widths.append(int.from_bytes(header[16:20], "big"))
    assert widths == sorted(set(widths))
