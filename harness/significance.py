"""Is the difference noise? Intervals, exact tests and bootstraps for scores over seeds and predictions over test items.

A difference is b - a. Scores are paired by seed: place i of a and of b comes from the same seed. Seeds and items are
two sources of noise: a test over the items of one seed says nothing about the method (Reimers and Gurevych 2017,
arXiv:1707.09861; Dodge et al. 2020, arXiv:2002.06305). NaN and infinity are refused: a run that failed or diverged is
reported, or given the score it deserves, by whoever calls; it is not dropped in silence.
Legend: N items, S seeds, L labels, R resamples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Metric = Callable[[Labels, Labels, Floats], Floats]
"""(labels [N], predicted [N], weights [R, N]) -> scores [R]; a weight says how often the resample holds the item."""
MOST_ENUMERATED = 16
"""Differences up to which all 2**n signs are tried: 65,536 of them, 8 MiB."""
_BLOCK = 2**19
"""Cells of resamples worked on at once; the results do not depend on it."""
_NOISE = 1e-9
"""Relative difference up to which two values count as equal: in binary 0.83 - 0.81 is not 0.82 - 0.80."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie."""

    mean: float
    low: float
    high: float
    sd: float
    """Of the values, with n - 1."""
    n: int


@dataclass(frozen=True)
class Difference:
    """A difference of two scores, b - a, and where it may lie."""

    estimate: float
    """On all items, not the mean of the resamples."""
    low: float
    high: float
    p: float
    resamples: int


# Scores over seeds


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean ± t(n - 1, (1 + level) / 2) · sd / √n (Student 1908), for values that are roughly normal. values: [S].

    Of one value sd, low and high are nan: it says nothing about the spread. Values that are all alike give an interval
    of width 0; few and coarse ones (correct answers of a small test set) can be alike by chance.

    Raises:
        ValueError: no values, NaN or infinity, a level outside (0, 1).
    """
    from scipy.stats import t

    sample, level = _sample(values), _share(level, "level")
    n, mean = len(sample), float(sample.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    sd = float(sample.std(ddof=1))
    half = float(t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def paired_t_interval(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """`mean_interval` of b - a. a, b: [S], paired by seed. Raises ValueError as it does, and for unequal lengths."""
    return mean_interval(_differences(a, b), level)


def paired_t(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of the paired t test: 2 · P(T > |mean| · √n / sd), T with n - 1 degrees of freedom. a, b: [S].

    One pair gives 1. Differences all alike give 0, or 1 where they are 0: see `mean_interval` for how little that says.

    Raises:
        ValueError: as `paired_t_interval`.
    """
    from scipy.stats import t

    found = paired_t_interval(a, b)
    if found.n == 1 or found.mean == 0:
        return 1.0
    statistic = abs(found.mean) * math.sqrt(found.n) / found.sd if found.sd > 0 else math.inf
    return float(2 * t.sf(statistic, found.n - 1))


def sign_flip(differences: ArrayLike, resamples: int = 100_000, seed: int = 0) -> float:
    """Two-sided p that differences symmetric around 0 have a sum as far from 0 as this one. differences: [n].

    Up to 16 differences exact: the share of all 2**n signs with |Σ ±d| >= |Σ d| (Fisher 1935). Beyond, random signs and
    (hits + 1) / (resamples + 1), which is never 0 (Phipson and Smyth 2010, Permutation P-values should never be zero).
    A difference of 0 stays in and changes nothing; all 0 gives 1.

    Raises:
        ValueError: no differences, NaN or infinity, no resamples.
    """
    sample = _sample(differences)
    n, atol = len(sample), _NOISE * np.abs(sample).sum()

    def count(flipped: Labels) -> int:  # [R, n], 1 where the sign is turned
        sums = sample.sum() - 2 * (flipped @ sample)  # [R]
        return int((np.abs(sums) >= abs(sample.sum()) - atol).sum())

    if n <= MOST_ENUMERATED:
        return count(np.arange(2**n)[:, None] >> np.arange(n) & 1) / float(2**n)
    generator = np.random.default_rng(seed)
    hits = sum(count(generator.integers(2, size=(rows, n))) for rows in _blocks(resamples, n))
    return (hits + 1) / (resamples + 1)


def smallest_sign_flip_p(n: int) -> float:
    """The smallest p that `sign_flip` can find: 2 / 2**n, of differences that all point one way. Five give 0.0625.

    With more than 16 differences the resamples are the bound: 1 / (resamples + 1). Raises ValueError for n < 1.
    """
    _check(n >= 1, f"n is {n}, must be at least 1")
    return float(2.0 ** (1 - n))


def wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p of the signed-rank test: the sum of the ranks of |d| with the signs of d (Wilcoxon 1945). [n].

    Differences of 0 are left out first, as Wilcoxon did; none left gives 1. Equal |d| share their mean rank. Up to 16
    differences it is `sign_flip` of the signed ranks, exact with ties too; beyond, scipy's choice: exact up to 50
    without ties, else the normal approximation with the correction for ties.

    Raises:
        ValueError: no differences, NaN or infinity.
    """
    from scipy import stats

    sample = _sample(differences)
    rounded = np.round(sample / (np.abs(sample).max() or 1.0) / _NOISE)  # whole numbers: ties are ties
    kept = rounded[rounded != 0]
    if len(kept) == 0:
        return 1.0
    if len(kept) <= MOST_ENUMERATED:
        return sign_flip(np.sign(kept) * stats.rankdata(np.abs(kept)))
    return float(stats.wilcoxon(kept).pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """p adjusted for being one of m: max over j <= i of min(1, (m - j + 1) · p_(j)), in the order given (Holm 1979).

    Those at or below α may be called different; the chance of one mistake or more is then at most α. p_values: [m].

    Raises:
        ValueError: a value that is NaN or outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    _check(values.ndim == 1 and bool(((values >= 0) & (values <= 1)).all()), "p values must be a list within [0, 1]")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, values[order] * np.arange(len(values), 0, -1)))
    adjusted = np.empty_like(values)
    adjusted[order] = stepped
    return adjusted


def tied_with_best(scores: dict[str, Sequence[float]], level: float = 0.05) -> list[str]:
    """The system with the highest mean and all that are not separated from it, best first. scores: name -> [S].

    Separated: the paired t test's p is at most `level` after Holm over ALL pairs of systems, since which one is best
    was learnt from the same scores. Not separated is not equal: see `smallest_detectable_difference`.

    Raises:
        ValueError: no systems, scores not paired, NaN or infinity.
    """
    _check(bool(scores), "there are no systems to compare")
    names = sorted(scores, key=lambda name: -float(_sample(scores[name]).mean()))
    pairs = list(combinations(names, 2))
    adjusted = holm([paired_t(scores[left], scores[right]) for left, right in pairs])
    separated = {pair for pair, p in zip(pairs, adjusted, strict=True) if p <= _share(level, "level")}
    return [name for name in names if (names[0], name) not in separated]


def smallest_detectable_difference(sd: float, n: int, power: float = 0.8, level: float = 0.05) -> float:
    """The true mean difference, in units of the score, that a two-sided paired t test of n pairs finds with `power`.

    Solves P(|T'| > t(n - 1, 1 - level / 2)) = power for δ, where T' is noncentral t with n - 1 degrees of freedom and
    noncentrality δ · √n / sd (Cohen 1988; for language models Card et al. 2020, arXiv:2010.06595). `sd`: of the paired
    differences. One pair detects nothing: inf.

    Raises:
        ValueError: sd negative or not finite, n < 1, power or level outside (0, 1), a power not above the level.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    _check(math.isfinite(sd) and sd >= 0, f"sd is {sd}, must be finite and not negative")
    _check(n >= 1, f"n is {n}, must be at least 1")
    _check(_share(power, "power") > _share(level, "level"), f"power {power} must be above the level {level}")
    if n == 1:
        return math.inf
    critical = t.ppf(1 - level / 2, n - 1)

    def lacking(shift: float) -> float:
        with np.errstate(divide="ignore"):  # older scipy, n = 2: said of a value that is right
            return float(nct.sf(critical, n - 1, shift) + nct.sf(critical, n - 1, -shift)) - power  # both tails

    most = 1.0
    while lacking(most) < 0:
        most *= 2
    return float(brentq(lacking, 0.0, most)) * sd / math.sqrt(n)


def expected_maximum(values: ArrayLike, budget: int) -> float:
    """Expected best of `budget` trials: Σ v_(i) [(i / N)^budget - ((i - 1) / N)^budget]. values: [N], one per trial.

    Dodge et al. 2019, arXiv:1909.03004, section 3: v_(1) <= ... <= v_(N), drawn with replacement. It holds for trials
    independent of each other, as a random search makes them, and none left out; it is too low, most where the budget is
    near N (Tang et al. 2020, arXiv:2004.13705). Where less is better, pass the values negated.

    Raises:
        ValueError: no values, NaN or infinity, a budget below 1.
    """
    _check(budget >= 1, f"the budget is {budget}, must be at least 1")
    ordered = np.sort(_sample(values))
    reached = (np.arange(len(ordered) + 1) / len(ordered)) ** budget  # [N + 1], P(the best is among the lowest i)
    return float(ordered @ np.diff(reached))


# Predictions over items


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Two-sided exact p that two systems are right equally often: binomial(1/2) on the items where one is right alone.

    McNemar 1947, without the χ² approximation. No such item: 1. correct_a, correct_b: [N], True where it is right.

    Raises:
        ValueError: no items, or unequal lengths.
    """
    from scipy.stats import binomtest

    a, b = _labels(correct_a) > 0, _labels(correct_b) > 0
    _check(len(a) == len(b), f"{len(a)} and {len(b)} items cannot be paired")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Where a proportion may lie (Wilson 1927): (p + z²/2n ± z · √(p(1-p)/n + z²/4n²)) / (1 + z²/n), z normal.

    Unlike p ± z · √(p(1-p)/n) it has a width at 0 and at n successes, and stays within [0, 1].

    Raises:
        ValueError: n < 1, successes outside [0, n], a level outside (0, 1).
    """
    from scipy.stats import norm

    _check(n >= 1 and 0 <= successes <= n, f"{successes} of {n} is not a proportion")
    z, p = float(norm.ppf((1 + _share(level, "level")) / 2)), successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((centre + side * half) / (1 + z**2 / n) for side in (-1, 1))
    return (low if successes > 0 else 0.0), (high if successes < n else 1.0)


def macro_f1(labels: ArrayLike, predicted: ArrayLike, weights: ArrayLike, num_labels: int) -> Floats:
    """Mean over all labels of 2TP / (2TP + FP + FN), 0 for a label that is neither there nor predicted. [R].

    labels, predicted: [N]; weights: [R, N], how often each item counts, so that one matrix product makes the counts of
    all resamples. The same definition as metrics/f1.py: a fixed list of labels, whether or not a resample holds them.

    Raises:
        ValueError: unequal lengths, no items, or a label outside [0, num_labels).
    """
    actual, claimed = _labels(labels), _labels(predicted)
    _check(actual.shape == claimed.shape, f"{len(actual)} labels, {len(claimed)} predictions")
    low, high = min(actual.min(), claimed.min()), max(actual.max(), claimed.max())
    _check(low >= 0 and high < num_labels, f"labels from {low} to {high}, must lie in [0, {num_labels})")
    times = np.asarray(weights, dtype=np.float64)  # counts: the products below are exact
    identity = np.eye(num_labels)
    hits = times @ (identity[actual] * (actual == claimed)[:, None])  # [R, L]
    total = times @ (identity[actual] + identity[claimed])  # [R, L], 2TP + FP + FN
    scores: Floats = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0).mean(axis=-1)
    return scores


def paired_bootstrap(
    metric: Metric,
    labels: ArrayLike,
    predicted_a: ArrayLike,
    predicted_b: ArrayLike,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """metric(b) - metric(a) over items drawn with replacement, the same ones for both (Koehn 2004). Each [N].

    The metric is computed anew on every resample. low and high: percentiles (1 ± level) / 2 of the resamples. p: share
    of resamples at least as far from the estimate as the estimate is from 0, with 1 added to both counts
    (Berg-Kirkpatrick et al. 2012, two-sided). Both are large-sample statements, about these two sets of predictions.
    `functools.partial(macro_f1, num_labels=3)` is a metric. Memory: blocks of resamples, 4 MiB per array of a block.

    Raises:
        ValueError: no items or no resamples, unequal shapes, a level outside (0, 1), and what the metric raises.
    """
    a, b = _labels(predicted_a), _labels(predicted_b)
    return _bootstrap(metric, _labels(labels), a[None], b[None], resamples, seed, level)


def nested_bootstrap(
    labels: ArrayLike,
    predicted_a: ArrayLike,
    predicted_b: ArrayLike,
    num_labels: int,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Macro-F1 of b - a, mean over seeds, with both sources of noise. labels: [N]; predicted_a, predicted_b: [S, N].

    Every resample draws seeds with replacement, in pairs, then items, the same for all seeds and both systems (Owen
    2007, The pigeonhole bootstrap, arXiv:0712.1111); otherwise as `paired_bootstrap`.

    Few seeds are too few to resample: where they are the main noise, 95 % intervals miss as often as a t variable with
    S - 1 degrees of freedom is beyond 1.96 √((S - 1) / S): 25 %, 15 %, 10 % of the time for S = 3, 5, 10. There
    `paired_t_interval` of the seeds' scores is right, which in turn knows nothing of the items: believe a difference
    where both intervals exclude 0.

    Raises:
        ValueError: no seeds, no items or no resamples, unequal shapes, a label outside [0, num_labels).
    """
    metric = functools.partial(macro_f1, num_labels=num_labels)
    a, b = (np.stack([_labels(row) for row in np.asarray(side)]) for side in (predicted_a, predicted_b))
    return _bootstrap(metric, _labels(labels), a, b, resamples, seed, level)


def _bootstrap(
    metric: Metric, labels: Labels, a: Labels, b: Labels, resamples: int, seed: int, level: float
) -> Difference:
    """labels: [N]; a, b: [S, N]."""
    (num_seeds, num_items), tails = a.shape, (1 + np.array([-1, 1]) * _share(level, "level")) / 2
    _check(
        a.shape == b.shape and len(labels) == num_items, f"{len(labels)} labels, predictions {a.shape} and {b.shape}"
    )

    def differences(weights: Floats) -> Floats:  # [R, N] -> [S, R]
        pairs = zip(a, b, strict=True)
        return np.stack([metric(labels, of_b, weights) - metric(labels, of_a, weights) for of_a, of_b in pairs])

    generator = np.random.default_rng(seed)
    times = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples)  # [R, S]
    blocks = [differences(_drawn(generator, rows, num_items)) for rows in _blocks(resamples, num_items)]
    found = (times.T * np.concatenate(blocks, axis=1)).sum(axis=0) / num_seeds  # [R]
    estimate = float(differences(np.ones((1, num_items))).mean())
    low, high = np.quantile(found, tails)
    beyond = int((np.abs(found - estimate) >= abs(estimate) * (1 - _NOISE)).sum())
    return Difference(estimate, float(low), float(high), (beyond + 1) / (resamples + 1), resamples)


def _drawn(generator: np.random.Generator, rows: int, num_items: int) -> Floats:
    """How often each item is drawn when as many as there are are drawn with replacement, `rows` times. [rows, N]"""
    cells = generator.integers(num_items, size=(rows, num_items)) + num_items * np.arange(rows)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * num_items).reshape(rows, num_items).astype(np.float64)


# Checks


def _sample(values: ArrayLike) -> Floats:
    """Values as float64, [n]."""
    sample = np.asarray(values, dtype=np.float64)
    _check(sample.ndim == 1 and len(sample) > 0, f"a list of values expected, shape {sample.shape}")
    _check(
        bool(np.isfinite(sample).all()), "a value is NaN or infinite: report that run, or give it the score it deserves"
    )
    return sample


def _labels(values: ArrayLike) -> Labels:
    """Labels, or whether they are right, as int64. [N]"""
    labels = np.asarray(values)
    _check(labels.ndim == 1 and len(labels) > 0, f"a list of labels expected, shape {labels.shape}")
    _check(labels.dtype.kind in "biu", f"labels are whole numbers, not {labels.dtype}")
    return labels.astype(np.int64)


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    """The paired differences b - a, 0 where the two are equal but for rounding. [S]"""
    left, right = _sample(a), _sample(b)
    _check(len(left) == len(right), f"{len(left)} and {len(right)} values cannot be paired")
    return np.where(np.isclose(left, right, rtol=_NOISE, atol=0), 0.0, right - left)


def _blocks(resamples: int, width: int) -> Iterator[int]:
    """Numbers of rows that add up to `resamples`, each with at most `_BLOCK` cells, or one row where that is wider."""
    _check(resamples >= 1, f"{resamples} resamples, at least 1 is needed")
    rows = max(1, _BLOCK // width)
    return (min(rows, resamples - done) for done in range(0, resamples, rows))


def _share(value: float, name: str) -> float:
    _check(0 < value < 1, f"{name} is {value}, must lie between 0 and 1")
    return value


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
