"""Exact match of generated texts: the share that is the reference, character by character, spaces at the ends aside."""

from __future__ import annotations

from typing import ClassVar

from harness.metric import Metric
from harness.predictions import Completed


class CompletionMatch(Metric[Completed]):
    """`exact_match`, over the examples for which a completion was generated."""

    produces: ClassVar[tuple[str, ...]] = ("exact_match",)

    def compute(self, predictions: Completed) -> dict[str, float]:
        """Equal ones / all."""
        equal = [text.strip() == reference.strip() for text, reference in predictions.pairs()]
        return {"exact_match": sum(equal) / max(1, len(equal))}
