"""Is one system better than another? Over seeds, over items, over both; ties are called ties.

A system is called different from the reference if the paired t test over common seeds says so after Holm's correction
for all pairs compared, and if the nested bootstrap, where there are predictions, excludes 0 as well: the first knows
nothing of the test items, the second too little of few seeds. The chance that any pair of equals is called different
is then at most the level. One seed says nothing about a method, whatever its items say.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from harness import item_significance, significance
from harness.compare.systems import System

Verdict = Literal["better", "worse", "tie", "one seed", "no common seed", "no spread"]
_COMPUTED = "test/f1_macro"
"""The metric that the bootstraps compute anew on every resample."""


_NAN = float("nan")


@dataclass(frozen=True)
class Pair:
    """A system against the reference; differences are system - reference. nan: cannot be computed."""

    system: str
    reference: str
    seeds: list[int]
    """That both have."""
    mean: float
    """Over these seeds; without any, the difference of the two means."""
    low: float = _NAN
    high: float = _NAN
    """Student's interval over seeds, 95 %."""
    sd: float = _NAN
    detectable: float = _NAN
    """The difference that would be missed one time in five."""
    t: float = 1.0
    """p of the paired t test, as it is."""
    holm: float = 1.0
    """The same, adjusted for all pairs."""
    sign_flip: float = 1.0
    smallest_sign_flip: float = 1.0
    """The smallest p that so many seeds can give."""
    wilcoxon: float = 1.0
    nested: tuple[float, float] = (_NAN, _NAN)
    """Interval with seeds and items resampled, 95 %."""
    items: tuple[float, float] = (_NAN, _NAN)
    """Of a single seed, items resampled, 95 %: about two trained models."""
    mcnemar: list[float] = field(default_factory=list)
    """p over items, seed by seed, adjusted after Holm."""
    verdict: Verdict = "tie"

    @property
    def interval(self) -> tuple[float, float]:
        """The wider of the two over seeds; nan of fewer than two."""
        return float(np.nanmin([self.low, self.nested[0]])), float(np.nanmax([self.high, self.nested[1]]))


def pairs(systems: list[System], reference: System, metric: str, sign: int = 1, level: float = 0.05) -> list[Pair]:
    """Every other system against the reference.

    Args:
        systems: judged on one test split.
        reference: one of them.
        metric: a key of the end statements.
        sign: 1 where more of it is better, else -1.
        level: of the tests, after Holm.

    Raises:
        KeyError: a run has no such metric.
        ValueError: NaN or infinity.
    """
    found = [_pair(one, reference, metric) for one in systems if one is not reference]
    judged = [pair for pair in found if len(pair.seeds) > 1]
    adjusted = dict(zip((pair.system for pair in judged), significance.holm([pair.t for pair in judged]), strict=True))
    return [_judged(replace(pair, holm=float(adjusted.get(pair.system, 1.0))), sign, level) for pair in found]


def _pair(system: System, reference: System, metric: str) -> Pair:
    """Without the adjustment for other pairs, and without a verdict."""
    seeds = [seed for seed in system.entries if seed in reference.entries]
    a, b = (one.values(metric, seeds) for one in (reference, system))
    if not seeds:
        mean = float(np.mean(system.values(metric)) - np.mean(reference.values(metric)))
        return Pair(system.name, reference.name, [], mean)
    interval, differences = significance.paired_t_interval(a, b), np.subtract(b, a)
    of_seeds = Pair(system.name, reference.name, seeds, interval.mean)
    if len(seeds) > 1:
        of_seeds = replace(
            of_seeds,
            low=interval.low,
            high=interval.high,
            sd=interval.sd,
            detectable=significance.smallest_detectable_difference(interval.sd, len(seeds)),
            t=significance.paired_t(a, b),
            sign_flip=significance.sign_flip(differences),
            smallest_sign_flip=significance.smallest_sign_flip_p(len(seeds)),
            wilcoxon=significance.wilcoxon(differences),
        )
    return _over_items(of_seeds, system, reference, metric)


def _over_items(pair: Pair, system: System, reference: System, metric: str) -> Pair:
    """The same with what the items of the test split say, where there are predictions of all runs."""
    both = [(reference.entries[seed].predictions, system.entries[seed].predictions) for seed in pair.seeds]
    known = [(left, right) for left, right in both if left is not None and right is not None]
    if len(known) < len(both):
        return pair
    labels, num_labels = known[0][0].labels, len(known[0][0].label_names)
    if any(not np.array_equal(labels, side.labels) for sides in known for side in sides):
        raise ValueError(f"{system.name} and {reference.name}: their predictions are not of the same items")
    a, b = (np.stack([sides[i].predicted for sides in known]) for i in (0, 1))
    p = [item_significance.mcnemar(left == labels, right == labels) for left, right in zip(a, b, strict=True)]
    pair = replace(pair, mcnemar=significance.holm(p).tolist())
    if metric != _COMPUTED:
        return pair
    if len(pair.seeds) > 1:
        nested = item_significance.nested_bootstrap(labels, a, b, num_labels)
        return replace(pair, nested=(nested.low, nested.high))
    f1 = functools.partial(item_significance.macro_f1, num_labels=num_labels)
    items = item_significance.paired_bootstrap(f1, labels, a[0], b[0])
    return replace(pair, items=(items.low, items.high))


def _judged(pair: Pair, sign: int, level: float) -> Pair:
    if len(pair.seeds) < 2:
        return replace(pair, verdict="one seed" if pair.seeds else "no common seed")
    if pair.mean != 0 and pair.sd <= significance.NOISE * abs(pair.mean):
        return replace(pair, verdict="no spread")
    low, high = pair.nested
    if pair.holm > level or low <= 0 <= high:  # without predictions nan, which holds nothing
        return replace(pair, verdict="tie")
    return replace(pair, verdict="better" if sign * pair.mean > 0 else "worse")


def tie_groups(systems: list[System], metric: str, sign: int = 1, level: float = 0.05) -> list[list[str]]:
    """Systems from best to worst by their means over the seeds that all have; within a group nothing is separated.

    The best of what is left and all that are not separated from it (paired t, Holm over ALL pairs) make a group. []:
    they have not two seeds in common.
    """
    common = [seed for seed in systems[0].entries if all(seed in one.entries for one in systems)]
    if len(common) < 2:
        return []
    return significance.tie_groups(
        {one.name: [sign * value for value in one.values(metric, common)] for one in systems}, level
    )
