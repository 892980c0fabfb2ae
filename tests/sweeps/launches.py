"""Whole studies on the command line, of a tiny model and a few rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.storage import PROJECT
from tests.test_launch import environment, query

ARGUMENTS = [
    "exp=lora", "sweep=lora_rank", "--smoke", "study=small", "trials=3", "baseline=null", "sampler=random",
    "confirm={top: 1, seeds: [100, 101]}", "space.methods.lora.rank={choice: [1, 2]}", "latency.measure=false",
    "train.max_steps=60", "train.epochs=30", "evaluation.every=60 steps", "checkpoint.every=5 steps",
]  # fmt: skip
RUNS = [*(f"s{number:03d}-small" for number in range(3))]


def command(tiny: list[str], output: Path, *more: str) -> list[str]:
    return [sys.executable, "launch.py", *ARGUMENTS, *tiny, f"output={output}", *more]


def launch(words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=PROJECT, env=environment(**variables), capture_output=True, text=True, timeout=240, check=False
    )


@contextmanager
def launched(words: list[str], output: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A study at work; what it says is in `said`."""
    output.mkdir(exist_ok=True)
    with (output / "said").open("ab") as out, subprocess.Popen(
        words, cwd=PROJECT, env=environment(**variables), stdout=out, stderr=out
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def saved(output: Path, trial: str) -> int:
    """The step of the newest checkpoint of a trial, by the name of its lock or its run; 0: there is none."""
    (number,) = re.findall(r"[0-9]{3}", trial)
    found = (output / "runs" / f"s{number}-small").glob("checkpoints/step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def last_step(output: Path, run: str) -> int:
    """The last step of a run that MLflow knows; 0: it was stopped before its first one."""
    steps = f"select max(step) from metrics join runs using (run_uuid) where key = 'train/loss' and name = '{run}'"
    ((step,),) = query(output, steps)
    return int(str(step or 0))


def owners(output: Path) -> dict[str, int]:
    """Trial -> the process that works on it."""
    found = {}
    for path in (output / "studies" / "small" / "locks").glob("*.lock"):
        text = path.read_text()
        if text:
            found[path.stem] = int(json.loads(text)["pid"])
    return found


def recorded(output: Path) -> dict[str, tuple[str, str]]:
    """Run of MLflow -> its parent's name, and its status. Fails where two runs have one name."""
    parents = (
        "select child.name, parent.name, child.status from runs child"
        " left join tags on tags.run_uuid = child.run_uuid and tags.key = 'mlflow.parentRunId'"
        " left join runs parent on parent.run_uuid = tags.value"
    )
    rows = query(output, parents)
    assert len({name for name, _, _ in rows}) == len(rows), rows
    return {str(name): (str(parent or ""), str(status)) for name, parent, status in rows}


def assert_whole(output: Path) -> None:
    """One run of the study, one below it for each trial, all finished, every step once, and the report."""
    runs = recorded(output)
    assert runs.pop("small") == ("", "FINISHED")
    children = dict.fromkeys(RUNS, ("small", "FINISHED"))
    confirmed = {name for name in runs if "-seed" in name}
    assert runs == children | dict.fromkeys(confirmed, ("small", "FINISHED"))
    assert {re.findall(r"-seed([0-9]+)-", name)[0] for name in confirmed} == {"100", "101"}
    for name in runs:
        steps = f"select step from metrics join runs using (run_uuid) where key = 'train/loss' and name = '{name}'"
        told = [step for (step,) in query(output, steps)]
        assert len(told) == len(set(told)) > 0, name
    assert (output / "studies" / "small" / "report.md").is_file()
    assert len((output / "studies" / "small" / "trials.csv").read_text().splitlines()) == 1 + len(RUNS)
    assert {path.name for path in (output / "runs").iterdir()} == runs.keys()
    assert not list((output / "runs").glob("*/checkpoints"))
