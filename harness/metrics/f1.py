"""F1, precision and recall from pooled counts, over the fixed label list whether or not a label occurs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.metric import Metric, key_suffixes
from harness.predictions import Classified

_AVERAGES = ("macro", "weighted", "micro")


class F1(Metric[Classified]):
    """Averages and per-class values, named `f1_macro`, `f1_<label>` and so on; a division by zero counts as 0.

    Macro F1 is the mean of the per-class F1, not the F1 of mean precision and mean recall: the two differ (Opitz and
    Burst 2019, arXiv:1911.03447). Weighted means weigh by support. With one label per example micro F1 is accuracy.
    """

    produces: ClassVar[tuple[str, ...]] = (
        "f1_macro",
        "f1_weighted",
        "f1_micro",
        "precision_macro",
        "recall_macro",
        "precision_weighted",
        "recall_weighted",
    )

    def compute(self, predictions: Classified) -> dict[str, float]:
        """The averages, then F1, precision and recall of each label in the order of the label list."""
        labels, predicted, size = predictions.labels, predictions.predicted, len(predictions.label_names)
        hits = np.bincount(labels[labels == predicted], minlength=size)  # [L]
        support = np.bincount(labels, minlength=size)  # [L]
        claimed = np.bincount(predicted, minlength=size)  # [L]
        per_class = {
            "f1": _ratio(2 * hits, support + claimed),  # 2TP / (2TP + FP + FN)
            "precision": _ratio(hits, claimed),
            "recall": _ratio(hits, support),
        }
        values = {f"{name}_macro": float(of.mean()) for name, of in per_class.items()}
        values |= {f"{name}_weighted": float(of @ support / support.sum()) for name, of in per_class.items()}
        values["f1_micro"] = float(hits.sum() / support.sum())
        suffixes = key_suffixes(predictions.label_names, _AVERAGES)
        values |= {
            f"{name}_{suffix}": float(value)
            for name, of in per_class.items()
            for suffix, value in zip(suffixes, of, strict=True)
        }
        return values


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """Element-wise quotient; 0 where the denominator is 0. [L]"""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator != 0)
