from __future__ import annotations

import pytest
from sklearn.metrics import precision_recall_fscore_support

from harness.metric import key_suffixes
from harness.metrics.f1 import F1
from harness.predictions import Classified
from tests.metrics.samples import LABELS, certain_predictions, random_predictions

CASES = {
    "random": random_predictions(301, LABELS),
    "a label that never occurs and is never predicted": certain_predictions([0, 0, 1], [0, 1, 1], LABELS),
    "a label that is only predicted": certain_predictions([0, 0, 1], [0, 2, 2], LABELS),
    "a label that is never predicted": certain_predictions([0, 2, 2], [0, 0, 0], LABELS),
    "one example": certain_predictions([1], [1], LABELS),
    "nothing right": certain_predictions([0, 1, 2], [1, 2, 0], LABELS),
    "many labels": random_predictions(120, [f"intent {i}" for i in range(60)]),
}


@pytest.mark.parametrize("name", CASES)
def test_against_scikit_learn(name: str) -> None:
    predictions = CASES[name]
    values = F1().compute(predictions)
    for average in ("macro", "weighted", "micro", None):
        precision, recall, f1, _ = precision_recall_fscore_support(
            predictions.labels,
            predictions.predicted,
            labels=range(len(predictions.label_names)),
            average=average,
            zero_division=0,
        )
        for key, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
            if average is None:
                found = [values[f"{key}_{label}"] for label in predictions.label_names]
                assert found == pytest.approx(list(expected), abs=1e-14)
            elif f"{key}_{average}" in F1.produces:
                assert values[f"{key}_{average}"] == pytest.approx(expected, abs=1e-14)


def test_by_hand() -> None:
    """True a a a b, predicted a b b b: a has TP 1, FP 0, FN 2; b has TP 1, FP 2, FN 0."""
    values = F1().compute(certain_predictions([0, 0, 0, 1], [0, 1, 1, 1], ["a", "b"]))
    assert values["f1_a"] == pytest.approx(2 / 4)
    assert values["f1_b"] == pytest.approx(2 / 4)
    assert values["precision_a"] == 1.0
    assert values["recall_a"] == pytest.approx(1 / 3)
    assert values["precision_macro"] == pytest.approx((1 + 1 / 3) / 2)
    assert values["recall_weighted"] == pytest.approx(3 / 4 / 3 + 1 / 4)
    assert values["f1_micro"] == pytest.approx(2 / 4)


def test_macro_f1_is_the_mean_of_f1_and_not_the_f1_of_means() -> None:
    values = F1().compute(certain_predictions([0, 0, 0, 1], [0, 1, 1, 1], ["a", "b"]))
    of_means = 2 / (1 / values["precision_macro"] + 1 / values["recall_macro"])
    assert values["f1_macro"] == pytest.approx(0.5)
    assert of_means == pytest.approx(2 / 3)


def test_an_absent_label_lowers_the_macro_mean() -> None:
    """The list of labels is fixed: the absent third label counts with F1 0."""
    assert F1().compute(certain_predictions([0, 1], [0, 1], LABELS))["f1_macro"] == pytest.approx(2 / 3)


def test_counts_are_pooled_not_averaged_over_parts() -> None:
    whole = random_predictions(10, LABELS, seed=3)
    halves = [
        Classified(whole.labels[cut], whole.scores[cut], LABELS, whole.rows[cut]) for cut in (slice(3), slice(3, 10))
    ]
    mean_of_parts = sum(F1().compute(half)["f1_macro"] for half in halves) / 2
    assert F1().compute(whole)["f1_macro"] != pytest.approx(mean_of_parts, abs=1e-3)


@pytest.mark.parametrize(
    ("names", "suffixes"),
    [
        (["a/b", "c:d", "e\nf", "1 star", "x.y-z"], ["a_b", "c_d", "e_f", "1 star", "x.y-z"]),
        (["a/b", "a:b", "a_b"], ["a_b", "a_b_2", "a_b_3"]),
        (["macro", "micro", "weighted", "macro_2"], ["macro_2", "micro_2", "weighted_2", "macro_2_2"]),
        (["categoría", "正面", ""], ["categoría", "正面", ""]),
        (["x" * 300, "x" * 301], ["x" * 100, "x" * 100 + "_2"]),
    ],
)
def test_suffixes_are_safe_and_different(names: list[str], suffixes: list[str]) -> None:
    assert key_suffixes(names, ("macro", "weighted", "micro")) == suffixes


def test_a_label_called_macro_does_not_replace_the_macro_mean() -> None:
    predictions = certain_predictions([0, 0, 1], [0, 0, 0], ["macro", "weighted"])
    values = F1().compute(predictions)
    assert values["f1_macro"] == pytest.approx((0.8 + 0) / 2)
    assert values["f1_macro_2"] == pytest.approx(0.8)
