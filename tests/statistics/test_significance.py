"""Every figure against an independent one: by hand, by enumeration, scipy, or simulated worlds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from harness.statistics import significance
from harness.statistics.significance import (
    Interval,
    expected_maximum,
    holm,
    mean_interval,
    paired_t,
    paired_t_interval,
    sign_flip,
    smallest_detectable_difference,
    smallest_sign_flip_p,
    tie_groups,
    wilcoxon,
)

A = [0.71, 0.74, 0.69, 0.72, 0.70]
B = [0.73, 0.75, 0.72, 0.72, 0.74]


def at_most(nominal: float, repetitions: int) -> float:
    """The largest share that repetitions with this chance still give, but for one world in a thousand."""
    return float(stats.binom.ppf(0.999, repetitions, nominal)) / repetitions


def test_the_t_interval_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, sd √(5/3), t(3, 0.975) = 3.182446."""
    found = mean_interval([1, 2, 3, 4])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (found.mean, found.n) == (2.5, 4)
    assert found.sd == pytest.approx(math.sqrt(5 / 3))
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_t_interval_is_scipys(level: float) -> None:
    found = stats.ttest_1samp(A, 0.0).confidence_interval(level)
    assert (mean_interval(A, level).low, mean_interval(A, level).high) == pytest.approx((found.low, found.high))


def test_one_value_has_no_spread_and_says_so() -> None:
    found = mean_interval([0.8])
    assert (found.mean, found.n) == (0.8, 1)
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.sd)
    assert paired_t([0.7], [0.8]) == 1.0


def test_the_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.02, size=(2000, 5))
    missed = sum(not found.low <= 0.7 <= found.high for found in map(mean_interval, values))
    assert 0.05 - 0.016 < missed / 2000 < at_most(0.05, 2000)


def test_paired_t_is_scipys() -> None:
    expected = stats.ttest_rel(B, A)
    found = paired_t_interval(A, B)
    assert paired_t(A, B) == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.mean == pytest.approx(0.02)


def test_swapping_the_systems_mirrors_the_interval_and_keeps_p() -> None:
    there, back = paired_t_interval(A, B), paired_t_interval(B, A)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert paired_t(A, B) == pytest.approx(paired_t(B, A))
    differences = np.subtract(B, A)
    assert sign_flip(differences) == sign_flip(-differences)
    assert wilcoxon(differences) == wilcoxon(-differences)


def test_identical_systems_do_not_differ() -> None:
    assert paired_t_interval(A, A) == Interval(0.0, 0.0, 0.0, 0.0, 5)
    assert paired_t(A, A) == sign_flip(np.zeros(5)) == wilcoxon(np.zeros(5)) == 1.0


def test_rounding_is_no_difference() -> None:
    """0.1 + 0.2 is not 0.3 in binary; five seeds of it would be beyond doubt."""
    assert paired_t([0.3] * 5, [0.1 + 0.2] * 5) == 1.0


def test_differences_all_alike_are_beyond_doubt_to_a_t_test() -> None:
    assert paired_t([0.0, 0.0, 0.0], [0.5, 0.5, 0.5]) == 0.0


def brute_force(differences: NDArray[np.float64], statistic: Callable[[NDArray[Any]], float]) -> float:
    """The share of all signs at least as far from 0, by the definition."""
    signs = itertools.product([1, -1], repeat=len(differences))
    found = [abs(statistic(np.array(sign) * differences)) for sign in signs]
    return float(np.mean(np.array(found) >= abs(statistic(differences)) - 1e-12))


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_sign_flip_is_the_enumeration(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1.0, size=n)
    assert sign_flip(differences) == brute_force(differences, np.sum)


def test_sign_flip_by_hand() -> None:
    """Of the eight sums of ±1 ±2 ±3 those of 6, 4 and their opposites are at least 4 from 0."""
    assert sign_flip([1, 2, 3]) == 2 / 8
    assert sign_flip([-1, 2, 3]) == 4 / 8


def test_ties_count_though_binary_fractions_hide_them() -> None:
    """Sums that are equal in tenths differ in the last bit, and so do 0.83 - 0.81 and 0.82 - 0.80."""
    for tenths in ([-1, 2, 3, 1], [1, 7, -2, 4, 4], [-3, 6, 1, 2, 2, 9]):
        assert sign_flip(np.divide(tenths, 10)) == sign_flip(tenths)
    assert wilcoxon([0.83 - 0.81, 0.80 - 0.82, 0.62 - 0.60, 0.64 - 0.61]) == wilcoxon([2, -2, 2, 3])


@pytest.mark.parametrize("n", [1, 5, 6, 16])
def test_differences_that_all_point_one_way_give_the_smallest_p(n: int) -> None:
    assert sign_flip(np.arange(1, n + 1)) == smallest_sign_flip_p(n)
    assert smallest_sign_flip_p(5) == 0.0625


def test_random_signs_come_near_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(3).normal(0.4, 1.0, size=14)
    exact = sign_flip(differences)
    monkeypatch.setattr(significance, "MOST_ENUMERATED", 10)
    sampled = sign_flip(differences, resamples=50_000)
    assert 0.05 < exact < 0.95
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=6 * math.sqrt(exact * (1 - exact) / 50_000))


def test_random_signs_never_give_zero_and_repeat_themselves() -> None:
    differences = np.arange(1, 41)
    assert sign_flip(differences, resamples=999) == 1 / 1000
    noisy = np.random.default_rng(0).normal(0.1, 1.0, size=40)
    assert sign_flip(noisy, 999, seed=1) == sign_flip(noisy, 999, seed=1)
    assert sign_flip(noisy, 999, seed=1) != sign_flip(noisy, 999, seed=2)
    assert sign_flip(np.zeros(40), resamples=99) == 1.0


def test_random_signs_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sign_flip(np.arange(-9, 21), resamples=300)
    monkeypatch.setattr(significance, "_BLOCK", 1000)  # 33 resamples a block, the last one shorter
    assert sign_flip(np.arange(-9, 21), resamples=300) == whole


@pytest.mark.parametrize("test", [sign_flip, wilcoxon])
def test_an_exact_test_is_wrong_at_most_as_often_as_it_says(test: Callable[[NDArray[Any]], float]) -> None:
    """Given the sizes all signs are equally likely, so the share of p <= α is known, here with ties and a 0."""
    for sizes in ([0.1, 0.5, 0.7, 1.1, 1.3, 2.9], [1, 1, 2, 2, 2, 5], [0, 1, 2, 3, 3, 4]):
        p = np.array([test(np.array(signs) * sizes) for signs in itertools.product([1, -1], repeat=6)])
        assert all((p <= alpha + 1e-12).mean() <= alpha + 1e-12 for alpha in {*p.tolist(), 0.05})


def signed_ranks(differences: NDArray[np.float64]) -> float:
    return float((np.sign(differences) * stats.rankdata(np.abs(differences))).sum())


@pytest.mark.parametrize("n", [2, 5, 9, 16, 17, 40])
def test_wilcoxon_is_scipys_where_nothing_is_tied(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1.0, size=n)
    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_wilcoxon_with_ties_is_the_enumeration() -> None:
    differences = np.array([0.5, 0.5, -0.5, 1.0, 1.0, 2.0, 3.0, -1.0])
    assert wilcoxon(differences) == brute_force(differences, signed_ranks)


def test_wilcoxon_with_ties_is_exact_as_far_as_signs_are_enumerated() -> None:
    differences = np.random.default_rng(1).integers(1, 5, size=16) * np.where(np.arange(16) % 3, 1, -1)
    assert wilcoxon(differences) == sign_flip(np.sign(differences) * stats.rankdata(np.abs(differences)))


def test_wilcoxon_leaves_out_zeros() -> None:
    """Of ranks 1 to 4, none, 1, 2, 3, and 1 with 2 sum to at most 3; ranked with the zeros it would be 8 / 16."""
    assert wilcoxon([0.0, 1.0, 2.0, 0.0, -3.0, 4.0]) == wilcoxon([1.0, 2.0, -3.0, 4.0]) == 10 / 16


def test_wilcoxon_with_many_ties_is_near_the_random_signs() -> None:
    differences = np.random.default_rng(0).integers(-3, 6, size=60)
    kept = differences[differences != 0]
    expected = sign_flip(np.sign(kept) * stats.rankdata(np.abs(kept)))
    assert wilcoxon(differences) == pytest.approx(expected, abs=0.01)


def test_holm_by_hand() -> None:
    """Of four: 0.01 x 4, 0.02 x 3, then 0.03 x 2 (no less than the one before), then 0.5 x 1."""
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm([0.01, 0.011]), [0.02, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_is_the_step_down_and_lies_between_raw_and_bonferroni() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        raw = np.round(generator.random(generator.integers(1, 8)) ** 3, 2)  # small ones, some tied
        adjusted = holm(raw)
        assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()
        assert (adjusted >= raw).all()
        assert (adjusted <= np.minimum(1, raw * len(raw)) + 1e-12).all()
        rejected = 0  # as Holm wrote it: go on while the smallest one left is small enough
        while rejected < len(raw) and np.sort(raw)[rejected] * (len(raw) - rejected) <= 0.05:
            rejected += 1
        assert (adjusted <= 0.05).sum() == rejected


def test_groups_of_systems_that_are_not_separated() -> None:
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0, 0.01])
    scores = {
        "worst": (0.50 + np.roll(noise, 1)).tolist(),
        "good": (0.80 + noise[::-1]).tolist(),
        "best": (0.81 + noise).tolist(),
    }
    assert tie_groups(scores) == [["best", "good"], ["worst"]]
    assert tie_groups({"alone": [0.3]}) == [["alone"]]
    assert tie_groups({"a": [0.3], "b": [0.9]}) == [["b", "a"]]
    assert tie_groups({"a": [0.3, 0.4], "b": [0.5, 0.6]}) == [["b", "a"]], "every seed differs alike: no spread"


def test_one_of_many_equal_systems_is_seldom_called_best() -> None:
    """Five equal systems, one of them best by luck."""
    scores = np.random.default_rng(0).normal(size=(150, 5, 6))
    torn = sum(len(tie_groups(dict(zip("abcde", world.tolist(), strict=True)))) > 1 for world in scores)
    assert torn / 150 <= at_most(0.05, 150)


def test_detectable_differences_are_those_of_the_tables() -> None:
    """A medium effect of half an sd takes 34 pairs for a power of 0.8 (Cohen 1988; G*Power)."""
    assert smallest_detectable_difference(1.0, 34) < 0.5 < smallest_detectable_difference(1.0, 33)
    assert smallest_detectable_difference(1.0, 10) == pytest.approx(0.996, abs=1e-3)
    assert smallest_detectable_difference(0.02, 10) == pytest.approx(0.02 * smallest_detectable_difference(1.0, 10))


@pytest.mark.parametrize(("n", "power"), [(2, 0.8), (5, 0.06), (5, 0.8), (30, 0.99)])
def test_detectable_differences_solve_the_noncentral_f(n: int, power: float) -> None:
    """The square of t, where both tails are one."""
    shift = smallest_detectable_difference(1.0, n, power)
    critical = stats.f.ppf(0.95, 1, n - 1)
    assert stats.ncf.sf(critical, 1, n - 1, n * shift**2) == pytest.approx(power, rel=1e-6)


@pytest.mark.parametrize(("n", "power"), [(3, 0.5), (5, 0.8), (10, 0.9)])
def test_a_detectable_difference_is_detected_that_often(n: int, power: float) -> None:
    shift = smallest_detectable_difference(0.02, n, power)
    worlds = np.random.default_rng(n).normal(shift, 0.02, size=(4000, n))
    found = (stats.ttest_1samp(worlds, 0.0, axis=1).pvalue <= 0.05).mean()
    assert found == pytest.approx(power, abs=5 * math.sqrt(power * (1 - power) / 4000))


def test_what_can_be_detected_at_the_ends() -> None:
    assert smallest_detectable_difference(0.02, 1) == math.inf
    assert smallest_detectable_difference(0.0, 5) == 0.0
    assert 10 < smallest_detectable_difference(1.0, 2) < 12
    assert math.isfinite(smallest_detectable_difference(1.0, 2, power=0.999, level=1e-4))


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_the_expected_maximum_is_the_mean_over_all_draws(budget: int) -> None:
    values = [0.4, 0.9, 0.4, 0.7]
    draws = [max(draw) for draw in itertools.product(values, repeat=budget)]
    assert expected_maximum(values, budget) == pytest.approx(np.mean(draws))


def test_the_expected_maximum_goes_from_the_mean_to_the_best() -> None:
    values = np.random.default_rng(0).random(20)
    curve = [expected_maximum(values, budget) for budget in (1, 2, 5, 10, 20, 2000)]
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(values.mean())
    assert curve[-1] == pytest.approx(values.max())


def test_equal_systems_are_seldom_called_different_over_seeds() -> None:
    worlds = np.random.default_rng(0).normal(0.8, 0.02, size=(300, 2, 8))
    p = [(paired_t(a, b), sign_flip(b - a), wilcoxon(b - a)) for a, b in worlds]
    assert (np.array(p) <= 0.05).mean(axis=0).max() <= at_most(0.05, 300)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "a list of values expected"),
        (lambda: mean_interval([[0.1, 0.2]]), "a list of values expected"),
        (lambda: mean_interval([0.1, math.nan]), "NaN or infinite"),
        (lambda: sign_flip([0.1, math.nan]), "NaN or infinite"),
        (lambda: wilcoxon([0.1, math.inf]), "NaN or infinite"),
        (lambda: expected_maximum([0.1, math.nan], 1), "NaN or infinite"),
        (lambda: mean_interval([0.1, 0.2], level=95), "level is 95, must lie between 0 and 1"),
        (lambda: paired_t([0.1, 0.2], [0.3]), "2 and 1 values cannot be paired"),
        (lambda: sign_flip(np.arange(20), resamples=0), "at least 1 is needed"),
        (lambda: smallest_sign_flip_p(0), "n is 0"),
        (lambda: holm([0.1, 1.2]), "within"),
        (lambda: holm([0.1, math.nan]), "within"),
        (lambda: tie_groups({}), "no systems"),
        (lambda: smallest_detectable_difference(-0.1, 5), "sd is -0.1"),
        (lambda: smallest_detectable_difference(math.nan, 5), "sd is nan"),
        (lambda: smallest_detectable_difference(0.1, 0), "n is 0"),
        (lambda: smallest_detectable_difference(0.1, 5, power=0.05), "must be above the level"),
        (lambda: expected_maximum([0.1], 0), "the budget is 0"),
    ],
)
def test_what_cannot_be_used_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
