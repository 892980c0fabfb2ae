"""Systems against their reference, and in groups within which nothing is separated."""

from __future__ import annotations

import numpy as np

from harness.compare.systems import System
from harness.statistics import pairs, significance
from harness.statistics.pairs import Pair, Scored


def against(systems: list[System], reference: System, metric: str, sign: int = 1) -> list[Pair]:
    """Every other system against the reference.

    Args:
        systems: judged on one test split.
        reference: one of them.
        metric: a key of the end statements.
        sign: 1 where more of it is better, else -1.

    Raises:
        KeyError: a run has no such metric.
        ValueError: NaN or infinity, or predictions of other items.
    """
    rivals = [_scored(one, metric) for one in systems if one is not reference]
    return pairs.judge(rivals, _scored(reference, metric), metric.partition("/")[2], sign)


def _scored(system: System, metric: str) -> Scored:
    """A system's scores and predictions, by seed."""
    known = {seed: found for seed, entry in system.entries.items() if (found := entry.predictions)}
    first = next(iter(known.values()), None)
    if first and any(not np.array_equal(first.labels, one.labels) for one in known.values()):
        raise ValueError(f"{system.name}: the predictions of its seeds are not of the same items")
    return Scored(
        system.name,
        {seed: entry.scores[metric] for seed, entry in system.entries.items()},
        {seed: one.predicted for seed, one in known.items()},
        first.labels if first else None,
        len(first.label_names) if first else 0,
    )


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
