from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from harness.metrics.tag_accuracy import TagAccuracy
from tests.metrics.tagged import random_tagged


def test_against_scikit_learn() -> None:
    of = random_tagged(0)
    of.scores[:] += np.random.default_rng(0).normal(size=of.scores.shape)
    probabilities = np.exp(of.scores) / np.exp(of.scores).sum(axis=1, keepdims=True)
    found = TagAccuracy().compute(of)
    assert found["tag_accuracy"] == pytest.approx(accuracy_score(of.tags, of.predicted))
    assert found["nll"] == pytest.approx(log_loss(of.tags, probabilities, labels=range(len(of.tag_names))))
