"""A study in Optuna: who takes which trial, with which settings, and what became of it. The only door to optuna.

The search and its baseline are two Optuna studies in one storage, what is confirmed a third one, so that each sampler
and pruner sees its own trials. Several processes may work on them. One at a time takes a trial, under a lock of all
(a file beside the journal; an advisory lock of PostgreSQL), so that their number is exact. A trial whose process was
killed is taken up again, under its number: on one machine the system frees the lease of a dead process at once; through
PostgreSQL its heartbeats stop too. A process that was only out of reach finds its trial taken, and leaves it. The
sampler is made anew for each trial, seeded by the trial's number, so that a study that was stopped goes on as if it had
not been (with one worker).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.errors import StorageError, UserError
from harness.storage import RunLock
from harness.sweeps import sampling
from harness.sweeps.plan import Plan, definition, differences
from harness.sweeps.space import SearchSpace
from harness.sweeps.store import Lease, Store, patient
from harness.sweeps.trials import Arm, State, TrialRecord

_STAGES: tuple[str, ...] = ("search", "baseline", "confirm")
_ATTEMPTS = 3
"""A trial whose process was killed so often is given up."""
_LIMITS = "limits"
"""The constraint that a trial breaks which runs out of memory or time, or diverges."""
_NEED_VALUES = ("gp", "nsga2", "cmaes")
"""Samplers that learn from complete trials only."""
TAKEN = "another process took it up"
"""Why a process leaves a trial that it could not show its life for."""
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on."""

    stage: str
    number: int
    """Of the trial in its stage."""
    chosen: dict[str, Any]
    """Dotted key -> value."""
    given: dict[str, Any]
    """What a trial of the confirmation is about."""
    attempt: int
    """1, unless its process was killed before."""
    seconds: float
    """That the processes before this one took, as far as they could tell."""
    trial: optuna.Trial
    lease: Lease


class Study:
    """The trials of one plan, wherever they are kept.

    Raises:
        UserError: no such storage, another study of this name, SQLite for several workers.
        StorageError: the storage cannot be reached.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Open the study, or begin it.

        Args:
            plan: what is searched.
            folder: of the study; the journal and its locks lie there.
        """
        self.plan, self.space, self.folder = plan, plan.space, folder
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.store = Store(self.space, plan.name, folder)
        folder.mkdir(parents=True, exist_ok=True)
        now = definition(plan)
        self.is_new = False
        """Whether this process began it."""
        with self.store.reaching(), sampling.quietly(), self.store.alone():
            self.store.open()
            self._begin(now)

    def _begin(self, now: dict[str, Any]) -> None:
        """Make what the storage lacks; what was begun with other settings is refused, unless it has no trial yet."""
        names = set(optuna.get_all_study_names(self.store.backend))
        known = [stage for stage in _STAGES if self._name(stage) in names]
        before = self._load(known[0]).user_attrs.get("definition", now) if known else now
        if changes := differences(before, now):
            if any(self._trials(stage) for stage in known):
                raise UserError(
                    f"the study '{self.plan.name}' was begun with other settings:\n  " + "\n  ".join(changes),
                    where=self.store.shown,
                    fix="put them back, or begin another one: study=<name>",
                )
            for stage in known:
                optuna.delete_study(study_name=self._name(stage), storage=self.store.backend)
        directions, metrics = zip(*((one.direction, one.metric) for one in self.space.objective), strict=True)
        for stage in _STAGES:
            study = optuna.create_study(
                study_name=self._name(stage), storage=self.store.backend, directions=directions, load_if_exists=True
            )
            if stage == "search" and "definition" not in study.user_attrs:
                self.is_new = True
                study.set_metric_names(list(metrics))
                study.set_user_attr("id", os.urandom(8).hex())
                study.set_user_attr("definition", now)

    @property
    def identity(self) -> str:
        """What tells it from any other study of its name."""
        return self.recall("id") or ""

    def _name(self, stage: str) -> str:
        return self.plan.name if stage == "search" else f"{self.plan.name}.{stage}"

    def _load(self, stage: str, number: int = 0) -> optuna.Study:
        space = self.space
        chosen = None if stage == "confirm" else sampling.sampler(space, space.parameters(arm_of(stage)), stage, number)
        known = {"study_name": self._name(stage), "storage": self.store.backend}
        return optuna.load_study(**known, sampler=chosen, pruner=sampling.pruner(space))

    # What all processes know

    @patient
    def remember(self, key: str, value: str | None) -> None:
        """Keep a fact about the study for all processes; None: it is not known any more."""
        with self.store.reaching():
            self._load("search").set_user_attr(key, value)

    @patient
    def recall(self, key: str) -> str | None:
        """A fact that was kept."""
        with self.store.reaching():
            found: str | None = self._load("search").user_attrs.get(key)
            return found

    @patient
    def records(self, stage: str) -> list[TrialRecord]:
        """Every trial of a stage, in order."""
        return self.look(stage)

    def look(self, stage: str) -> list[TrialRecord]:
        """The same, without patience."""
        trials = self._trials(stage)
        return [_record(trial.user_attrs.get("given", {}).get("arm", stage), trial, self.space) for trial in trials]

    def _trials(self, stage: str) -> list[FrozenTrial]:
        with self.store.reaching():
            return self._load(stage).get_trials(deepcopy=False)

    @patient
    def plan_confirmation(self, tasks: list[dict[str, Any]]) -> None:
        """Make one waiting trial for each task, unless there is one; one that failed is tried again, a few times."""
        with self.store.reaching(), self.store.alone():
            study = self._load("confirm")
            done = study.get_trials(deepcopy=False)
            for task in tasks:
                states = [trial.state for trial in done if trial.user_attrs.get("given") == task]
                if states.count(TrialState.FAIL) == len(states) < _ATTEMPTS:
                    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"given": task}))

    @patient
    def is_open(self, stage: str) -> bool:
        """Whether trials of a stage are left to be taken or are being worked on."""
        trials = self._trials(stage)
        if any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials):
            return True
        return stage != "confirm" and not self._is_spent(stage, trials)

    def _is_spent(self, stage: str, trials: list[FrozenTrial]) -> bool:
        limit = self.space.size(arm_of(stage))
        if limit is not None and len(trials) >= limit:
            return True
        spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
        return self.space.minutes is not None and spent >= 60 * self.space.minutes

    # A trial's life

    @patient
    def claim(self, stage: str) -> Claim | None:
        """Take a trial: one that was left behind, one that waits, or a new one; None: there is none to be taken now."""
        with self.store.reaching(), sampling.quietly(), self.store.alone():
            trials = self._trials(stage)
            for trial in [*self._out_of_sight(stage, trials), *_waiting(trials)]:
                if claim := self._take(stage, trial):
                    return claim
            if stage == "confirm" or self._is_spent(stage, trials):
                return None
            study_id = self.store.backend.get_study_id_from_name(self._name(stage))
            template = optuna.create_trial(state=TrialState.WAITING, system_attrs=self._grid_cell(stage, trials))
            trial_id = self.store.backend.create_new_trial(study_id, template_trial=template)
            return self._take(stage, self.store.backend.get_trial(trial_id))

    def _out_of_sight(self, stage: str, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Trials that somebody works on who may be dead; whoever gets their lease knows."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if self.store.has_machines and running:
            silent = self.store.silent(self._name(stage))
            return [trial for trial in running if trial._trial_id in silent]
        return running

    def _grid_cell(self, stage: str, trials: list[FrozenTrial]) -> dict[str, Any]:
        """The next configuration of a grid, in an order drawn once, as Optuna keeps what a trial has to suggest."""
        if "grid" not in self.space.sampler:
            return {}
        arm = arm_of(stage)
        cells = [sampling.fixed(self.space.parameters(arm), one) for one in self.space.grid(arm)]
        cells.sort(key=lambda one: hashlib.sha256(json.dumps([self.space.sampler_seed, one]).encode()).digest())
        done = [trial.system_attrs.get("fixed_params") for trial in trials]
        return {"fixed_params": next(one for one in cells if one not in done)}

    def _take(self, stage: str, found: FrozenTrial) -> Claim | None:
        """Claim a trial that waits or was left behind.

        None: another process has it, finished it since it was found, or it was killed too often.
        """
        if (lock := self.store.lock(f"{stage}-{found.number:04d}")) is None:
            return None
        try:
            now = self.store.backend.get_trial(found._trial_id)
            claim = None if now.state.is_finished() else self._begin_attempt(stage, now, lock)
        except BaseException:
            lock.release()
            raise
        if claim is None:
            lock.release()
        return claim

    def _begin_attempt(self, stage: str, found: FrozenTrial, lock: RunLock) -> Claim | None:
        trial_id, storage = found._trial_id, self.store.backend
        attempts = int(found.user_attrs.get("attempts", 0)) + 1
        if attempts - int(found.user_attrs.get("stops", 0)) > _ATTEMPTS:
            storage.set_trial_user_attr(trial_id, "reason", f"its process ended {_ATTEMPTS} times while it ran")
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        if beat := self.store.heartbeat(trial_id):
            beat()  # before it runs: who never showed itself would never be missed
        storage.set_trial_user_attr(trial_id, "attempts", attempts)
        if found.state == TrialState.WAITING:
            storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        trial = optuna.Trial(self._load(stage, found.number), trial_id)
        given, chosen = dict(found.user_attrs.get("given", {})), {}
        if stage != "confirm":
            chosen = self.space.choose(arm_of(stage), functools.partial(sampling.suggest, trial))
            storage.set_trial_user_attr(trial_id, "chosen", chosen)
        lease = Lease(lock, beat, self.space.heartbeat_seconds)
        seconds = float(found.user_attrs.get("seconds", 0.0))
        return Claim(stage, found.number, chosen, given, attempts, seconds, trial, lease)

    def _is_ours(self, claim: Claim) -> bool:
        """Whether no other process has taken the trial up, or finished it, since this one took it."""
        now = self.store.backend.get_trial(claim.trial._trial_id)
        return bool(now.state == TrialState.RUNNING and now.user_attrs["attempts"] == claim.attempt)

    def report(self, claim: Claim, value: float, number: int) -> str:
        """Tell an intermediate value; returns why the trial should end, or "".

        A storage that cannot be reached is not asked.
        """
        with suppress(StorageError), self.store.reaching(), sampling.quietly():
            if not self._is_ours(claim):
                return TAKEN
            if len(self.space.objective) == 1:
                if number not in self.store.backend.get_trial(claim.trial._trial_id).intermediate_values:
                    claim.trial.report(value, number)  # not told before this process took it up
                if claim.trial.should_prune():
                    return "pruned"
        return ""

    def finish(
        self, claim: Claim, state: State, *, run: str, seconds: float, values: list[float] | None = None,
        metrics: dict[str, float] | None = None, reason: str = "",
    ) -> None:  # fmt: skip
        """Tell what became of a trial, and give it back."""
        facts = {"run": run, "seconds": seconds, "metrics": metrics or {}, "reason": reason}
        self._finish(claim, state, values, facts)
        claim.lease.release()

    @patient
    def _finish(self, claim: Claim, state: State, values: list[float] | None, facts: dict[str, Any]) -> None:
        trial, metrics = claim.trial, facts["metrics"]
        with self.store.reaching(), sampling.quietly():
            if not self._is_ours(claim):
                return
            for key, value in facts.items():
                trial.set_user_attr(key, value)
            known = trial.constraints
            for metric, limit in self.space.constraints.items():
                excess = metrics[metric] - limit if metric in metrics else float(state == "infeasible")
                if metric not in known:
                    trial.set_constraint(metric, excess)
            if _LIMITS not in known:
                trial.set_constraint(_LIMITS, float(state == "infeasible"))
            told = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(state, TrialState.PRUNED)
            values = values if state == "complete" else None
            if state == "infeasible" and not values and (worst := self._worst(claim.stage)):
                told, values = TrialState.COMPLETE, worst
            self._load(claim.stage, claim.number).tell(trial, values, state=told, skip_if_finished=True)

    def _worst(self, stage: str) -> list[float]:
        """What a sampler that needs values is told of a trial without any: the worst ones so far. [] for others."""
        complete = [trial for trial in self._trials(stage) if trial.state == TrialState.COMPLETE]
        if stage == "confirm" or not complete or not self.space.sampler.keys() & set(_NEED_VALUES):
            return []
        picks = [min if one.direction == "maximize" else max for one in self.space.objective]
        return [pick(trial.values[i] for trial in complete) for i, pick in enumerate(picks)]

    def put_back(self, claim: Claim, seconds: float, *, is_asked: bool = True) -> None:
        """Leave a trial for whoever goes on.

        Args:
            claim: the trial.
            seconds: that this process took for it.
            is_asked: this process was asked to stop, or could not begin: the trial is not to blame.
        """
        with suppress(StorageError), self.store.reaching():
            if self._is_ours(claim):
                trial_id = claim.trial._trial_id
                stops = int(claim.trial.user_attrs.get("stops", 0)) + is_asked
                self.store.backend.set_trial_user_attr(trial_id, "stops", stops)
                self.store.backend.set_trial_user_attr(trial_id, "seconds", claim.seconds + seconds)
                self.store.backend.set_trial_state_values(trial_id, TrialState.WAITING)
        claim.lease.release()

    def importances(self) -> dict[str, float]:
        """How much each setting matters to the first objective (PED-ANOVA, Watanabe et al. 2023, arXiv 2304.10255).

        Empty where too few trials are complete.
        """
        study, target = self._load("search"), None
        if len(self.space.objective) > 1:
            sign = -1 if self.space.objective[0].direction == "maximize" else 1
            target = lambda trial: sign * trial.values[0]  # noqa: E731 - with a target, Optuna takes low for good
        try:
            with sampling.quietly():
                warnings.filterwarnings("error", message=".*too small to compute importances")
                return dict(optuna.importance.get_param_importances(study, target=target))
        except (ValueError, RuntimeError, UserWarning):
            return {}


def arm_of(stage: str) -> Arm:
    """The stage as an arm."""
    return "baseline" if stage == "baseline" else "search"


def _waiting(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.WAITING]


def _record(arm: Arm, trial: FrozenTrial, space: SearchSpace) -> TrialRecord:
    attrs = trial.user_attrs
    state, metrics = _STATES[trial.state], attrs.get("metrics", {})
    is_told = trial.state == TrialState.COMPLETE
    broken = [
        f"{key} is {metrics[key]:.4g}, at most {limit:g} is allowed"
        for key, limit in space.constraints.items()
        if metrics.get(key, limit) > limit
    ]
    if state in ("complete", "pruned") and any(value > 0 for value in trial.constraints.values()):
        state = "infeasible"
    return TrialRecord(
        arm=arm,
        number=trial.number,
        state=state,
        params=attrs.get("chosen") or attrs.get("given") or {},
        values=[] if is_told and trial.constraints.get(_LIMITS, 0.0) > 0 else list(trial.values or []),
        intermediate=dict(trial.intermediate_values),
        metrics=metrics,
        run=attrs.get("run", ""),
        seconds=attrs.get("seconds", 0.0),
        reason=attrs.get("reason") or "; ".join(broken),
    )
