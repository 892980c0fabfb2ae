"""Predictions made from a seed, or from texts."""

from __future__ import annotations

import numpy as np

from harness.predictions import Classified, Completed

LABELS = ["negative", "neutral", "positive"]


def random_predictions(size: int, names: list[str], *, seed: int = 0, skill: float = 1.5) -> Classified:
    """Random logits, raised by `skill` at the true label; labels are random and need not all occur."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(len(names), size=size)
    scores = generator.normal(size=(size, len(names)))
    scores[np.arange(size), labels] += skill
    rows = [{"id": f"example_{i}", "text": f"text of example {i}"} for i in range(size)]
    return Classified(labels, scores, names, rows)


def certain_predictions(labels: list[int], predicted: list[int], names: list[str]) -> Classified:
    """These labels and these predicted ones, nearly without doubt."""
    scores = 20.0 * np.eye(len(names))[predicted]
    rows = [{"id": str(i), "text": ""} for i in range(len(labels))]
    return Classified(np.array(labels, dtype=np.int64), scores, names, rows)


def reordered(predictions: Classified, seed: int = 0) -> Classified:
    """The same examples in another order."""
    order = np.random.default_rng(seed).permutation(len(predictions.labels))
    rows = [predictions.rows[i] for i in order]
    return Classified(predictions.labels[order], predictions.scores[order], predictions.label_names, rows)


def completed(generated: list[str | None], references: list[str]) -> Completed:
    """These texts, two target tokens each, one of them right."""
    size = len(references)
    rows = [{"id": str(i), "text": f"ask {i}"} for i in range(size)]
    ones = np.ones(size, dtype=np.int64)
    return Completed(np.full(size, 1.5), 2 * ones, ones, rows, generated, references)
