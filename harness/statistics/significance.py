"""Is the difference noise? Intervals and exact tests for scores over seeds.

A difference is b - a. Scores are paired by seed: place i of a and of b comes from the same seed. Seeds are one source
of noise; the items of the test split are the other (item_significance.py). NaN and infinity are refused: a run that
failed or diverged is reported, or given the score it deserves, by whoever calls; it is not dropped in silence.
Legend: S seeds, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
MOST_ENUMERATED = 16
"""Differences up to which all 2**n signs are tried: 65,536 of them, 8 MiB."""
_BLOCK = 2**19
"""Cells of resamples worked on at once; the results do not depend on it."""
NOISE = 1e-9
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


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean ± t(n - 1, (1 + level) / 2) · sd / √n (Student 1908), for values that are roughly normal. values: [S].

    Of one value sd, low and high are nan: it says nothing about the spread. Values that are all alike give an interval
    of width 0; few and coarse ones (correct answers of a small test set) can be alike by chance.

    Raises:
        ValueError: no values, NaN or infinity, a level outside (0, 1).
    """
    from scipy.stats import t

    sample, level = _sample(values), share(level, "level")
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
    n, atol = len(sample), NOISE * np.abs(sample).sum()

    def count(flipped: NDArray[np.int64]) -> int:  # [R, n], 1 where the sign is turned
        sums = sample.sum() - 2 * (flipped @ sample)  # [R]
        return int((np.abs(sums) >= abs(sample.sum()) - atol).sum())

    if n <= MOST_ENUMERATED:
        return count(np.arange(2**n)[:, None] >> np.arange(n) & 1) / float(2**n)
    generator = np.random.default_rng(seed)
    hits = sum(count(generator.integers(2, size=(rows, n))) for rows in blocks(resamples, n))
    return (hits + 1) / (resamples + 1)


def smallest_sign_flip_p(n: int) -> float:
    """The smallest p that `sign_flip` can find: 2 / 2**n, of differences that all point one way. Five give 0.0625.

    With more than 16 differences the resamples are the bound: 1 / (resamples + 1). Raises ValueError for n < 1.
    """
    check(n >= 1, f"n is {n}, must be at least 1")
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
    rounded = np.round(sample / (np.abs(sample).max() or 1.0) / NOISE)  # whole numbers: ties are ties
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
    check(values.ndim == 1 and bool(((values >= 0) & (values <= 1)).all()), "p values must be a list within [0, 1]")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, values[order] * np.arange(len(values), 0, -1)))
    adjusted = np.empty_like(values)
    adjusted[order] = stepped
    return adjusted


def tie_groups(scores: dict[str, Sequence[float]], level: float = 0.05) -> list[list[str]]:
    """Systems in groups, best first: the highest mean of those left, and all that are not separated from it.

    Separated: the paired t test's p is at most `level` after Holm over ALL pairs of systems, since which one is best
    was learnt from the same scores. Not separated is not equal: see `smallest_detectable_difference`. Two of a group
    that are both tied with its first may be separated from each other. Differences all alike separate nothing: they
    say nothing of the spread. scores: name -> [S].

    Raises:
        ValueError: no systems, scores not paired, NaN or infinity.
    """
    check(bool(scores), "there are no systems to compare")
    left = sorted(scores, key=lambda name: -float(_sample(scores[name]).mean()))
    pairs = list(combinations(left, 2))
    adjusted = holm([_separating(scores[one], scores[other]) for one, other in pairs])
    separated = {pair for pair, p in zip(pairs, adjusted, strict=True) if p <= share(level, "level")}
    groups = []
    while left:
        groups.append([name for name in left if (left[0], name) not in separated])
        left = [name for name in left if name not in groups[-1]]
    return groups


def _separating(a: ArrayLike, b: ArrayLike) -> float:
    """`paired_t`, but 1 for differences all alike."""
    found = paired_t_interval(a, b)
    return 1.0 if found.n > 1 and found.sd <= NOISE * abs(found.mean) else paired_t(a, b)


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

    check(math.isfinite(sd) and sd >= 0, f"sd is {sd}, must be finite and not negative")
    check(n >= 1, f"n is {n}, must be at least 1")
    check(share(power, "power") > share(level, "level"), f"power {power} must be above the level {level}")
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
    check(budget >= 1, f"the budget is {budget}, must be at least 1")
    ordered = np.sort(_sample(values))
    reached = (np.arange(len(ordered) + 1) / len(ordered)) ** budget  # [N + 1], P(the best is among the lowest i)
    return float(ordered @ np.diff(reached))


# Checks and blocks, for predictions over items too


def _sample(values: ArrayLike) -> Floats:
    """Values as float64, [n]."""
    sample = np.asarray(values, dtype=np.float64)
    check(sample.ndim == 1 and len(sample) > 0, f"a list of values expected, shape {sample.shape}")
    check(
        bool(np.isfinite(sample).all()), "a value is NaN or infinite: report that run, or give it the score it deserves"
    )
    return sample


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    """The paired differences b - a, 0 where the two are equal but for rounding. [S]"""
    left, right = _sample(a), _sample(b)
    check(len(left) == len(right), f"{len(left)} and {len(right)} values cannot be paired")
    return np.where(np.isclose(left, right, rtol=NOISE, atol=0), 0.0, right - left)


def blocks(resamples: int, width: int) -> Iterator[int]:
    """Numbers of rows that add up to `resamples`, each with at most `_BLOCK` cells, or one row where that is wider.

    Raises:
        ValueError: no resamples.
    """
    check(resamples >= 1, f"{resamples} resamples, at least 1 is needed")
    rows = max(1, _BLOCK // width)
    return (min(rows, resamples - done) for done in range(0, resamples, rows))


def share(value: float, name: str) -> float:
    """The value of this name. Raises ValueError outside (0, 1)."""
    check(0 < value < 1, f"{name} is {value}, must lie between 0 and 1")
    return value


def check(holds: bool, otherwise: str) -> None:
    """Raise ValueError, with these words, where it does not hold."""
    if not holds:
        raise ValueError(otherwise)
