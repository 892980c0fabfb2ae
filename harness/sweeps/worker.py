"""The trials of a study, one after the other: of the search, of its baseline, and of the confirmation on fresh seeds.

Every trial is a run of `run.py`: same folder layout, statements, checkpoints, MLflow record. This module decides which
run is next, what its end means to the study, and that whatever happens to one trial the study goes on.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import statistics
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

from harness import storage
from harness.errors import (
    DataError,
    HarnessError,
    Interrupted,
    LostProcess,
    MemoryExhausted,
    ModelError,
    RunInUse,
    SpecError,
    Stopped,
    TrainingError,
    UnusableRun,
    UserError,
)
from harness.machine import memory, processes
from harness.run import Result, name_of_child, run_in
from harness.selection import Oversight
from harness.session import Session
from harness.sweeps.plan import Plan, trial_spec
from harness.sweeps.study import TAKEN, Claim, Study
from harness.sweeps.trials import Arm, State, TrialRecord
from harness.sweeps.view import StudyView
from harness.train import NonFinite

_WAIT_SECONDS = 1.0
"""How often a process that has nothing to do looks again: others still work on trials."""
_FAILURES = 3
"""A study ends when so many trials in a row fail in one process: they would all fail."""
CONFIRM = ("confirm",)


@dataclass(frozen=True)
class Task:
    """One trial, as all processes of a launch know it."""

    arm: Arm
    run: str
    """Name of its run."""
    chosen: dict[str, Any]
    own: list[str]
    """Overrides on top of what was chosen."""
    number: int
    """Of the trial it belongs to."""
    is_resumed: bool


@dataclass(frozen=True)
class _End:
    """How a trial ended."""

    state: State
    reason: str = ""
    scores: dict[str, float] | None = None
    seconds: float = 0.0
    """That its runs took, in all their processes."""


class Worker:
    """Takes trials of a study, one after the other, until there are none. Several processes of a launch act as one."""

    def __init__(self, plan: Plan, session: Session, study: Study | None, parent: str | None, view: StudyView) -> None:
        """`study` is that of the first process; the others have none. `parent`: MLflow's id of the study's run."""
        self.plan, self.session, self.study, self.parent, self.view = plan, session, study, parent, view
        self.accelerator = session.accelerator
        self._failures = 0

    def work(self, stages: tuple[str, ...]) -> None:
        """Take trials of these stages until all of them are finished, by whomever.

        Raises:
            TrainingError: several trials in a row failed.
            StorageError: a disk is full, or the study's storage is gone for minutes.
            Interrupted: as asked for by a signal; the trial waits to be taken up again.
        """
        while True:
            claim, is_over = self._next(stages) if self.study else (None, False)
            started = time.monotonic()
            try:
                own = (self._task(claim) if claim else None, is_over)
                task, is_over = processes.from_first(self.accelerator, own)
                if is_over:
                    return
                if task is None:
                    continue
                self._refuse_foreign(task)
                end = self._run(task, claim)
            except BaseException as error:
                if claim and self.study:  # what kills its process every time is given up in the end
                    is_asked = isinstance(error, Interrupted | KeyboardInterrupt)
                    self.study.put_back(claim, time.monotonic() - started, is_asked=is_asked)
                raise
            self._tell(claim, task, end, time.monotonic() - started)
            if not gc.get_freeze_count():  # what the first trial imported is not searched for garbage after each one
                gc.collect()
                gc.freeze()

    def _next(self, stages: tuple[str, ...]) -> tuple[Claim | None, bool]:
        """The next trial, from the stage that is behind; or none for now, others may still leave one; or: all is done.

        The processes of a launch look again together: none waits for the first one longer than a moment.
        """
        assert self.study is not None
        counts = {stage: len(self.study.records(stage)) for stage in stages}
        for stage in sorted(stages, key=lambda name: counts[name]):
            if claim := self.study.claim(stage):
                return claim, False
        self.view.show(self.study)
        if not any(self.study.is_open(stage) for stage in stages):
            return None, True
        time.sleep(_WAIT_SECONDS)
        return None, False

    def _task(self, claim: Claim) -> Task:
        given = claim.given
        if claim.stage == "confirm":
            own = [f"seeds=[{given['seed']}]", "evaluation.final=weights"]
            arm, number, chosen = given["arm"], given["number"], given["chosen"]
        else:
            own, arm, number, chosen = ["evaluation.final=scores"], _arm(claim.stage), claim.number, claim.chosen
        return Task(arm, run_name(self.plan, arm, number, given.get("seed")), chosen, own, number, claim.attempt > 1)

    def _refuse_foreign(self, task: Task) -> None:
        """Raise UserError if a run of this name was made by another study: it would be taken for this trial's."""
        file = self.session.output / "runs" / task.run / "trial.json"
        if self.study and file.exists():
            made_by = json.loads(file.read_text(encoding="utf-8")).get("study_id", "")
            if made_by != self.study.identity:
                what = f"{task.run} is a run of an earlier study that was called {self.plan.name}"
                fix = f"remove runs/{self.plan.name}-*, or begin a study of another name: study=<name>"
                raise UserError(what, where=str(file.parent), fix=fix)

    def _run(self, task: Task, claim: Claim | None) -> _End:
        """Run a trial to its end, whatever that is. Raises only what ends the study, or this process."""
        tags = {"study": self.plan.name, "arm": task.arm, "trial": str(task.number)}
        if self.study:
            tags["study_id"] = self.study.identity
            self.parent = self.parent or self.study.recall("mlflow_run") or None
        try:
            spec = trial_spec(self.plan, task.arm, task.chosen, task.own)
            session = self.session.of(spec, tags=tags, terminal=self.view.terminal)
            session = replace(session, is_resumed=task.is_resumed)
            results = run_in(session, task.run, self.parent, self._oversight(len(spec.seeds), claim))
            return _End("complete", scores=_means(results), seconds=sum(map(_seconds, (r.scores for r in results))))
        except Stopped as error:
            end = _End("infeasible" if error.is_infeasible else "pruned", error.what)
        except MemoryExhausted as error:
            end = _End("infeasible", error.what)
        except LostProcess:
            raise
        except NonFinite as error:
            end = _End("infeasible", str(error))
        except RunInUse as error:
            self._raise_beside_others()
            return _End("waiting", str(error))
        except (SpecError, ModelError, DataError) as error:
            end = _End("failed", str(error))
        except (UserError, TrainingError, UnusableRun) as error:
            self._raise_beside_others()
            end = _End("failed", str(error))
        except (HarnessError, KeyboardInterrupt):
            raise
        except Exception as error:
            self._raise_beside_others()
            end = _End("infeasible" if memory.ran_out(error) else "failed", f"{type(error).__name__}: {error}")
            self._keep_traceback(task)
        finally:
            self.accelerator.free_memory()  # the optimizer, which a run that did not finish has left there
        if self.accelerator.is_main_process and end.reason != TAKEN:
            drop_checkpoints(self.session, task.run)
        return end

    def _raise_beside_others(self) -> None:
        """Raise what is being handled again if there are other processes: they may be somewhere else by now."""
        if self.accelerator.num_processes > 1:
            raise

    def _keep_traceback(self, task: Task) -> None:
        folder = self.session.output / "runs" / task.run
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_text(folder / "traceback.txt", traceback.format_exc())

    def _oversight(self, num_seeds: int, claim: Claim | None) -> Oversight:
        """Lets the pruner and the clock end a trial.

        The pruner sees every evaluation; of several seeds, after each of them the mean so far (Wilcoxon's test: its
        value). The clock counts all processes that worked on the trial.
        """
        objective, limit = self.plan.space.objective[0].metric, self.plan.space.trial_minutes
        by_seed, each = num_seeds > 1, "wilcoxon" in self.plan.space.pruner

        def report(scores: dict[str, float], number: int) -> str:
            if claim is None or self.study is None or claim.stage == "confirm":
                return ""
            self.view.show(self.study)
            return self.study.report(claim, scores[objective], number)

        def of_seed(_: int, before: list[dict[str, float]]) -> Oversight:
            if by_seed and before:
                seen = before[-1:] if each else before
                why = report({objective: statistics.fmean(one[objective] for one in seen)}, len(before))
                if why := str(processes.from_first(self.accelerator, why)):
                    raise Stopped(f"{why} after {len(before)} of {num_seeds} seeds")
            seconds = None if limit is None else 60 * limit - sum(map(_seconds, before))
            return Oversight((lambda scores, number: "") if by_seed else report, seconds, of_seed)

        return of_seed(0, [])

    def _tell(self, claim: Claim | None, task: Task, end: _End, seconds: float) -> None:
        if claim is None or self.study is None:
            return
        if end.state == "waiting":
            self.study.put_back(claim, seconds)
            time.sleep(_WAIT_SECONDS)
            return
        scores, state, reason = end.scores or {}, end.state, end.reason
        values = [scores.get(one.metric, math.nan) for one in self.plan.space.objective] if end.scores else None
        if values and not all(map(math.isfinite, values)):
            state, reason, values = "infeasible", f"the objective is {values}", None
        seconds = max(claim.seconds + seconds, end.seconds)  # a process that was killed could not tell its own
        self.study.finish(claim, state, run=task.run, seconds=seconds, values=values, metrics=scores, reason=reason)
        self.view.show(self.study)
        self._failures = self._failures + 1 if state == "failed" else 0
        if self._failures >= _FAILURES:
            fix = "when that is mended, the same command goes on"
            raise TrainingError(f"{_FAILURES} trials in a row failed", where=self.plan.name, why=reason, fix=fix)


def _seconds(scores: dict[str, float]) -> float:
    """That a finished run took; the first process knows."""
    return scores.get("time/total_s", 0.0)


def run_name(plan: Plan, arm: Arm, number: int, seed: int | None = None) -> str:
    """That of a trial; with a seed, that of its configuration's confirmation on this seed.

    What tells it from the others of its study stands first: MLflow's table cuts long names.
    """
    of_seed = "" if seed is None else f"-seed{seed}"
    return storage.safe_name(f"{arm[0]}{number:03d}{of_seed}-{plan.name}")


def drop_checkpoints(session: Session, run: str) -> None:
    """Remove the checkpoints of a trial that nobody goes on with, and of its replicates."""
    for name in (run, *(name_of_child(run, seed) for seed in session.spec.seeds)):
        shutil.rmtree(session.output / "runs" / name / "checkpoints", ignore_errors=True)


def best_of(records: list[TrialRecord], plan: Plan, arm: Arm, top: int) -> list[TrialRecord]:
    """The best complete trials of an arm by the first objective, each configuration once."""
    sign = -1 if plan.space.objective[0].direction == "maximize" else 1
    found = sorted(
        (one for one in records if one.arm == arm and one.state == "complete"),
        key=lambda one: (sign * one.values[0], one.number),
    )
    distinct: list[TrialRecord] = []
    for one in found:
        if all(one.params != other.params for other in distinct):
            distinct.append(one)
    return distinct[:top]


def plan_confirmation(plan: Plan, study: Study) -> None:
    """Make a task of each of the best configurations of the search and of the baseline, for each fresh seed."""
    if plan.space.confirm is None:
        return
    records = [one for arm in plan.space.arms for one in study.records(arm)]
    study.plan_confirmation(
        [
            {"arm": arm, "number": one.number, "seed": seed, "chosen": one.params, "searched": one.values[0]}
            for arm in plan.space.arms
            for one in best_of(records, plan, arm, plan.space.confirm.top)
            for seed in plan.space.confirm.seeds
        ]
    )


def _means(results: list[Result]) -> dict[str, float]:
    """Every score, as the mean over the seeds that have it."""
    keys = [key for key in results[0].scores if all(key in one.scores for one in results)]
    return {key: statistics.fmean(one.scores[key] for one in results) for key in keys}


def _arm(stage: str) -> Arm:
    return "baseline" if stage == "baseline" else "search"
