from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.metrics import brier_score_loss, log_loss

from harness.metrics.calibration import Calibration, reliability
from harness.predictions import Classified
from tests.metrics.samples import LABELS, random_predictions


def from_probabilities(labels: list[int], probabilities: list[list[float]]) -> Classified:
    """Classified whose softmax is these probabilities, up to rounding."""
    size = len(probabilities[0])
    scores = np.log(np.array(probabilities))
    return Classified(np.array(labels), scores, [f"label_{i}" for i in range(size)], [{}] * len(labels))


def ece_by_loops(predictions: Classified, bins: int) -> float:
    """The definition of Guo 2017, one bin at a time."""
    confidence: NDArray[np.float64] = predictions.probabilities.max(axis=1)
    correct = predictions.predicted == predictions.labels
    total = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 2, 7, 15, 100])
@pytest.mark.parametrize("size", [1, 16, 1001])
def test_ece_against_the_definition(bins: int, size: int) -> None:
    predictions = random_predictions(size, LABELS, seed=bins)
    found = Calibration(bins=bins).compute(predictions)["ece"]
    assert found == pytest.approx(ece_by_loops(predictions, bins), abs=1e-12)


def test_ece_by_hand() -> None:
    """Two bins of ten: 0.6 twice, one right (gap 0.1); 0.9 three times, all right (gap 0.1)."""
    predictions = from_probabilities([0, 1, 0, 0, 0], [[0.6, 0.4]] * 2 + [[0.9, 0.1]] * 3)
    assert Calibration(bins=10).compute(predictions)["ece"] == pytest.approx(0.4 * 0.1 + 0.6 * 0.1)


def test_full_confidence_is_in_the_last_bin_and_an_edge_in_the_bin_below() -> None:
    certain = Classified(np.array([0]), np.array([[1000.0, 0.0]]), ["a", "b"], [{}])
    assert reliability(certain, 15).count.tolist() == [0] * 14 + [1]
    undecided = Classified(np.array([0]), np.array([[0.0, 0.0]]), ["a", "b"], [{}])  # confidence 1/2, an edge of 4 bins
    assert reliability(undecided, 4).count.tolist() == [0, 1, 0, 0]


def test_every_example_is_in_one_bin() -> None:
    assert reliability(random_predictions(1003, LABELS), 15).count.sum() == 1003


def test_empty_bins_are_zero_and_finite() -> None:
    bins = reliability(random_predictions(2, LABELS), 15)
    assert np.isfinite(bins.accuracy).all()
    assert (bins.accuracy[bins.count == 0] == 0).all()


@pytest.mark.parametrize("names", [["no", "yes"], LABELS])
def test_brier_and_nll_against_scikit_learn(names: list[str]) -> None:
    predictions = random_predictions(97, names)
    values = Calibration().compute(predictions)
    labels = list(range(len(names)))
    expected = brier_score_loss(predictions.labels, predictions.probabilities, labels=labels, scale_by_half=False)
    assert values["brier"] == pytest.approx(expected, abs=1e-12)
    assert values["nll"] == pytest.approx(log_loss(predictions.labels, predictions.probabilities, labels=labels))


def test_brier_by_hand() -> None:
    predictions = from_probabilities([0, 2], [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    expected = ((0.3**2 + 0.2**2 + 0.1**2) + (0.5**2 + 0.3**2 + 0.8**2)) / 2
    assert Calibration().compute(predictions)["brier"] == pytest.approx(expected)


def test_nll_is_finite_where_the_probability_underflows() -> None:
    wrong = Classified(np.array([1]), np.array([[5000.0, 0.0]]), ["a", "b"], [{}])
    assert Calibration().compute(wrong)["nll"] == pytest.approx(5000.0)


def test_computing_does_not_change_the_predictions() -> None:
    predictions = random_predictions(20, LABELS)
    before = predictions.scores.copy()
    assert Calibration().compute(predictions) == Calibration().compute(predictions)
    assert (predictions.scores == before).all()


@pytest.mark.parametrize("bins", [0, -1, 1.5, "15"])
def test_bins_are_a_positive_whole_number(bins: object) -> None:
    with pytest.raises(ValidationError, match="bins"):
        Calibration.model_validate({"bins": bins})


def test_diagram(tmp_path: Path) -> None:
    Calibration().write(random_predictions(50, LABELS), tmp_path)
    page = (tmp_path / "calibration.html").read_text(encoding="utf-8")
    assert "perfectly calibrated" in page
    assert "accuracy below confidence" in page
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
