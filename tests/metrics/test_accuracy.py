from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from harness.metrics.accuracy import Accuracy
from harness.predictions import Classified
from tests.metrics.samples import LABELS, certain_predictions, random_predictions


def test_by_hand() -> None:
    assert Accuracy().compute(certain_predictions([0, 1, 2, 2], [0, 1, 1, 2], LABELS)) == {"accuracy": 0.75}


@pytest.mark.parametrize("size", [1, 7, 250])
def test_against_scikit_learn(size: int) -> None:
    predictions = random_predictions(size, LABELS, seed=size)
    expected = accuracy_score(predictions.labels, predictions.predicted)
    assert Accuracy().compute(predictions)["accuracy"] == pytest.approx(expected, abs=1e-15)


def test_of_equal_logits_the_first_label_is_predicted() -> None:
    tied = Classified(np.array([0, 1, 2]), np.zeros((3, 3)), LABELS, [{}] * 3)
    assert Accuracy().compute(tied)["accuracy"] == pytest.approx(1 / 3)
