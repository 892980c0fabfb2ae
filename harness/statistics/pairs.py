"""Two systems, paired by seed: is the difference noise? Over seeds, over items, over both; ties are called ties.

A system is called different from the reference if the paired t test over common seeds says so after Holm's correction
for all pairs compared, and if the nested bootstrap, where there are predictions, excludes 0 as well: the first knows
nothing of the test items, the second too little of few seeds. The chance that any pair of equals is called different
is then at most the level. One seed says nothing about a method, whatever its items say.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from harness.statistics import item_significance, significance
from harness.statistics.item_significance import Labels

Verdict = Literal["better", "worse", "tie", "one seed", "no common seed", "no spread"]
_COMPUTED = "f1_macro"
"""The metric that the bootstraps compute anew on every resample."""
_NAN = float("nan")
_OF_TWO = (
    "CAUTION: two seeds cannot show it without the assumption of normal differences; sign flips, which need none, "
    "cannot find less than p = 0.500. Train more seeds."
)


@dataclass(frozen=True)
class Scored:
    """What a system reached on the test split."""

    name: str
    values: Mapping[int, float]
    """By seed."""
    predicted: Mapping[int, Labels] = field(default_factory=dict)
    """By seed, where they are known. [N]"""
    labels: Labels | None = None
    """What is true. [N]"""
    num_labels: int = 0


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
    """Student's interval over seeds, 95 %; nan as the p of its test where every seed differs by the same amount."""
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
        """The wider of the two over seeds; nan where the seeds tell no spread."""
        if np.isnan(self.low):
            return _NAN, _NAN
        return float(np.nanmin([self.low, self.nested[0]])), float(np.nanmax([self.high, self.nested[1]]))

    def sentence(self, metric: str) -> str:
        """The verdict in words; `metric`: what it is called there."""
        n, told = len(self.seeds), f"{self.system} - {self.reference}: {self.mean:+.4f} {metric}"
        if self.verdict == "no common seed":
            return f"{told}, of different seeds: cannot be judged. Train both with the same seeds."
        if self.verdict == "one seed":
            return f"{told}, one seed in common: nothing can be concluded about the method."
        if self.verdict == "no spread":
            told += f" (n = {n} seeds): cannot be judged"
            return f"{told}. Every seed differs by the same amount, which few seeds on few test items can do by chance."
        low, high = self.interval
        told += f", 95 % [{low:+.4f}, {high:+.4f}] (n = {n} seeds)"
        if self.verdict == "tie":
            missed = f"{self.detectable:.4f}" if np.isfinite(self.detectable) else "any size"
            return f"{told}: a tie. Differences below {missed} would be missed more often than one time in five."
        told += f": {self.system} is {self.verdict}."
        return told if n > 2 else f"{told} {_OF_TWO}"


def judge(systems: list[Scored], reference: Scored, metric: str, sign: int = 1, level: float = 0.05) -> list[Pair]:
    """Each system against the reference.

    Args:
        systems: without the reference, judged on the same test split.
        reference: what they are compared with.
        metric: what the values are, without their split.
        sign: 1 where more of it is better, else -1.
        level: of the tests, after Holm.

    Raises:
        ValueError: NaN or infinity, or predictions of other items.
    """
    found = [_pair(one, reference, metric) for one in systems]
    judged = [pair for pair in found if len(pair.seeds) > 1]
    adjusted = dict(zip((pair.system for pair in judged), significance.holm([pair.t for pair in judged]), strict=True))
    return [_judged(replace(pair, holm=float(adjusted.get(pair.system, 1.0))), sign, level) for pair in found]


def _pair(system: Scored, reference: Scored, metric: str) -> Pair:
    """Without the adjustment for other pairs, and without a verdict."""
    seeds = [seed for seed in system.values if seed in reference.values]
    if not seeds:
        mean = float(np.mean([*system.values.values()]) - np.mean([*reference.values.values()]))
        return Pair(system.name, reference.name, [], mean)
    a, b = ([one.values[seed] for seed in seeds] for one in (reference, system))
    interval, differences = significance.paired_t_interval(a, b), np.subtract(b, a)
    of_seeds = Pair(system.name, reference.name, seeds, interval.mean)
    if len(seeds) > 1:
        of_seeds = replace(
            of_seeds,
            sign_flip=significance.sign_flip(differences),
            smallest_sign_flip=significance.smallest_sign_flip_p(len(seeds)),
            wilcoxon=significance.wilcoxon(differences),
        )
    if len(seeds) > 1 and interval.sd > significance.NOISE * abs(interval.mean):
        of_seeds = replace(
            of_seeds,
            low=interval.low,
            high=interval.high,
            sd=interval.sd,
            detectable=significance.smallest_detectable_difference(interval.sd, len(seeds)),
            t=significance.paired_t(a, b),
        )
    return _over_items(of_seeds, system, reference, metric)


def _over_items(pair: Pair, system: Scored, reference: Scored, metric: str) -> Pair:
    """The same with what the items of the test split say, where there are predictions of all runs."""
    labels = system.labels
    if labels is None or any(seed not in one.predicted for seed in pair.seeds for one in (system, reference)):
        return pair
    if not np.array_equal(labels, np.asarray(reference.labels)):
        raise ValueError(f"{system.name} and {reference.name}: their predictions are not of the same items")
    a, b = (np.stack([one.predicted[seed] for seed in pair.seeds]) for one in (reference, system))
    p = [item_significance.mcnemar(left == labels, right == labels) for left, right in zip(a, b, strict=True)]
    pair = replace(pair, mcnemar=significance.holm(p).tolist())
    if metric != _COMPUTED:
        return pair
    if len(pair.seeds) > 1:
        nested = item_significance.nested_bootstrap(labels, a, b, system.num_labels)
        return replace(pair, nested=(nested.low, nested.high))
    f1 = functools.partial(item_significance.macro_f1, num_labels=system.num_labels)
    items = item_significance.paired_bootstrap(f1, labels, a[0], b[0])
    return replace(pair, items=(items.low, items.high))


def _judged(pair: Pair, sign: int, level: float) -> Pair:
    if len(pair.seeds) < 2:
        return replace(pair, verdict="one seed" if pair.seeds else "no common seed")
    if np.isnan(pair.low):
        return replace(pair, verdict="no spread", t=_NAN, holm=_NAN)
    low, high = pair.nested
    if pair.holm > level or low <= 0 <= high:  # without predictions nan, which holds nothing
        return replace(pair, verdict="tie")
    return replace(pair, verdict="better" if sign * pair.mean > 0 else "worse")
