"""Token accuracy: pooled over tokens."""

from __future__ import annotations

from harness.metrics.token_accuracy import TokenAccuracy
from tests.metrics.language_models import likelihood


def test_it_is_the_share_of_tokens_not_the_mean_of_texts() -> None:
    assert TokenAccuracy().compute(likelihood([0, 0], [1, 9], [1, 0])) == {"token_accuracy": 0.1}
    assert TokenAccuracy().compute(likelihood([0], [0], [0])) == {"token_accuracy": 0}
