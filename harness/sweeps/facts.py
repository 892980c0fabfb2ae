"""What a study found, and what follows from it: the difference on the test split, who wins, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import item_significance, significance
from harness.sweeps.plan import Plan
from harness.sweeps.trials import Arm, Confirmed, TrialRecord


@dataclass(frozen=True)
class OnTest:
    """One configuration on the test split."""

    seeds: list[int]
    scores: list[dict[str, float]]
    """Of each seed."""
    predicted: NDArray[np.int64]
    """[seeds, items]"""
    labels: NDArray[np.int64]
    """[items]"""
    num_labels: int


@dataclass(frozen=True)
class Facts:
    """What a study measured."""

    plan: Plan
    trials: list[TrialRecord]
    confirmed: list[Confirmed]
    winners: dict[Arm, Confirmed]
    tested: dict[Arm, OnTest]
    latency: list[dict[str, Any]]
    lost: list[TrialRecord]
    """Runs of the confirmation that did not finish: their configurations are left out."""
    opened: int = 0
    """Other configurations that met the test split in earlier reports, before the study grew."""

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.plan.space.objective[0].direction == "maximize" else -1

    @property
    def metric(self) -> str:
        """The first objective's name without its split."""
        return self.plan.space.objective[0].metric.partition("/")[2]

    @cached_property
    def difference(self) -> dict[str, Any] | None:
        """See `difference`; computed once."""
        return difference(self)

    def trials_of(self, arm: Arm) -> list[TrialRecord]:
        """All of one arm, whatever became of them."""
        return [one for one in self.trials if one.arm == arm]

    def best(self, arm: Arm) -> TrialRecord | None:
        """The complete trial with the best value of the first objective; None: no trial is complete."""
        complete = [one for one in self.trials_of(arm) if one.state == "complete"]
        return max(complete, key=lambda one: self.sign * one.values[0], default=None)

    def name(self, arm: Arm) -> str:
        """What a person calls the arm: where the search chose it, the experiment that won."""
        baseline = self.plan.space.baseline
        if arm == "search" and (best := self.winners.get(arm)) and "exp" in best.params:
            return str(best.params["exp"]) + (" (search)" if baseline and best.params["exp"] == baseline.exp else "")
        return baseline.exp if arm == "baseline" and baseline else (self.plan.exp or self.plan.space.name)


def difference(facts: Facts) -> dict[str, Any] | None:
    """The search's best against the baseline's best on the test split, paired by seed; None: there is nothing to pair.

    `mean`, `t_low`, `t_high`: mean over seeds and Student's t interval; `nested_low`, `nested_high`: seeds and items
    resampled; `sign_flip`, `wilcoxon`: exact p over seeds; `discordant_p`: McNemar per seed, adjusted after Holm.
    """
    if set(facts.tested) != {"search", "baseline"}:
        return None
    ours, theirs = facts.tested["search"], facts.tested["baseline"]
    common = [seed for seed in ours.seeds if seed in theirs.seeds]
    key = f"test/{facts.metric}"
    a = [theirs.scores[theirs.seeds.index(seed)][key] for seed in common]
    b = [ours.scores[ours.seeds.index(seed)][key] for seed in common]
    interval = significance.paired_t_interval(a, b)
    differences = np.subtract(b, a)
    found: dict[str, Any] = {
        "seeds": common,
        "mean": interval.mean,
        "t_low": interval.low,
        "t_high": interval.high,
        "sd": interval.sd,
        "sign_flip": significance.sign_flip(differences),
        "smallest_sign_flip": significance.smallest_sign_flip_p(len(common)),
        "wilcoxon": significance.wilcoxon(differences),
        "detectable": significance.smallest_detectable_difference(interval.sd, len(common)),
    }
    left, mine = (one.predicted[[one.seeds.index(seed) for seed in common]] for one in (theirs, ours))
    right = zip(left == theirs.labels, mine == ours.labels, strict=True)
    found["discordant_p"] = significance.holm([item_significance.mcnemar(*pair) for pair in right]).tolist()
    if facts.metric == "f1_macro":
        nested = item_significance.nested_bootstrap(ours.labels, left, mine, ours.num_labels)
        found |= {"nested_low": nested.low, "nested_high": nested.high}
    return found


def verdict(facts: Facts) -> str:
    """One sentence on who wins, or why nobody does."""
    found = facts.difference
    if len(facts.plan.space.objective) > 1:
        return "Several objectives have no winner: see pareto.html, and the trials that no other one beats, below."
    if found is None and facts.tested:
        return f"There is nothing to compare {', '.join(facts.name(arm) for arm in facts.tested)} with."
    if found is None:
        return "Nothing was confirmed on fresh seeds: the best value of a search is too good, and hides the noise."
    ours, theirs = facts.name("search"), facts.name("baseline")
    lows = [found["t_low"], found.get("nested_low", found["t_low"])]
    highs = [found["t_high"], found.get("nested_high", found["t_high"])]
    told = f"{ours} - {theirs} on the test split: {found['mean']:+.4f}, 95 % [{min(lows):+.4f}, {max(highs):+.4f}]"
    how = "the wider of paired t and nested bootstrap" if "nested_low" in found else "paired t, items not resampled"
    told += f" (n = {len(found['seeds'])} seeds; {how})"
    if found["mean"] != 0 and found["sd"] <= significance.NOISE * abs(found["mean"]):
        return f"{told}: cannot be judged. Every seed differs by the same amount: so few test items have no spread."
    if min(lows) > 0 or max(highs) < 0:
        return f"{told}: {ours if found['mean'] * facts.sign > 0 else theirs} is better."
    if found["sd"] == 0:
        return f"{told}: a tie. No seed differs from another, which so few test items can do by chance."
    missed = f"{found['detectable']:.4f}" if np.isfinite(found["detectable"]) else "any size"
    return f"{told}: a tie. Differences below {missed} would be missed more often than one time in five."


def doubt(facts: Facts) -> str:
    """The tests' numbers, and how to read them."""
    found = facts.difference
    if found is None:
        return ""
    items = ", ".join(f"{p:.3f}" for p in found["discordant_p"])
    return (
        f"Over seeds: sign flips p = {found['sign_flip']:.3f} (exact; with {len(found['seeds'])} seeds it cannot be "
        f"below {found['smallest_sign_flip']:.3f}), Wilcoxon p = {found['wilcoxon']:.3f}. Over items, seed by seed "
        f"(McNemar, exact, Holm): p = {items}: whether two trained models differ, which is not whether two methods do."
    )
