"""Accuracy: the share of examples whose highest logit is the true label's."""

from __future__ import annotations

from typing import ClassVar

from harness.metric import Metric
from harness.predictions import Classified


class Accuracy(Metric[Classified]):
    """`accuracy`; of equal logits the first label counts as predicted."""

    produces: ClassVar[tuple[str, ...]] = ("accuracy",)

    def compute(self, predictions: Classified) -> dict[str, float]:
        """Correct examples / all examples."""
        return {"accuracy": float((predictions.predicted == predictions.labels).mean())}
