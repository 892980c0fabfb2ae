"""The classification report: precision, recall, F1 and support of each label, and their averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.metric import Metric
from harness.predictions import Classified
from harness.storage import write_json, write_text


class ClassificationReport(Metric[Classified]):
    """scikit-learn's report over the fixed label list; a division by zero counts as 0."""

    def write(self, predictions: Classified, folder: Path) -> None:
        """classification_report.txt for people and classification_report.json for tools."""
        write_text(folder / "classification_report.txt", _text(predictions))
        write_json(folder / "classification_report.json", _table(predictions))


def _table(predictions: Classified) -> dict[str, Any]:
    """`classes` (a list: names may repeat), `macro` and `weighted`, each with the four values, and `accuracy`."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    true, predicted, names = predictions.labels, predictions.predicted, predictions.label_names
    labels = range(len(names))

    def scores(average: str | None) -> Any:
        return precision_recall_fscore_support(true, predicted, labels=labels, average=average, zero_division=0)

    keys = ("precision", "recall", "f1", "support")
    classes = [
        {"label": name, **dict(zip(keys, (*map(float, values[:3]), int(values[3])), strict=True))}
        for name, *values in zip(names, *scores(None), strict=True)
    ]
    averages = {
        average: dict(zip(keys, (*map(float, scores(average)[:3]), len(true)), strict=True))
        for average in ("macro", "weighted")
    }
    return {"classes": classes, "accuracy": float(accuracy_score(true, predicted)), **averages}


def _text(predictions: Classified) -> str:
    """The same as a table with aligned columns."""
    from sklearn.metrics import classification_report

    report: str = classification_report(
        predictions.labels,
        predictions.predicted,
        labels=range(len(predictions.label_names)),
        target_names=predictions.label_names,
        digits=4,
        zero_division=0,
    )
    return report
