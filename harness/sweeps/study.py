"""A study in Optuna: who takes which trial, with which settings, and what became of it. The only door to optuna.

The search and its baseline are two Optuna studies in one storage, what is confirmed a third one, so that each sampler
and pruner sees its own trials. Several processes may work on them. One at a time takes a trial, under a lock of all
(a file beside the journal; an advisory lock of PostgreSQL), so that their number is exact. A trial whose process was
killed is taken up again: on one machine the system frees the lease of a dead process at once; through a database its
heartbeats stop. The sampler is made anew for each trial, seeded by the trial's number, so that a study that was stopped
goes on as if it had not been (with one worker).
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from harness.errors import StorageError, UserError
from harness.storage import RunLock
from harness.sweeps import sampling
from harness.sweeps.plan import Plan, definition, differences
from harness.sweeps.space import SearchSpace
from harness.sweeps.trials import Arm, State, TrialRecord

_STAGES: tuple[str, ...] = ("search", "baseline", "confirm")
_ATTEMPTS = 3
"""A trial whose process was killed so often is given up."""
_LOOK_SECONDS = 5.0
"""How often a process looks for trials that others left behind."""
_ADVISORY_LOCK = 0x6861726E65737300
_EFFORT = "memory and time"
"""The constraint that a trial breaks which runs out of either."""
_PATIENCE = (1, 2, 4, 8, 15, 30)
"""Seconds between attempts to reach a storage that does not answer."""
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
    """Of the trial in its stage; one that is taken up again keeps the first one's."""
    chosen: dict[str, Any]
    """Dotted key -> value."""
    given: dict[str, Any]
    """What a trial of the confirmation is about."""
    attempt: int
    """1, unless its process was killed before."""
    trial: optuna.Trial
    lease: _Lease


class _Lease:
    """Shows that this process works on a trial, until it is released or the process dies."""

    def __init__(self, storage: Any, trial_id: int, lock: RunLock | None, seconds: int) -> None:
        self._lock, self._released = lock, threading.Event()
        if lock is None:

            def beat() -> None:
                while True:
                    with suppress(Exception):  # the database may be away for a while
                        storage.record_heartbeat(trial_id)
                    if self._released.wait(seconds):
                        return

            threading.Thread(target=beat, name="heartbeat", daemon=True).start()

    def release(self) -> None:
        """Give it back; may be repeated."""
        self._released.set()
        if self._lock:
            self._lock.release()


class Study:
    """The trials of one plan, wherever they are kept.

    Raises:
        UserError: no such storage, another study of this name, SQLite for several workers.
        StorageError: the storage cannot be reached.
        SpecError: settings that the sampler or the pruner does not have.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Open the study, or begin it.

        Args:
            plan: what is searched.
            folder: of the study; the journal and its locks lie there.
        """
        self.plan, self.space, self.folder = plan, plan.space, folder
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampling.check(self.space)
        self.url = self.space.storage
        _refuse(self.url, self.space)
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = self.url is None
        self._looked: dict[str, float] = {}
        with _reaching(self.shown_storage):
            self._storage: Any = self._open()
        with _reaching(self.shown_storage), sampling.quietly(), self._alone():
            self._begin()

    @property
    def shown_storage(self) -> str:
        """Where it is kept, as `optuna-dashboard` is told; without a password."""
        if self.url is None:
            return str(self.folder / "journal.log")
        head, at, tail = self.url.rpartition("@")
        user = head.rpartition(":")[0] if at and head.count(":") > 1 else head
        return f"{user}{at}{tail}"

    def _open(self) -> Any:
        with sampling.quietly():
            if self._journal:
                backend = JournalFileBackend(str(self.folder / "journal.log"))
                return optuna.storages.JournalStorage(backend)
            again = optuna.storages.RetryHeartbeatStaleTrialCallback(_ATTEMPTS - 1, inherit_intermediate_values=True)
            return optuna.storages.RDBStorage(
                str(self.url),
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=self.space.heartbeat_seconds,
                grace_period=3 * self.space.heartbeat_seconds,
                heartbeat_stale_trial_callback=again,
            )

    def _begin(self) -> None:
        now = definition(self.plan)
        for stage in _STAGES:
            directions = [one.direction for one in self.space.objective]
            study = optuna.create_study(
                study_name=self._name(stage), storage=self._storage, directions=directions, load_if_exists=True
            )
            before = study.user_attrs.get("definition")
            if before is None:
                study.set_user_attr("definition", now)
                if stage == "search":
                    study.set_metric_names([one.metric for one in self.space.objective])
            elif changes := differences(before, now):
                raise UserError(
                    f"the study '{self.plan.name}' was begun with other settings:\n  " + "\n  ".join(changes),
                    where=self.shown_storage,
                    fix="put them back, or begin another one: study=<name>",
                )

    def _name(self, stage: str) -> str:
        return self.plan.name if stage == "search" else f"{self.plan.name}.{stage}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, no other process takes a trial of this study."""
        if self.url and self.url.startswith("postgresql"):
            import sqlalchemy

            key = _ADVISORY_LOCK ^ int.from_bytes(hashlib.sha256(self.plan.name.encode()).digest()[:4], "big")
            with self._storage.engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
                try:
                    yield
                finally:
                    connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})
        else:
            with FileLock(self.folder / "claim.lock"):
                yield

    def _load(self, stage: str, number: int = 0) -> optuna.Study:
        space = self.space
        chosen = None if stage == "confirm" else sampling.sampler(space, space.parameters(arm_of(stage)), stage, number)
        known = {"study_name": self._name(stage), "storage": self._storage}
        return optuna.load_study(**known, sampler=chosen, pruner=sampling.pruner(space))

    # What all processes know

    def remember(self, key: str, value: str) -> None:
        """Keep a fact about the study for all processes."""
        self._load("search").set_user_attr(key, value)

    def recall(self, key: str) -> str | None:
        """A fact that was kept."""
        found: str | None = self._load("search").user_attrs.get(key)
        return found

    def lead(self, me: str) -> bool:
        """Whether this process may lead: nobody did, or it did before, or whoever did has left it unfinished."""
        with self._alone():
            leader = self.recall("leader")
            others = any(trial.state == TrialState.RUNNING for stage in _STAGES for trial in self._trials(stage))
            if leader not in (None, me) and others:
                return False
            self.remember("leader", me)
            return True

    def records(self, stage: str) -> list[TrialRecord]:
        """Every trial of a stage, in order; one that was taken up again is one."""
        trials = self._trials(stage)
        return [_record(trial.user_attrs.get("given", {}).get("arm", stage), trial, self.space) for trial in trials]

    def _trials(self, stage: str) -> list[FrozenTrial]:
        with _reaching(self.shown_storage):
            trials = self._load(stage).get_trials(deepcopy=False)
        given_up = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
        return [trial for trial in trials if trial.number not in given_up]

    def plan_confirmation(self, tasks: list[dict[str, Any]]) -> None:
        """Make one waiting trial for each task, unless it was done."""
        with self._alone():
            study = self._load("confirm")
            known = [trial.user_attrs.get("given") for trial in study.get_trials(deepcopy=False)]
            for task in tasks:
                if task not in known:
                    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"given": task}))

    def is_open(self, stage: str) -> bool:
        """Whether trials of a stage are left to be taken or are being worked on."""
        trials = self._trials(stage)
        if any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials):
            return True
        return stage != "confirm" and not self._is_spent(stage, trials)

    def _is_spent(self, stage: str, trials: list[FrozenTrial]) -> bool:
        limit = self.space.trials if self.space.trials is not None else None
        if "grid" in self.space.sampler:
            size = len(self.space.grid(arm_of(stage)))
            limit = size if limit is None else min(limit, size)
        if limit is not None and len(trials) >= limit:
            return True
        spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
        return self.space.minutes is not None and spent >= 60 * self.space.minutes

    # A trial's life

    def claim(self, stage: str) -> Claim | None:
        """Take a trial: one that was left behind, one that waits, or a new one; None: there is none to be taken now."""
        with _reaching(self.shown_storage), sampling.quietly(), self._alone():
            if not self._journal:
                optuna.storages.fail_stale_trials(self._load(stage))
            trials = self._trials(stage)
            if self._journal and time.monotonic() - self._looked.get(stage, -_LOOK_SECONDS) >= _LOOK_SECONDS:
                for trial in trials:
                    if trial.state == TrialState.RUNNING and (claim := self._take(stage, trial)):
                        return claim
                self._looked[stage] = time.monotonic()
            for trial in trials:
                if trial.state == TrialState.WAITING and (claim := self._take(stage, trial)):
                    return claim
            if stage == "confirm" or self._is_spent(stage, trials):
                return None
            study = self._load(stage)
            study_id = self._storage.get_study_id_from_name(self._name(stage))
            template = optuna.create_trial(state=TrialState.WAITING, **self._grid_cell(stage, trials))
            trial_id = self._storage.create_new_trial(study_id, template_trial=template)
            return self._take(stage, study._storage.get_trial(trial_id))

    def _grid_cell(self, stage: str, trials: list[FrozenTrial]) -> dict[str, Any]:
        """A trial that begins with the next configuration of a grid, in an order drawn once."""
        if "grid" not in self.space.sampler:
            return {}
        cells = [json.dumps(cell, sort_keys=True) for cell in self.space.grid(arm_of(stage))]
        cells.sort(key=lambda cell: hashlib.sha256(f"{self.space.sampler_seed} {cell}".encode()).digest())
        done = {trial.user_attrs.get("cell") for trial in trials}
        cell = next(cell for cell in cells if cell not in done)
        given = sampling.fixed(self.space.parameters(arm_of(stage)), json.loads(cell))
        return {"user_attrs": {"cell": cell}, "system_attrs": {"fixed_params": given}}

    def _take(self, stage: str, found: FrozenTrial) -> Claim | None:
        """Claim a trial that waits or was left behind; None: another process has it, or it was killed too often."""
        trial_id = found._trial_id
        first = (found.system_attrs.get("retry_history") or [found.number])[0]
        lock = RunLock(self.folder, f"{stage}-{first:04d}") if self._journal else None
        if lock:
            try:
                lock.acquire()
            except UserError:
                return None
        attempts = int(found.user_attrs.get("attempts", 0)) + 1
        kills = attempts - 1 - int(found.user_attrs.get("stops", 0))
        if found.state == TrialState.WAITING:
            self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        elif kills >= _ATTEMPTS:
            self._storage.set_trial_user_attr(trial_id, "reason", f"its process was killed {_ATTEMPTS} times")
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            cast(RunLock, lock).release()
            return None
        self._storage.set_trial_user_attr(trial_id, "attempts", attempts)
        lease = _Lease(self._storage, trial_id, lock, self.space.heartbeat_seconds)
        trial = optuna.Trial(self._load(stage, first), trial_id)
        given, chosen = dict(found.user_attrs.get("given", {})), {}
        if stage != "confirm":
            chosen = self.space.choose(arm_of(stage), partial(sampling.suggest, trial))
            self._storage.set_trial_user_attr(trial_id, "chosen", chosen)
        return Claim(stage, first, chosen, given, attempts, trial, lease)

    def report(self, claim: Claim, value: float, number: int) -> str:
        """Tell an intermediate value; returns why the trial should end, or "".

        A storage that cannot be reached is not asked.
        """
        with suppress(StorageError), _reaching(self.shown_storage), sampling.quietly():
            if len(self.space.objective) == 1:
                if number not in self._storage.get_trial(claim.trial._trial_id).intermediate_values:
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
        for pause in (*_PATIENCE, None):
            try:
                self._finish(claim, state, values, facts)
                break
            except StorageError:
                if pause is None:
                    raise
                time.sleep(pause)
        claim.lease.release()

    def _finish(self, claim: Claim, state: State, values: list[float] | None, facts: dict[str, Any]) -> None:
        trial, metrics = claim.trial, facts["metrics"]
        with _reaching(self.shown_storage), sampling.quietly():
            for key, value in facts.items():
                trial.set_user_attr(key, value)
            known = trial.constraints
            for metric, limit in self.space.constraints.items():
                excess = metrics[metric] - limit if metric in metrics else float(state == "infeasible")
                if metric not in known:
                    trial.set_constraint(metric, excess)
            if _EFFORT not in known:
                trial.set_constraint(_EFFORT, float(state == "infeasible"))
            told = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(state, TrialState.PRUNED)
            values = values if state == "complete" else None
            self._load(claim.stage, claim.number).tell(trial, values, state=told, skip_if_finished=True)

    def put_back(self, claim: Claim) -> None:
        """Leave a trial for whoever goes on: this process was asked to stop."""
        with suppress(StorageError), _reaching(self.shown_storage):
            trial_id = claim.trial._trial_id
            self._storage.set_trial_user_attr(trial_id, "stops", int(claim.trial.user_attrs.get("stops", 0)) + 1)
            self._storage.set_trial_state_values(trial_id, TrialState.WAITING)
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
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # so it says that the trials are too few
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return dict(optuna.importance.get_param_importances(study, target=target))
        except (ValueError, RuntimeError, UserWarning):
            return {}


def arm_of(stage: str) -> Arm:
    """The stage as an arm."""
    return "baseline" if stage == "baseline" else "search"


def _record(arm: Arm, trial: FrozenTrial, space: SearchSpace) -> TrialRecord:
    attrs = trial.user_attrs
    state, metrics = _STATES[trial.state], attrs.get("metrics", {})
    broken = [
        f"{key} is {metrics[key]:.4g}, at most {limit:g} is allowed"
        for key, limit in space.constraints.items()
        if metrics.get(key, limit) > limit
    ]
    if state in ("complete", "pruned") and any(value > 0 for value in trial.constraints.values()):
        state = "infeasible"
    return TrialRecord(
        arm=arm,
        number=(trial.system_attrs.get("retry_history") or [trial.number])[0],
        state=state,
        params=attrs.get("chosen") or attrs.get("given") or {},
        values=list(trial.values or []),
        intermediate=dict(trial.intermediate_values),
        metrics=metrics,
        run=attrs.get("run", ""),
        seconds=attrs.get("seconds", 0.0),
        reason=attrs.get("reason") or "; ".join(broken),
    )


def _refuse(url: str | None, space: SearchSpace) -> None:
    """Raise UserError for a storage that does not suit."""
    if url is None:
        return
    if url.startswith("sqlite:"):
        if space.workers > 1 or space.executor != "local":
            why = "of several workers that begin on SQLite at once some crash"
            raise UserError(
                "SQLite is for one worker", where="storage", why=why, fix="leave storage out, or name PostgreSQL"
            )
    elif not url.startswith("postgresql"):
        raise UserError(
            f"'{url.partition(':')[0]}' is no storage for studies", where="storage",
            fix="leave it out (a journal file), or postgresql+psycopg://user@host/database",
        )  # fmt: skip


@contextmanager
def _reaching(place: str) -> Iterator[None]:
    """Around what needs the storage. Raises StorageError if it cannot be reached."""
    try:
        yield
    except ModuleNotFoundError as error:
        fix = "pip install 'harness[cluster]'"
        raise UserError(f"the driver of the storage is not installed: {error.name}", where="storage", fix=fix) from None
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError("the study's storage cannot be reached", where=place, why=_first_line(error)) from error
    except Exception as error:
        if type(error).__module__.startswith(("sqlalchemy", "psycopg")):
            raise StorageError("the study's storage cannot be reached", where=place, why=_first_line(error)) from error
        raise


def _first_line(error: BaseException) -> str:
    told = error.__cause__ or error
    return (str(told).splitlines() or [type(told).__name__])[0]
