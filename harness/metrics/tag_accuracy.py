"""How many words have the right tag, and how likely the model finds the right ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.metric import Metric
from harness.predictions import Tagged


class TagAccuracy(Metric[Tagged]):
    """Share of words with the right tag, and the mean negative log-likelihood of the right tags in nats.

    Most words are `O`: an accuracy says little of entities, see `entity_f1`.
    """

    produces: ClassVar[tuple[str, ...]] = ("tag_accuracy", "nll")
    less_is_better: ClassVar[tuple[str, ...]] = ("nll",)

    def compute(self, predictions: Tagged) -> dict[str, float]:
        """Means over all words of all sentences."""
        words = np.arange(len(predictions.tags))
        return {
            "tag_accuracy": float((predictions.predicted == predictions.tags).mean()),
            "nll": float(-predictions.log_probabilities()[words, predictions.tags].mean()),
        }
