"""What is said where a run begins and where it ends: to the person at the terminal, and to programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from harness import replicates
from harness.assembly import Assembled
from harness.console import Terminal
from harness.machine import device
from harness.results import report
from harness.session import Session
from harness.specs import changes
from harness.specs.schema import Spec
from harness.tracking import stores
from harness.tracking.tracker import Tracker

_WORDS = 12
"""So many of the settings that differ from the experiment's file are shown; spec.yaml in the run's folder has all."""


class Finished(Protocol):
    """A run that is finished, as `run.Result` tells it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def run_id(self) -> str | None: ...  # noqa: D102
    @property
    def parent(self) -> tuple[str, str | None] | None: ...  # noqa: D102
    @property
    def scores(self) -> dict[str, float]: ...  # noqa: D102


# ---------------------------------------------------------------------------------------------------------- to a person


def say_begin(session: Session, name: str) -> None:
    """What runs, on what, where it is written and seen, and how it goes on after a stop; of replicates, of all.

    Says nothing that has to be waited for: the run's own page in MLflow is told at the end.
    """
    chosen, terminal = session.spec, session.terminal
    if not terminal.speaks or terminal.quiet:
        return
    terminal.title(f"\n{name}")
    terminal.facts(
        {
            "experiment": _experiment(chosen),
            "device": machine(session),
            "folder": str(session.output / "runs" / name),
            "MLflow": stores.ui_command(chosen.tracking.uri, session.output),
            "Ctrl-C": f"saves and stops; it goes on with: {session.resume_command(name)}",
        }
    )


def _experiment(chosen: Spec) -> str:
    """Its name, and what was set differently."""
    if chosen.tracking.experiment == stores.REHEARSALS:
        return f"{chosen.name}, rehearsed: two steps on a few rows (--smoke)"
    return " ".join([chosen.name, *_shown(changes.given(chosen))])


def _shown(words: list[str]) -> list[str]:
    rest = len(words) - _WORDS
    return words if rest <= 0 else [*words[:_WORDS], f"and {rest} more settings"]


def machine(session: Session) -> str:
    """Device, precision and processes, as they were chosen."""
    accelerator = session.accelerator
    precision = {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    number = accelerator.num_processes
    told = [device.name_of(accelerator.device), precision, *([f"{number} processes"] if number > 1 else [])]
    return ", ".join(told)


def say_parts(terminal: Terminal, assembled: Assembled) -> None:
    """What trains, and what each method will do."""
    terminal.table(["parameters", "", "of full fine-tuning"], report.parameter_rows(assembled))
    for method, note in assembled.notes.items():
        terminal.say(f"{method}: {note}")


def say_result(
    terminal: Terminal, name: str, folder: Path, tracker: Tracker, scores: dict[str, float],
    headline: tuple[str, float], titles: list[str], ladder: list[list[str]], signed_by: str,
) -> None:  # fmt: skip
    """The score among its yardsticks, and where everything is. Without yardsticks: the test split was not opened."""
    if ladder:
        terminal.say()
        terminal.table(["on the test split", *titles], ladder)
    terminal.say(
        f"\nscore   {headline[0]} {headline[1]:.4f}, checkpoint of epoch {scores['best/epoch']:.0f}; "
        f"{scores['time/total_s']:.0f} s, {scores['memory/peak_gib']:.2f} GiB"
    )
    terminal.say(f"run     {name}, MLflow id {tracker.run_id or 'none: not recorded'}")
    if tracker.url:
        terminal.say(f"page    {tracker.url}")
    terminal.say(f"folder  {folder}")
    if tracker.problem:
        terminal.say(f"NOTE    {tracker.problem}")
    terminal.say(f"signed  {signed_by}  Check it: harness verify {folder}")


# ---------------------------------------------------------------------------------------------------------- to programs


def headline(runs: Sequence[Finished], metric: str) -> str:
    """The score in one line: `lora-s42-3f9a  test/f1_macro 0.7495`; of replicates, mean and standard deviation.

    `metric` is the one that selects checkpoints; it is told where the test split was not opened.
    """
    scores, name = runs[0].scores, metric.rpartition("/")[2]
    asked = ("test/f1_macro", f"test/{name}", metric, f"best/{metric.replace('/', '_')}")
    key = next((key for key in asked if key in scores), "")
    of = runs[0].parent[0] if runs[0].parent else runs[0].name
    values = [one.scores[key] for one in runs if key in one.scores]
    if not values:
        return of
    spread = f" ± {statistics.stdev(values):.4f}, n = {len(values)}" if len(values) > 1 else ""
    return f"{of}  {key} {statistics.fmean(values):.4f}{spread}"


def as_values(runs: Sequence[Finished]) -> dict[str, Any]:
    """Finished runs for programs: name, MLflow id, folder, seeds and scores, of one run or of the parent of replicates.

    A replicate's are in `runs`; the parent's scores are means, and standard deviations as `<score>_sd`. A score that is
    not finite is null; an id is null where MLflow has no such run, or the run was finished before.
    """
    each = [
        {"name": one.name, "id": one.run_id, "folder": str(one.folder), "seeds": [one.seed],
         "scores": _finite(one.scores)} for one in runs
    ]  # fmt: skip
    if (parent := runs[0].parent) is None:
        return each[0]
    name, run_id = parent
    scores = _finite(replicates.spread([one.scores for one in runs]))
    seeds, folder = [one.seed for one in runs], str(runs[0].folder.parent / name)
    return {"name": name, "id": run_id, "folder": folder, "seeds": seeds, "scores": scores, "runs": each}


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in scores.items()}
