"""The errors a person can meet.

HarnessError                 exit code
├── UserError                2    a mistake in what was asked for, found before training
│   ├── SpecError                 a spec, an override, a command line
│   ├── DataError                 a data set, a split, a label
│   ├── ModelError                a checkpoint, a tokenizer, a layer name
│   └── RunInUse                  a run that another process works on
├── TrainingError            1    a run that cannot go on
│   ├── MemoryExhausted           out of memory, and nothing is left to halve
│   └── LostProcess               another process of the launch is gone
├── Stopped                  1    a run that a study ended early
├── StorageError             5    a file or folder that cannot be read or written
│   └── UnusableRun               a run that was begun and cannot go on
└── Interrupted              130  Ctrl-C; 143 for SIGTERM; 75 for SIGUSR1, sent before preemption
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """What happened, where, why, and what to do about it; `exit_code` is what the process ends with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        parts = (f"{where}: {what}" if where else what, why and f"  why: {why}", fix and f"  fix: {fix}")
        super().__init__("\n".join(part for part in parts if part))


class UserError(HarnessError):
    """A mistake in what was asked for."""

    exit_code = 2


class SpecError(UserError):
    """A spec, an override or a command line that cannot be used."""


class DataError(UserError):
    """A data set, a split or a label that cannot be used."""


class ModelError(UserError):
    """A checkpoint, a tokenizer or a layer name that cannot be used."""


class RunInUse(UserError):
    """A run that another process works on."""


class TrainingError(HarnessError):
    """A run that cannot go on."""


class MemoryExhausted(TrainingError):
    """Memory does not suffice, however small the pieces are."""


class LostProcess(TrainingError):
    """Another process of the launch is gone: this one cannot go on, the run can be resumed."""


class Stopped(HarnessError):
    """A run that was ended before its end by the study it belongs to: hopeless, or out of time."""

    def __init__(self, what: str, *, is_infeasible: bool = False) -> None:
        """`is_infeasible`: not because of its score."""
        super().__init__(what)
        self.is_infeasible = is_infeasible


class StorageError(HarnessError):
    """A file or folder that cannot be read or written."""

    exit_code = 5


class UnusableRun(StorageError):
    """A run that was begun and cannot go on: edited, not to be trusted, without a checkpoint that is whole."""


class Interrupted(HarnessError):
    """The process was asked to stop: by Ctrl-C (130), by SIGTERM (143), or to make room for another one (75)."""

    def __init__(self, exit_code: int, *, is_agreed: bool = False) -> None:
        """`is_agreed`: all processes of the run stop at the same step, with a checkpoint saved."""
        super().__init__({130: "interrupted", 75: "preempted"}.get(exit_code, "terminated"))
        self.exit_code, self.is_agreed = exit_code, is_agreed


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what exists when nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"
