"""The confusion matrix, as a table for tools and as figures for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import heatmap
from harness.metric import Metric
from harness.predictions import Classified
from harness.storage import write_json


class ConfusionMatrix(Metric[Classified]):
    """Rows are true labels, columns predicted ones, over the fixed label list; a row's total is the label's support."""

    def write(self, predictions: Classified, folder: Path) -> None:
        """confusion_matrix.json (`labels`, `counts`, `row_totals`), .html (hover, no network needed) and .png."""
        names, counts = predictions.label_names, confusion_counts(predictions)
        totals = counts.sum(axis=1).tolist()
        write_json(folder / "confusion_matrix.json", {"labels": names, "counts": counts.tolist(), "row_totals": totals})
        title = f"Confusion matrix · {len(predictions.labels):,} examples"
        heatmap.write(heatmap.Matrix(title, names, counts, "label", "examples"), folder / "confusion_matrix")


def confusion_counts(predictions: Classified) -> NDArray[np.int64]:
    """How many examples of each true label (row) got each predicted label (column). [L, L]"""
    size = len(predictions.label_names)
    cells = predictions.labels * size + predictions.predicted  # [N]
    return np.bincount(cells, minlength=size * size).reshape(size, size)
