"""Processes that take trials of one study and finish them at once, without training, and write down what they did."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from harness.storage import PROJECT
from harness.sweeps import space
from harness.sweeps.plan import Plan
from harness.sweeps.study import Claim, Study

STAGES = ("search", "baseline")


def plan(*own: str) -> Plan:
    """A study of LoRA's rank, with these settings of its own."""
    return Plan(space.load("lora_rank", [*own]), "lora", [])


@dataclass(frozen=True)
class Labour:
    """What one process does, and where it dies."""

    plan: Plan
    folder: Path
    deadly: frozenset[tuple[str, int]] = frozenset()
    """Stage and number of trials: who takes one of them for the first time kills itself."""
    seconds: float = 0.01
    """That each trial says it took."""

    def __call__(self) -> None:
        study = Study(self.plan, self.folder)
        self._take(study, STAGES)
        if confirm := self.plan.space.confirm:
            seeds, tops = confirm.seeds, range(confirm.top)
            study.plan_confirmation(
                [{"arm": arm, "number": n, "seed": seed} for arm in STAGES for n in tops for seed in seeds]
            )
            self._take(study, ("confirm",))

    def _take(self, study: Study, stages: tuple[str, ...]) -> None:
        while any(study.is_open(stage) for stage in stages):
            claim = next((one for stage in stages if (one := study.claim(stage))), None)
            if claim is None:
                time.sleep(0.05)
                continue
            _note(self.folder, claim)
            if claim.attempt == 1 and (claim.stage, claim.number) in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            run = f"{claim.stage}-{claim.number}"
            study.finish(claim, "complete", run=run, seconds=self.seconds, values=[claim.number / 100])


def _note(folder: Path, claim: Claim) -> None:
    """Write down who took which trial; a line is written whole or not at all."""
    line = {"stage": claim.stage, "number": claim.number, "attempt": claim.attempt, "pid": os.getpid()}
    with (folder / "taken.jsonl").open("a") as file:
        file.write(json.dumps(line | {"chosen": claim.chosen}) + "\n")


def work(*labours: Labour) -> list[int]:
    """Let as many processes work until all of them have ended; returns their exit codes, sorted."""
    os.environ["PYTHONPATH"] = str(PROJECT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sweeps.crews"])
    processes = [context.Process(target=labour) for labour in labours]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return sorted(-99 if process.exitcode is None else process.exitcode for process in processes)


def taken(folder: Path) -> list[dict[str, Any]]:
    """Every claim, in the order in which they were made."""
    return [json.loads(line) for line in (folder / "taken.jsonl").read_text().splitlines()]


def times(folder: Path, stage: str) -> dict[int, int]:
    """Number of a trial -> how often it was taken."""
    return dict(Counter(one["number"] for one in taken(folder) if one["stage"] == stage))


def raw(study: Study, stage: str) -> list[optuna.trial.FrozenTrial]:
    """Every row that the storage has for a stage."""
    return study._load(stage).get_trials(deepcopy=False)
