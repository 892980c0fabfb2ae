"""What a study found, and what follows from it: the difference on the test split, who wins, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.statistics import pairs
from harness.statistics.pairs import Pair, Scored
from harness.sweeps.plan import Plan
from harness.sweeps.trials import Arm, Confirmed, TrialRecord


@dataclass(frozen=True)
class OnTest:
    """One configuration on the test split."""

    seeds: list[int]
    scores: list[dict[str, float]]
    """Of each seed."""
    predicted: NDArray[np.int64] | None = None
    """Where an item has one answer of a fixed list. [seeds, items]"""
    labels: NDArray[np.int64] | None = None
    """[items]"""
    num_labels: int = 0


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
    def difference(self) -> Pair | None:
        """The search's best against the baseline's best on the test split; None: there is nothing to pair."""
        if set(self.tested) != {"search", "baseline"}:
            return None
        return pairs.judge([self._scored("search")], self._scored("baseline"), self.metric, self.sign)[0]

    def _scored(self, arm: Arm) -> Scored:
        """An arm's winner on the test split."""
        found = self.tested[arm]
        values = {seed: scores[f"test/{self.metric}"] for seed, scores in zip(found.seeds, found.scores, strict=True)}
        predicted = {} if found.predicted is None else dict(zip(found.seeds, found.predicted, strict=True))
        return Scored(self.name(arm), values, predicted, found.labels, found.num_labels)

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
        if arm == "baseline" and baseline:
            return baseline.exp
        won = best.params.get("exp") if (best := self.winners.get(arm)) else None
        return self.plan.named(arm, str(won or self.plan.exp or self.plan.space.name))


def verdict(facts: Facts) -> str:
    """One sentence on who wins, or why nobody does."""
    found = facts.difference
    if len(facts.plan.space.objective) > 1:
        return "Several objectives have no winner: see pareto.html, and the trials that no other one beats, below."
    if found is None and facts.tested:
        return f"There is nothing to compare {', '.join(facts.name(arm) for arm in facts.tested)} with."
    if found is None:
        return "Nothing was confirmed on fresh seeds: the best value of a search is too good, and hides the noise."
    return found.sentence(f"{facts.metric} on the test split")


def doubt(facts: Facts) -> str:
    """The tests' numbers, and how to read them."""
    found = facts.difference
    if found is None:
        return ""
    told = (
        f"Over seeds: sign flips p = {found.sign_flip:.3f} (exact; with {len(found.seeds)} seeds it cannot be "
        f"below {found.smallest_sign_flip:.3f}), Wilcoxon p = {found.wilcoxon:.3f}."
    )
    is_nested = not np.isnan(found.nested[0])
    how = "the wider of paired t and nested bootstrap" if is_nested else "paired t, items not resampled"
    told += "" if np.isnan(found.low) else f" The interval: {how}."
    if found.mcnemar:
        items = ", ".join(f"{p:.3f}" for p in found.mcnemar)
        told += (
            f" Over items, seed by seed (McNemar, exact, Holm): p = {items}: whether two trained models differ, which "
            "is not whether two methods do."
        )
    return told
