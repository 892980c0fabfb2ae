"""How often the most likely token is the true one."""

from __future__ import annotations

from typing import ClassVar

from harness.metric import Metric
from harness.predictions import Likelihood


class TokenAccuracy(Metric[Likelihood]):
    """Share of the target tokens that were the most likely ones: the masked tokens, or each next token."""

    produces: ClassVar[tuple[str, ...]] = ("token_accuracy",)
    per_token: ClassVar[bool] = True

    def compute(self, predictions: Likelihood) -> dict[str, float]:
        """Pooled over the split."""
        return {"token_accuracy": float(predictions.hits.sum() / max(1, predictions.targets.sum()))}
