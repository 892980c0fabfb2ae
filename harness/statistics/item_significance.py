"""Is the difference noise? Intervals, an exact test and bootstraps for predictions over test items.

A difference is b - a; place i of the labels, of a and of b is the same item. A test over the items of one seed says
whether two trained models differ, and nothing about the method (Reimers and Gurevych 2017, arXiv:1707.09861; Dodge et
al. 2020, arXiv:2002.06305): for that there are scores over seeds (significance.py), and `nested_bootstrap` for both.
Legend: N items, S seeds, L labels, R resamples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.significance import NOISE, Floats, blocks, check, share

Labels = NDArray[np.int64]
Metric = Callable[[Labels, Labels, Floats], Floats]
"""(labels [N], predicted [N], weights [R, N]) -> scores [R]; a weight says how often the resample holds the item."""


@dataclass(frozen=True)
class Difference:
    """A difference of two scores, b - a, and where it may lie."""

    estimate: float
    """On all items, not the mean of the resamples."""
    low: float
    high: float
    p: float
    resamples: int


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Two-sided exact p that two systems are right equally often: binomial(1/2) on the items where one is right alone.

    McNemar 1947, without the χ² approximation. No such item: 1. correct_a, correct_b: [N], True where it is right.

    Raises:
        ValueError: no items, or unequal lengths.
    """
    from scipy.stats import binomtest

    a, b = _labels(correct_a) > 0, _labels(correct_b) > 0
    check(len(a) == len(b), f"{len(a)} and {len(b)} items cannot be paired")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Where a proportion may lie (Wilson 1927): (p + z²/2n ± z · √(p(1-p)/n + z²/4n²)) / (1 + z²/n), z normal.

    Unlike p ± z · √(p(1-p)/n) it has a width at 0 and at n successes, and stays within [0, 1].

    Raises:
        ValueError: n < 1, successes outside [0, n], a level outside (0, 1).
    """
    from scipy.stats import norm

    check(n >= 1 and 0 <= successes <= n, f"{successes} of {n} is not a proportion")
    z, p = float(norm.ppf((1 + share(level, "level")) / 2)), successes / n
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
    check(actual.shape == claimed.shape, f"{len(actual)} labels, {len(claimed)} predictions")
    low, high = min(actual.min(), claimed.min()), max(actual.max(), claimed.max())
    check(low >= 0 and high < num_labels, f"labels from {low} to {high}, must lie in [0, {num_labels})")
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
    of_one_seed = (np.expand_dims(side, 0) for side in (predicted_a, predicted_b))
    return _bootstrap(metric, labels, of_one_seed, resamples, seed, level)


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
    return _bootstrap(metric, labels, (predicted_a, predicted_b), resamples, seed, level)


def _bootstrap(
    metric: Metric, labels: ArrayLike, predicted: Iterable[ArrayLike], resamples: int, seed: int, level: float
) -> Difference:
    """labels: [N]; predicted: of a and of b, [S, N] each."""
    a, b = (np.stack([_labels(row) for row in np.asarray(side)]) for side in predicted)
    actual = _labels(labels)
    (num_seeds, num_items), tails = a.shape, (1 + np.array([-1, 1]) * share(level, "level")) / 2
    check(a.shape == b.shape and len(actual) == num_items, f"{len(actual)} labels, predictions {a.shape} and {b.shape}")

    def differences(weights: Floats) -> Floats:  # [R, N] -> [S, R]
        pairs = zip(a, b, strict=True)
        return np.stack([metric(actual, of_b, weights) - metric(actual, of_a, weights) for of_a, of_b in pairs])

    generator = np.random.default_rng(seed)
    times = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples)  # [R, S]
    scored = [differences(_drawn(generator, rows, num_items)) for rows in blocks(resamples, num_items)]
    found = (times.T * np.concatenate(scored, axis=1)).sum(axis=0) / num_seeds  # [R]
    estimate = float(differences(np.ones((1, num_items))).mean())
    low, high = np.quantile(found, tails)
    beyond = int((np.abs(found - estimate) >= abs(estimate) * (1 - NOISE)).sum())
    return Difference(estimate, float(low), float(high), (beyond + 1) / (resamples + 1), resamples)


def _drawn(generator: np.random.Generator, rows: int, num_items: int) -> Floats:
    """How often each item is drawn when as many as there are are drawn with replacement, `rows` times. [rows, N]"""
    cells = generator.integers(num_items, size=(rows, num_items)) + num_items * np.arange(rows)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * num_items).reshape(rows, num_items).astype(np.float64)


def _labels(values: ArrayLike) -> Labels:
    """Labels, or whether they are right, as int64. [N]"""
    labels = np.asarray(values)
    check(labels.ndim == 1 and len(labels) > 0, f"a list of labels expected, shape {labels.shape}")
    check(labels.dtype.kind in "biu", f"labels are whole numbers, not {labels.dtype}")
    return labels.astype(np.int64)
