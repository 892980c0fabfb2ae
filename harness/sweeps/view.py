"""What a person sees while a study runs: one live table on a terminal, elsewhere one line per finished trial."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.console import Terminal
from harness.errors import StorageError
from harness.sweeps.space import SearchSpace
from harness.sweeps.trials import TrialRecord

_SHOWN = 12
"""Rows of the live table: the newest trials."""
_REFRESH_SECONDS = 0.5
_COLOURS = {"complete": "green", "pruned": "yellow", "infeasible": "magenta", "failed": "red", "running": "cyan"}


_Finished = tuple[str, int, str]
"""A trial that ended: its stage, its number, its settings."""


class Trials(Protocol):
    """Where the trials of a study are read."""

    def look(self, stage: str) -> list[TrialRecord]:
        """Every trial of a stage."""


class StudyView:
    """Shows the trials of a study, and of the runs themselves only what they note."""

    def __init__(self, space: SearchSpace, terminal: Terminal, workers: int = 1) -> None:
        self.space, self._out, self._workers = space, terminal, workers
        self.terminal = terminal.aside()
        """For the runs: of them, notes are shown."""
        self._is_live = terminal.is_live
        self._live = Live(console=terminal.console, auto_refresh=False) if self._is_live else None
        self._told: set[_Finished] = set()
        self._shown_at, self._began = 0.0, time.monotonic()

    def __enter__(self) -> StudyView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def begin(self, study: Trials) -> None:
        """Say how far a study is that goes on: what finished before is no news, and what was begun is not lost."""
        with suppress(StorageError):
            records = {stage: study.look(stage) for stage in (*self.space.arms, "confirm")}
            self._told = set(_finished(records))
            if trials := [one for of in records.values() for one in of]:
                begun = len(trials) - len(self._told)
                self._out.say(f"going on: {self.status(records)}" + (f"; {begun} not finished" if begun else ""))

    def close(self, study: Trials) -> None:
        """Show the last state, which stays."""
        self.show(study, at_once=True)
        if self._live:
            self._live.stop()

    def show(self, study: Trials, *, at_once: bool = False) -> None:
        """Show how far the study is."""
        if (
            not self._out.speaks
            or self._out.quiet
            or (time.monotonic() - self._shown_at < _REFRESH_SECONDS and not at_once)
        ):
            return
        self._shown_at = time.monotonic()
        with suppress(StorageError):  # there is more to do than to look
            self._show({stage: study.look(stage) for stage in (*self.space.arms, "confirm")})

    def _show(self, records: dict[str, list[TrialRecord]]) -> None:
        if self._live:
            self._live.update(Group(self._table(records), Text(self.status(records), style="bold")), refresh=True)
        else:
            self._tell_news(records)

    def _tell_news(self, records: dict[str, list[TrialRecord]]) -> None:
        """One line for each trial that finished since the last call."""
        finished = _finished(records)
        for key in finished.keys() - self._told:
            one = finished[key]
            value = f"{one.values[0]:.4f}" if one.values else "-"
            why = f"  ({one.reason.splitlines()[0]})" if one.reason else ""
            shown = "  ".join(f"{name}={_short(of)}" for name, of in one.params.items() if name != "chosen")
            self._out.say(f"{key[0]:8} {one.number:3d}  {one.state:10} {value}  {one.seconds:5.0f} s  {shown}{why}")
        if finished.keys() - self._told:
            self._out.say(f"  {self.status(records)}")
        self._told |= set(finished)

    def status(self, records: dict[str, list[TrialRecord]]) -> str:
        """How many of how many, the best so far of each arm, and when it will be over."""
        parts = []
        for arm in self.space.arms:
            of = records.get(arm, [])
            done = [one for one in of if one.state not in ("running", "waiting")]
            best = self._best(of)
            told = [f"{arm} {len(done)}" + (f"/{size}" if (size := self.space.size(arm)) else "")]
            told += [f"best {best.values[0]:.4f}"] if best else []
            told += [f"{count} {state}" for state in ("pruned", "infeasible", "failed")
                     if (count := sum(one.state == state for one in of))]  # fmt: skip
            parts.append(", ".join(told))
        if confirmed := records.get("confirm"):
            parts.append(f"confirmed {sum(one.state == 'complete' for one in confirmed)}/{len(confirmed)}")
        if left := self._seconds_left(records):
            parts.append(f"about {left / 60:.0f} min of trials left")
        return "; ".join(parts)

    def _best(self, records: list[TrialRecord]) -> TrialRecord | None:
        complete = [one for one in records if one.state == "complete"]
        pick = max if self.space.objective[0].direction == "maximize" else min
        return pick(complete, key=lambda one: one.values[0]) if complete else None

    def _seconds_left(self, records: dict[str, list[TrialRecord]]) -> float:
        """Of the trials that are left, as long as those of the same arm took; without the confirmation."""
        left = 0.0
        for arm in self.space.arms:
            done = [one.seconds for one in records.get(arm, []) if one.seconds]
            if done and (size := self.space.size(arm)):
                left += statistics.fmean(done) * max(0, size - len(done))
        waiting = [one for one in records.get("confirm", []) if one.state in ("waiting", "running")]
        done = [one.seconds for one in records.get("confirm", []) if one.seconds]
        left += len(waiting) * statistics.fmean(done) if done else 0.0
        return left / self._workers

    def _table(self, records: dict[str, list[TrialRecord]]) -> Table:
        """The newest trials; the best of each arm in bold, and of those that run what they reached so far."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("trial", "state", self.space.objective[0].metric.partition("/")[2], "seconds", "settings"):
            table.add_column(name, justify="left" if name in ("trial", "state", "settings") else "right")
        rows = [(stage, one) for stage, of in records.items() for one in of if one.state != "waiting"]
        rows.sort(key=lambda row: row[1].state == "running")
        best = [self._best(records.get(arm, [])) for arm in self.space.arms]
        for stage, one in rows[-_SHOWN:]:
            reached = one.values[:1] or [one.intermediate[step] for step in sorted(one.intermediate)[-1:]]
            shown = " ".join(
                f"{key.rpartition('.')[2]}={_short(of)}" for key, of in one.params.items() if key != "chosen"
            )
            table.add_row(
                f"{stage} {one.number}",
                Text(one.state, style=_COLOURS.get(one.state, "")),
                Text("".join(f"{value:.4f}" for value in reached), style="" if one.values else "dim"),
                f"{one.seconds:.0f}" if one.seconds else "",
                shown,
                style="bold" if any(one is other for other in best) else "",
            )
        return table


def _finished(records: dict[str, list[TrialRecord]]) -> dict[_Finished, TrialRecord]:
    known = ((stage, one) for stage, of in records.items() for one in of)
    return {
        (stage, one.number, str(one.params)): one for stage, one in known if one.state not in ("running", "waiting")
    }


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
