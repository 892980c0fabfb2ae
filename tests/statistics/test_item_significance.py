"""Every figure against an independent one: by hand, by enumeration, scipy, scikit-learn, or simulated worlds."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from harness.metrics.f1 import F1
from harness.predictions import Classified
from harness.statistics import significance
from harness.statistics.item_significance import macro_f1, mcnemar, nested_bootstrap, paired_bootstrap, wilson_interval
from harness.statistics.significance import paired_t, paired_t_interval, sign_flip, wilcoxon
from tests.statistics.test_significance import at_most

LABELS = np.array([0, 1, 2])
F1_OF_3 = functools.partial(macro_f1, num_labels=3)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 5), (3, 9), (7, 7), (1, 0)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_items(only_a: int, only_b: int) -> None:
    a = [True] * only_a + [False] * only_b + [True] * 10 + [False] * 10
    b = [False] * only_a + [True] * only_b + [True] * 10 + [False] * 10
    n, worst = only_a + only_b, min(only_a, only_b)
    by_hand = min(1.0, 2 * sum(math.comb(n, k) for k in range(worst + 1)) / 2**n)
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(by_hand)


def test_mcnemar_without_discordant_items_is_one() -> None:
    assert mcnemar([True, False], [True, False]) == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (480, 600), (1, 1), (0, 1)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_is_scipys(successes: int, n: int, level: float) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson_interval(successes, n, level) == pytest.approx((expected.low, expected.high))
    low, high = wilson_interval(successes, n, level)
    assert 0 <= low < high <= 1


def test_wilson_reaches_the_ends_exactly() -> None:
    assert [wilson_interval(0, n)[0] for n in range(1, 50)] == [0.0] * 49
    assert [wilson_interval(n, n)[1] for n in range(1, 50)] == [1.0] * 49


def accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = weights @ (labels == predicted) / weights.sum(axis=-1)
    return found


def guesses(seed: int, *shape: int, skill: float = 0.7, num_labels: int = 3) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels [N], and predictions that are right with `skill`, else drawn. shape: [..., N]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_labels, size=shape[-1])
    drawn = generator.integers(num_labels, size=shape)
    return labels, np.where(generator.random(shape) < skill, labels, drawn)


def test_macro_f1_is_sklearns_on_every_resample() -> None:
    """Ten items and four labels: in most resamples a label is missing."""
    labels, predicted = guesses(0, 10, skill=0.5, num_labels=4)
    indices = np.random.default_rng(1).integers(10, size=(50, 10))
    weights = np.stack([np.bincount(row, minlength=10) for row in indices])
    expected = [
        f1_score(labels[row], predicted[row], labels=range(4), average="macro", zero_division=0) for row in indices
    ]
    np.testing.assert_allclose(macro_f1(labels, predicted, weights, 4), expected, atol=1e-14)
    assert any(len(set(labels[row])) < 4 for row in indices)


def test_macro_f1_is_that_of_the_metrics() -> None:
    labels, predicted = guesses(3, 200)
    scores = np.eye(3, dtype=np.float32)[predicted]
    expected = F1().compute(Classified(labels, scores, ["a", "b", "c"], [{}] * 200))["f1_macro"]
    assert macro_f1(labels, predicted, np.ones((1, 200)), 3).tolist() == pytest.approx([expected])


def test_the_bootstrap_approaches_the_enumeration_of_all_resamples() -> None:
    """Four items have 256 resamples, and the share at least as far off as the estimate is known."""
    labels, a, b = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    found = paired_bootstrap(accuracy, labels, a, b, resamples=20_000)
    every = [
        accuracy_score(labels[list(row)], b[list(row)]) - accuracy_score(labels[list(row)], a[list(row)])
        for row in itertools.product(range(4), repeat=4)
    ]
    expected = np.mean(np.abs(np.array(every) - 0.25) >= 0.25)
    assert found.estimate == 0.25
    assert found.p == pytest.approx(expected, abs=6 * math.sqrt(expected * (1 - expected) / 20_000))
    assert (found.low, found.high) == tuple(np.quantile(every, [0.025, 0.975]))


def test_the_bootstrap_is_scipys() -> None:
    labels, a = guesses(0, 300, skill=0.6)
    _, b = guesses(0, 300, skill=0.75)
    right = (b == labels).astype(float) - (a == labels)
    expected = stats.bootstrap((right,), np.mean, method="percentile", random_state=1).confidence_interval
    found = paired_bootstrap(accuracy, labels, a, b)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.005)
    assert found.estimate == pytest.approx(right.mean())


def test_both_systems_are_scored_on_the_same_items() -> None:
    """b is right wherever a is and on every other item: no resample can be in favour of a."""
    labels, a = guesses(0, 100, skill=0.4)
    found = paired_bootstrap(accuracy, labels, a, labels, resamples=500)
    assert found.low > 0
    assert found.p == 1 / 501


def test_swapping_the_systems_mirrors_the_bootstrap() -> None:
    labels, a = guesses(0, 4, 150)
    _, b = guesses(0, 4, 150, skill=0.75)
    for there, back in (
        (paired_bootstrap(F1_OF_3, labels, a[0], b[0], 500), paired_bootstrap(F1_OF_3, labels, b[0], a[0], 500)),
        (nested_bootstrap(labels, a, b, 3, 500), nested_bootstrap(labels, b, a, 3, 500)),
    ):
        assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))
        assert back.p == there.p


def test_identical_predictions_do_not_differ() -> None:
    labels, a = guesses(0, 3, 50)
    for found in (paired_bootstrap(F1_OF_3, labels, a[0], a[0], 200), nested_bootstrap(labels, a, a, 3, 200)):
        assert (found.estimate, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_results_repeat_and_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, a = guesses(0, 3, 70)
    _, b = guesses(1, 3, 70)
    whole = nested_bootstrap(labels, a, b, 3, resamples=300)
    monkeypatch.setattr(significance, "_BLOCK", 1000)  # 14 resamples a block, the last one shorter
    assert nested_bootstrap(labels, a, b, 3, resamples=300) == whole
    assert nested_bootstrap(labels, a, b, 3, resamples=300, seed=1) != whole


def test_of_one_seed_the_nested_bootstrap_is_the_paired_one() -> None:
    labels, a = guesses(0, 1, 80)
    _, b = guesses(1, 1, 80)
    assert nested_bootstrap(labels, a, b, 3, 400) == paired_bootstrap(F1_OF_3, labels, a[0], b[0], 400)


def test_the_nested_bootstrap_is_its_definition() -> None:
    """Seeds drawn in pairs, then items, the same ones for all, each resample scored by itself."""
    labels, a = guesses(0, 3, 40, skill=0.5)
    b = a.copy()
    b[1:, :20] = labels[:20]  # seed 0 gains nothing
    once, generator, drawn = np.ones((1, 40)), np.random.default_rng(5), []
    for _ in range(1500):
        seeds, items = generator.integers(3, size=3), generator.integers(40, size=40)
        of_a, of_b = ([F1_OF_3(labels[items], side[seed, items], once)[0] for seed in seeds] for side in (a, b))
        drawn.append(np.mean(np.subtract(of_b, of_a)))
    found = nested_bootstrap(labels, a, b, 3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


# Simulated worlds: how often a test is wrong, and whether it finds what is there


def world(
    generator: np.random.Generator, num_seeds: int, num_items: int, seed_sd: float, gain: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Two systems with the same mean skill but for `gain`: items of their own liking, seeds of their own luck."""
    labels = generator.integers(3, size=num_items)
    common, predicted = generator.normal(1.0, 1.5, size=num_items), []
    for skill in (0.0, gain):
        liking, luck = generator.normal(0, 0.5, size=num_items), generator.normal(0, seed_sd, size=(num_seeds, 1))
        is_right = generator.normal(size=(num_seeds, num_items)) < common + liking + luck + skill
        wrong = (labels + generator.integers(1, 3, size=is_right.shape)) % 3
        predicted.append(np.where(is_right, labels, wrong))
    return labels, predicted[0], predicted[1]


def test_equal_systems_are_seldom_called_different_over_items() -> None:
    generator, p = np.random.default_rng(0), []
    for _ in range(300):
        labels, (a,), (b,) = world(generator, 1, 150, seed_sd=0.0)
        p.append((paired_bootstrap(F1_OF_3, labels, a, b, resamples=400).p, mcnemar(a == labels, b == labels)))
    assert (np.array(p) <= 0.05).mean(axis=0).max() <= at_most(0.05, 300)


@pytest.mark.parametrize("seed_sd", [0.0, 0.1, 0.3])
def test_seeds_and_items_together_are_seldom_wrong_where_one_alone_is(seed_sd: float) -> None:
    """Two intervals, each blind to a noise: the nested one to how few the seeds are, the t interval to the items."""
    generator, wrong = np.random.default_rng(0), []
    for _ in range(200):
        labels, a, b = world(generator, 5, 300, seed_sd)
        nested = nested_bootstrap(labels, a, b, 3, resamples=400)
        scores_a, scores_b = ([F1_OF_3(labels, one, np.ones((1, 300)))[0] for one in side] for side in (a, b))
        over_seeds = paired_t_interval(scores_a, scores_b)
        wrong.append([not found.low <= 0 <= found.high for found in (nested, over_seeds)])
    assert np.all(wrong, axis=1).mean() <= at_most(0.05, 200)
    if seed_sd == 0.3:
        assert np.mean(wrong, axis=0)[0] > at_most(0.05, 200)  # as its docstring warns


def test_a_planted_difference_is_found() -> None:
    labels, a, b = world(np.random.default_rng(0), 8, 400, seed_sd=0.1, gain=0.6)
    scores_a, scores_b = ([F1_OF_3(labels, one, np.ones((1, 400)))[0] for one in side] for side in (a, b))
    assert paired_t_interval(scores_a, scores_b).low > 0
    assert nested_bootstrap(labels, a, b, 3, resamples=2000).low > 0
    differences = np.subtract(scores_b, scores_a)
    assert max(paired_t(scores_a, scores_b), sign_flip(differences), wilcoxon(differences)) < 0.01
    assert mcnemar(a[0] == labels, b[0] == labels) < 0.01
    assert paired_bootstrap(F1_OF_3, labels, a[0], b[0], 2000).p < 0.01


# What cannot be used


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar([True], [True, False]), "1 and 2 items cannot be paired"),
        (lambda: mcnemar([0.9], [0.1]), "whole numbers"),
        (lambda: wilson_interval(3, 2), "3 of 2 is not a proportion"),
        (lambda: wilson_interval(0, 0), "0 of 0 is not a proportion"),
        (lambda: macro_f1([0, 1, 3], LABELS, np.ones((1, 3)), 3), "labels from 0 to 3"),
        (lambda: macro_f1([0, 1, -1], LABELS, np.ones((1, 3)), 3), "labels from -1 to 2"),
        (lambda: macro_f1([0, 1], LABELS, np.ones((1, 3)), 3), "2 labels, 3 predictions"),
        (lambda: macro_f1(["no", "yes"], ["no", "no"], np.ones((1, 2)), 2), "whole numbers"),
        (lambda: paired_bootstrap(F1_OF_3, LABELS, LABELS, LABELS[:2]), "3 labels, predictions"),
        (lambda: paired_bootstrap(F1_OF_3, LABELS, LABELS, LABELS, resamples=0), "at least 1 is needed"),
        (lambda: nested_bootstrap(LABELS, np.zeros((2, 3), int), np.zeros((3, 3), int), 3), "3 labels, predictions"),
        (lambda: nested_bootstrap([], np.zeros((2, 0), int), np.zeros((2, 0), int), 3), "a list of labels expected"),
    ],
)
def test_what_cannot_be_used_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
