"""Trials of a study that never ran: two arms, a conditional key, and every way in which a trial ends."""

from __future__ import annotations

import random
from typing import Any

from harness.sweeps.trial_figures import Study
from harness.sweeps.trials import Confirmed, TrialRecord

OBJECTIVES = [("validation/f1_macro", "maximize")]
TWO = [*OBJECTIVES, ("memory/peak_gib", "minimize")]
SCALES = {
    "methods": "choice",
    "train.learning_rate": "log",
    "methods.lora.rank": "choice",
    "methods.mixout.p": "linear",
}
SHARES = {"train.learning_rate": 0.5, "methods.lora.rank": 0.3, "methods": 0.2}
SEEDS = range(100, 105)


def trial(number: int, value: float | None = None, **fields: Any) -> TrialRecord:
    """One trial of the search, complete, with a learning rate; `fields` say what is otherwise."""
    plain: dict[str, Any] = {"arm": "search", "state": "complete", "params": {"train.learning_rate": 1e-4}}
    return TrialRecord(number=number, values=[] if value is None else [value], **(plain | fields))


def confirmed(number: int, values: list[float], **fields: Any) -> Confirmed:
    """One configuration of the search, trained again with these values."""
    plain: dict[str, Any] = {"arm": "search", "params": {"train.learning_rate": 1e-4}, "searched": 0.7, "runs": {}}
    return Confirmed(number=number, values=dict(zip(SEEDS, values, strict=False)), **(plain | fields))


def trials() -> list[TrialRecord]:
    """12 of the search, of which 1 pruned, 1 infeasible, 1 failed, 1 running, and 8 of the baseline, all complete."""
    draw = random.Random(0)
    found = []
    for number in range(20):
        arm = "search" if number < 12 else "baseline"
        params: dict[str, Any] = {"train.learning_rate": 10 ** draw.uniform(-5, -3)}
        if arm == "search":
            method = ("lora", "mixout")[number % 2]
            own = {"methods.lora.rank": 2 ** (number // 2)} if method == "lora" else {"methods.mixout.p": number / 12}
            params |= {"methods": method, **own}
        curve = {step: 0.5 + 0.1 * step + draw.gauss(0, 0.02) for step in (1, 2, 3)}
        state, reason, values = "complete", "", [curve[3], 1 + draw.random()]
        if number == 4:
            state, reason, curve, values = "pruned", "the worse half", {1: curve[1]}, [curve[1], 1.0]
        if number in (6, 7):
            state, reason = ("infeasible", "out of memory") if number == 6 else ("failed", "ValueError")
            curve, values = {}, []
        if number == 11:
            state, values = "running", []
        place = number if arm == "search" else number - 12
        found.append(TrialRecord(arm, place, state, params, values, curve, run=f"run-{number}", reason=reason))  # type: ignore[arg-type]
    return found


def study(**fields: Any) -> Study:
    """That study with three confirmed configurations; `fields` say what is otherwise."""
    first, second, other = (next(one for one in trials() if (one.arm, one.number) == name)
                            for name in (("search", 0), ("search", 2), ("baseline", 1)))  # fmt: skip
    again = [
        confirmed(0, [0.80, 0.81, 0.82, 0.80, 0.83], params=first.params),
        confirmed(2, [0.79, 0.80, 0.78, 0.81, 0.80], params=second.params),
        confirmed(1, [0.78, 0.79, 0.80, 0.77, 0.81], params=other.params, arm="baseline"),
    ]
    plain: dict[str, Any] = {"trials": trials(), "confirmed": again, "objectives": OBJECTIVES, "scales": SCALES}
    return Study(**(plain | {"importances": SHARES} | fields))
