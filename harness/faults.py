"""Fault points: places where a run can be made to fail as life makes it fail, to see that nothing is lost.

    HARNESS_FAULT="<point>:<action>[@step=<n>][@rank=<r>]", several with commas; unset: every point returns at once

Each clause fires once. `step` is the optimizer step that is being taken, counted from 1.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

from harness.errors import SpecError

VARIABLE = "HARNESS_FAULT"
POINTS = (
    "gradient.forward", "gradient.backward", "gradient.after_pass", "gradient.result",
    "step.end",
    "checkpoint.before", "checkpoint.after_model", "checkpoint.after_optimizer", "checkpoint.after_best",
    "checkpoint.after_progress", "checkpoint.after_envelope", "checkpoint.after_rename", "checkpoint.before_prune",
    "report", "report.sealed",
)  # fmt: skip
ACTIONS = ("kill", "term", "int", "usr1", "oom", "error", "nan", "enospc", "sleep")
_SLEEP_SECONDS = 3600.0


@dataclass
class _Clause:
    point: str
    action: str
    conditions: dict[str, int]
    has_fired: bool = False


_known: tuple[str, list[_Clause]] = ("", [])
_step = 0


def begin_step(number: int) -> None:
    """Tell the points which optimizer step is being taken."""
    global _step
    _step = number


def point(name: str) -> str:
    """Fail here if `HARNESS_FAULT` says so; returns "nan" where the caller is to spoil its own numbers.

    Raises:
        torch.OutOfMemoryError, RuntimeError, OSError: as asked for.
        SpecError: the variable names an unknown point, action or condition.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return ""
    assert name in POINTS, name
    here = {"step": _step, "rank": int(os.environ.get("RANK", "0"))}
    for clause in _clauses(text):
        if clause.point == name and not clause.has_fired and clause.conditions.items() <= here.items():
            clause.has_fired = True
            return _act(clause.action, name)
    return ""


def _clauses(text: str) -> list[_Clause]:
    global _known
    if _known[0] != text:
        _known = (text, [_parse(part) for part in text.split(",")])
    return _known[1]


def _parse(text: str) -> _Clause:
    what, *conditions = text.strip().split("@")
    name, _, action = what.partition(":")
    pairs = [condition.partition("=") for condition in conditions]
    is_known = name in POINTS and action in ACTIONS
    if not is_known or any(key not in ("step", "rank") or not value.isdigit() for key, _, value in pairs):
        fix = f"<point>:<action>[@step=<n>][@rank=<r>]; points {', '.join(POINTS)}; actions {', '.join(ACTIONS)}"
        raise SpecError(f"{text!r} is no fault", where=VARIABLE, fix=fix)
    return _Clause(name, action, {key: int(value) for key, _, value in pairs})


def _act(action: str, name: str) -> str:
    signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1}
    if action in signals:
        os.kill(os.getpid(), signals[action])
    elif action == "oom":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB (fault point)")
    elif action == "error":
        raise RuntimeError(f"fault point {name}")
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    elif action == "sleep":
        time.sleep(_SLEEP_SECONDS)
    return action
