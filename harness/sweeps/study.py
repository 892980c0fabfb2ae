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
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

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
_MISSED_BEATS = 3
"""A trial whose process was not seen for so long is taken up by another one."""
_EFFORT = "memory and time"
"""The constraint that a trial breaks which runs out of either."""
_PATIENCE = (1, 2, 4, 8, 15, 30)
"""Seconds between attempts to reach a storage that does not answer."""
TAKEN = "another process took it up"
"""Why a process leaves a trial that it could not show its life for."""
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_Method = TypeVar("_Method", bound=Callable[..., Any])


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
    trial: optuna.Trial
    lease: _Lease


class _Lease:
    """Shows that this process works on a trial, until it is released or the process dies."""

    def __init__(self, lock: RunLock, beat: Callable[[], None] | None, seconds: int) -> None:
        """`beat` shows it to other machines."""
        self._lock, self._released = lock, threading.Event()
        if beat:
            threading.Thread(target=self._beat, args=(beat, seconds), name="heartbeat", daemon=True).start()

    def _beat(self, beat: Callable[[], None], seconds: int) -> None:
        while not self._released.wait(seconds):
            with suppress(Exception):  # the database may be away for a while
                beat()

    def release(self) -> None:
        """Give it back; may be repeated."""
        self._released.set()
        self._lock.release()


def _patient(method: _Method) -> _Method:
    """A storage that does not answer is asked again, for a minute."""

    @functools.wraps(method)
    def asking(*args: Any, **kwargs: Any) -> Any:
        for pause in _PATIENCE:
            with suppress(StorageError):
                return method(*args, **kwargs)
            time.sleep(pause)
        return method(*args, **kwargs)

    return cast(_Method, asking)


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
        self._beats = (self.url or "").startswith("postgresql")
        now = definition(plan)
        with _reaching(self.shown_storage), sampling.quietly(), self._alone():
            self._storage: Any = self._open()
            self._begin(now)

    @property
    def shown_storage(self) -> str:
        """Where it is kept, as `optuna-dashboard` is told; without a password."""
        if self.url is None:
            return str(self.folder / "journal.log")
        return re.sub(r"(?<=[?&])password=[^&]*&?", "", re.sub(r"(://[^:/@]*):.*@", r"\1@", self.url))

    def _open(self) -> Any:
        if self.url is None:
            return optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))
        seconds = self.space.heartbeat_seconds if self._beats else None
        found = optuna.storages.RDBStorage(
            self.url,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=seconds,
            grace_period=seconds and _MISSED_BEATS * seconds,
        )
        return optuna.storages.get_storage(found)  # once: it remembers finished trials

    def close(self) -> None:
        """Hang up."""
        if self.url is not None:
            self._storage._backend.engine.dispose()

    def _begin(self, now: dict[str, Any]) -> None:
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
        with ExitStack() as stack:
            stack.enter_context(FileLock(self.folder / "claim.lock"))
            if self._beats:
                stack.enter_context(self._advisory_lock("claim", waits=True))
            yield

    @contextmanager
    def _advisory_lock(self, of: str, *, waits: bool) -> Iterator[bool]:
        """Whether this process has one of PostgreSQL's locks; its connection's end, however it comes, frees it."""
        import sqlalchemy

        how = "pg_advisory_lock" if waits else "pg_try_advisory_lock"
        key = int.from_bytes(hashlib.sha256(f"harness {self.plan.name} {of}".encode()).digest()[:8], "big", signed=True)
        engine = sqlalchemy.create_engine(str(self.url), poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            got = connection.execute(sqlalchemy.text(f"SELECT {how}(:key)"), {"key": key}).scalar()
            yield waits or bool(got)

    @contextmanager
    def leading(self, output: Path) -> Iterator[bool]:
        """Whether this process leads, as one of all may; its death, however it comes, makes room.

        `output`: the runs folder; the lock of the study's own run lies there.
        """
        lock = RunLock(output, self.plan.name)
        with ExitStack() as stack:
            try:
                lock.acquire()
            except UserError:
                yield False
                return
            stack.callback(lock.release)
            with _reaching(self.shown_storage):
                leads = not self._beats or stack.enter_context(self._advisory_lock("lead", waits=False))
            yield leads

    def _load(self, stage: str, number: int = 0) -> optuna.Study:
        space = self.space
        chosen = None if stage == "confirm" else sampling.sampler(space, space.parameters(arm_of(stage)), stage, number)
        known = {"study_name": self._name(stage), "storage": self._storage}
        return optuna.load_study(**known, sampler=chosen, pruner=sampling.pruner(space))

    # What all processes know

    @_patient
    def remember(self, key: str, value: str) -> None:
        """Keep a fact about the study for all processes."""
        with _reaching(self.shown_storage):
            self._load("search").set_user_attr(key, value)

    @_patient
    def recall(self, key: str) -> str | None:
        """A fact that was kept."""
        with _reaching(self.shown_storage):
            found: str | None = self._load("search").user_attrs.get(key)
            return found

    @_patient
    def records(self, stage: str) -> list[TrialRecord]:
        """Every trial of a stage, in order."""
        return self.look(stage)

    def look(self, stage: str) -> list[TrialRecord]:
        """The same, without patience."""
        trials = self._trials(stage)
        return [_record(trial.user_attrs.get("given", {}).get("arm", stage), trial, self.space) for trial in trials]

    def _trials(self, stage: str) -> list[FrozenTrial]:
        with _reaching(self.shown_storage):
            return self._load(stage).get_trials(deepcopy=False)

    @_patient
    def plan_confirmation(self, tasks: list[dict[str, Any]]) -> None:
        """Make one waiting trial for each task, unless there is one; one that failed is tried again, a few times."""
        with _reaching(self.shown_storage), self._alone():
            study = self._load("confirm")
            done = study.get_trials(deepcopy=False)
            for task in tasks:
                states = [trial.state for trial in done if trial.user_attrs.get("given") == task]
                if states.count(TrialState.FAIL) == len(states) < _ATTEMPTS:
                    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"given": task}))

    @_patient
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

    @_patient
    def claim(self, stage: str) -> Claim | None:
        """Take a trial: one that was left behind, one that waits, or a new one; None: there is none to be taken now."""
        with _reaching(self.shown_storage), sampling.quietly(), self._alone():
            trials = self._trials(stage)
            for trial in [*self._out_of_sight(stage, trials), *_waiting(trials)]:
                if claim := self._take(stage, trial):
                    return claim
            if stage == "confirm" or self._is_spent(stage, trials):
                return None
            study_id = self._storage.get_study_id_from_name(self._name(stage))
            template = optuna.create_trial(state=TrialState.WAITING, system_attrs=self._grid_cell(stage, trials))
            trial_id = self._storage.create_new_trial(study_id, template_trial=template)
            return self._take(stage, self._storage.get_trial(trial_id))

    def _out_of_sight(self, stage: str, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Trials that somebody works on who may be dead; whoever gets their lease knows."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if self._beats and running:
            silent = self._storage._get_stale_trial_ids(self._storage.get_study_id_from_name(self._name(stage)))
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
        """Claim a trial that waits or was left behind; None: another process has it, or it was killed too often."""
        lock = RunLock(self.folder, f"{stage}-{found.number:04d}")
        try:
            lock.acquire(attempts=1)
        except UserError:
            return None
        try:
            claim = self._begin_attempt(stage, found, lock)
        except BaseException:
            lock.release()
            raise
        if claim is None:
            lock.release()
        return claim

    def _begin_attempt(self, stage: str, found: FrozenTrial, lock: RunLock) -> Claim | None:
        trial_id, storage = found._trial_id, self._storage
        attempts = int(found.user_attrs.get("attempts", 0)) + 1
        if attempts - int(found.user_attrs.get("stops", 0)) > _ATTEMPTS:
            storage.set_trial_user_attr(trial_id, "reason", f"its process ended {_ATTEMPTS} times while it ran")
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        beat = functools.partial(storage.record_heartbeat, trial_id) if self._beats else None
        if beat:
            beat()  # before it runs: who never showed itself would never be missed
        storage.set_trial_user_attr(trial_id, "attempts", attempts)
        if found.state == TrialState.WAITING:
            storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        trial = optuna.Trial(self._load(stage, found.number), trial_id)
        given, chosen = dict(found.user_attrs.get("given", {})), {}
        if stage != "confirm":
            chosen = self.space.choose(arm_of(stage), functools.partial(sampling.suggest, trial))
            storage.set_trial_user_attr(trial_id, "chosen", chosen)
        lease = _Lease(lock, beat, self.space.heartbeat_seconds)
        return Claim(stage, found.number, chosen, given, attempts, trial, lease)

    def _is_ours(self, claim: Claim) -> bool:
        """Whether no other process has taken the trial up, or finished it, since this one took it."""
        now = self._storage.get_trial(claim.trial._trial_id)
        return bool(now.state == TrialState.RUNNING and now.user_attrs["attempts"] == claim.attempt)

    def report(self, claim: Claim, value: float, number: int) -> str:
        """Tell an intermediate value; returns why the trial should end, or "".

        A storage that cannot be reached is not asked.
        """
        with suppress(StorageError), _reaching(self.shown_storage), sampling.quietly():
            if not self._is_ours(claim):
                return TAKEN
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
        self._finish(claim, state, values, facts)
        claim.lease.release()

    @_patient
    def _finish(self, claim: Claim, state: State, values: list[float] | None, facts: dict[str, Any]) -> None:
        trial, metrics = claim.trial, facts["metrics"]
        with _reaching(self.shown_storage), sampling.quietly():
            if not self._is_ours(claim):
                return
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

    def put_back(self, claim: Claim, *, is_asked: bool = True) -> None:
        """Leave a trial for whoever goes on. `is_asked`: this process was asked to stop, the trial is not to blame."""
        with suppress(StorageError), _reaching(self.shown_storage):
            if self._is_ours(claim):
                trial_id = claim.trial._trial_id
                stops = int(claim.trial.user_attrs.get("stops", 0)) + is_asked
                self._storage.set_trial_user_attr(trial_id, "stops", stops)
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
    elif url.partition("?")[0].count("@") > 1:
        why = "the driver would take the rest of the password for the host, and name it"
        raise UserError("the password holds an @", where="storage", why=why, fix="write it as %40")


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
        if isinstance(error, OSError) or type(error).__module__.startswith(("sqlalchemy", "psycopg")):
            raise StorageError("the study's storage cannot be reached", where=place, why=_first_line(error)) from error
        raise


def _first_line(error: BaseException) -> str:
    told = error.__cause__ or error
    return (str(told).splitlines() or [type(told).__name__])[0]
