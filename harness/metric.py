"""The contract of a metric: predictions in, numbers out, and files for people to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.settings import Settings

History = dict[str, list[tuple[int, float]]]
"""Metric name -> (step, value) in order."""


@dataclass(frozen=True)
class Predictions:
    """What a task predicted for one split. Shapes: N examples, L labels."""

    labels: NDArray[np.int64]
    """True label of each example, an index into `label_names`. [N]"""
    scores: NDArray[np.float64]
    """Logits. [N, L]"""
    label_names: list[str]
    """The fixed label list, whether or not a label occurs. [L]"""
    rows: list[dict[str, Any]]
    """What identifies each example to a person: id and text. [N]"""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits. [N, L]"""
        shifted = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The label with the highest logit. [N]"""
        return np.asarray(self.scores.argmax(axis=1), dtype=np.int64)


class Metric(Settings):
    """One metric: its settings are its fields.

    `produces` lists the keys `compute` returns whatever the data, so that a spec which monitors a metric that never
    appears is refused before training; keys that depend on the labels may come on top.
    """

    produces: ClassVar[tuple[str, ...]] = ()
    less_is_better: ClassVar[tuple[str, ...]] = ()
    """Those of its keys that are losses or errors."""

    def compute(self, predictions: Predictions) -> dict[str, float]:
        """Numbers over one whole split, from pooled counts, never averaged over batches. Keys are without the split."""
        return {}

    def write(self, predictions: Predictions, folder: Path) -> None:
        """Files for people and tools (tables, figures); called once, for the test split. Default: none."""
