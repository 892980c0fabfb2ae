"""What a study tells of its trials, in plain values: for tables, figures and statistics, without Optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Arm = Literal["search", "baseline"]
"""The search itself, and what it is measured against, tuned under the same budget."""
State = Literal["waiting", "running", "complete", "pruned", "infeasible", "failed"]
"""Infeasible: out of memory, out of time, or beyond a constraint: the sampler learns from it."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study."""

    arm: Arm
    number: int
    state: State
    params: dict[str, Any]
    """Dotted key of the spec -> the value that was chosen."""
    values: list[float]
    """One per objective; of a pruned trial the last intermediate one. Empty: there is none."""
    intermediate: dict[int, float] = field(default_factory=dict)
    """Number of the evaluation -> value."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What its run recorded at its end: scores, `parameters/trainable`, `time/train_s`, `memory/peak_gib`, latency."""
    run: str = ""
    """The name of its run."""
    seconds: float = 0.0
    reason: str = ""
    """Why it is pruned, infeasible or failed."""


@dataclass(frozen=True)
class Confirmed:
    """One configuration trained again on fresh seeds."""

    arm: Arm
    number: int
    """Of the trial it comes from."""
    params: dict[str, Any]
    searched: float
    """The objective's value in the search."""
    values: dict[int, float]
    """Fresh seed -> the objective's value."""
    runs: dict[int, str]
    """Fresh seed -> the name of its run."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """Fresh seed -> what its run recorded at its end."""
