"""`sweep=`: a study from its first trial to its report, by one process, several, or a Ray cluster.

One process leads: it holds the study's run in MLflow and makes the report. Whoever else runs the same command on the
same storage takes trials. Killed at any moment, the same command goes on.
"""

from __future__ import annotations

import json
import os
import shlex
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness import notes, storage
from harness.console import Terminal
from harness.errors import Interrupted, SpecError, UserError
from harness.specs.schema import Spec
from harness.sweeps.crew import Crew, local_crew, ray_crew
from harness.sweeps.plan import Plan, definition, differences, trial_spec
from harness.sweeps.study import Study
from harness.sweeps.view import StudyView
from harness.tracking import stores
from harness.tracking.sending import sync, sync_command, waiting
from harness.tracking.tracker import Tracker

if TYPE_CHECKING:
    from harness.session import Session

_LOOK_SECONDS = 1.0
_PARENT_SECONDS = 60.0
"""How long the study's run in MLflow may take to be made."""
_SPOOLS_SECONDS = 30.0
"""How long a study waits at its end for a store to take what its workers had no time to send."""


def run(plan: Plan, arguments: list[str], *, is_worker: bool = False, quiet: bool = False) -> Path | None:
    """Begin a study, go on with it, or help with it; returns its report.json, or None where another process makes it.

    Args:
        plan: what is searched.
        arguments: of the command line, for further workers.
        is_worker: take trials only; another process leads.
        quiet: say nothing but notes, and how a study that did not end goes on.

    Raises:
        UserError: before anything is trained, for whatever cannot work.
        TrainingError, StorageError, Interrupted: the same command goes on.
    """
    first = trial_spec(plan, "search", plan.first("search"), [])
    folder = storage.writable(storage.PROJECT / first.output) / "studies" / plan.name
    several = plan.space.workers > 1 or plan.space.executor == "ray"
    if several and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "a trial on several GPUs: accelerate launch and workers=1; several trials: python launch.py and workers=N"
        raise SpecError("several workers of several processes each", where="workers", fix=fix)
    if several and not is_worker:
        study: Study | None = _supervise(plan, first, folder, arguments, quiet)
    else:
        study = _work(plan, first, folder, is_worker, quiet)
    if study is None or is_worker:
        return None
    from harness.sweeps.conclusion import is_concluded

    return folder / "report.json" if is_concluded(study) else None


def _work(plan: Plan, first: Spec, folder: Path, is_worker: bool, quiet: bool) -> Study | None:
    """Take trials in this process, and lead if nobody does; returns the study, on the first process."""
    from harness.session import begin
    from harness.sweeps.conclusion import conclude
    from harness.sweeps.worker import CONFIRM, Worker, plan_confirmation

    study = Study(plan, folder) if os.environ.get("RANK", "0") == "0" else None
    session = begin(first, quiet=quiet)
    with session.all_processes(), ExitStack() as stack:
        lead = (
            stack.enter_context(_leading(plan, study, session.output, session.terminal))
            if study and not is_worker
            else None
        )
        view = stack.enter_context(StudyView(plan.space, session.terminal))
        if study:
            _refuse_other_inputs(study, session)
        if study and lead:
            _tell_parent(study, lead)
        parent = _parent(study) if study else None
        worker = Worker(plan, session, study, parent, view)
        _say_begin(plan, study, session.terminal, lead, view)
        worker.work(tuple(plan.space.arms))
        if study:
            plan_confirmation(plan, study)
        worker.work(CONFIRM)
        if study:
            view.close(study)
        if study and lead:
            conclude(plan, study, session, lead)
        elif study and not is_worker:
            _replace(plan, study, first, session.terminal, session)
    return study


def _refuse_other_inputs(study: Study, session: Session) -> None:
    """Raise UserError if the data or the pretrained model are not those that the study began with."""
    splits, model = session.loaded.splits, session.loaded.base_model
    now = {f"{of.name} split": of.digest for of in (splits.train, splits.validation, splits.test)} | model
    if (known := study.recall("inputs")) is None:
        study.remember("inputs", json.dumps(now))
    elif changes := differences(json.loads(known), now):
        fix = "put them back, or begin another one: study=<name>"
        raise UserError("the study was begun with other inputs:\n  " + "\n  ".join(changes), fix=fix)


def _tell_parent(study: Study, lead: Tracker) -> None:
    """Let all workers know MLflow's id of the study's run; "": it could not be made in time."""
    run_id = lead.wait_open(_PARENT_SECONDS)
    if run_id or study.recall("mlflow_run") is None:
        study.remember("mlflow_run", run_id or "")
    from harness.machine import device

    lead.params(device.describe())


def _parent(study: Study) -> str | None:
    """MLflow's id of the study's run, which who leads is about to make; None: it is not known."""
    end = time.monotonic() + _PARENT_SECONDS
    while (found := study.recall("mlflow_run")) is None and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    return found or None


def _replace(plan: Plan, study: Study, first: Spec, terminal: Terminal, session: Session | None = None) -> None:
    """Make the report in the place of a process that led the study and is gone without."""
    from harness.session import begin
    from harness.sweeps.conclusion import conclude, is_concluded

    if not is_concluded(study):
        with _leading(plan, study, storage.PROJECT / first.output, terminal) as lead:
            if lead:
                terminal.say("the process that led this study is gone: this one makes the report")
                conclude(plan, study, session or begin(first, quiet=terminal.quiet), lead)


def _supervise(plan: Plan, first: Spec, folder: Path, arguments: list[str], quiet: bool) -> Study:
    """Let other processes take the trials, look after them, and conclude.

    They begin before this process imports what it needs itself, PyTorch and the data: seconds.
    """
    study, terminal, output = Study(plan, folder), Terminal(quiet=quiet), storage.PROJECT / first.output
    with _leading(plan, study, output, terminal) as lead:
        make = ray_crew if plan.space.executor == "ray" else local_crew
        with StudyView(plan.space, terminal, plan.space.workers) as view:
            _say_begin(plan, study, terminal, lead, view)
            if lead:
                lead.open()
            crew: Crew
            with make(plan.space, arguments, folder) as crew:
                if lead:
                    _tell_parent(study, lead)
                    from harness.session import begin

                    session = begin(first, quiet=quiet)
                while crew.is_at_work():
                    view.show(study)
                    time.sleep(_LOOK_SECONDS)
            view.close(study)
        if lead:
            from harness.sweeps.conclusion import conclude

            conclude(plan, study, session, lead)
    if not lead:
        _replace(plan, study, first, terminal)
    return study


@contextmanager
def _leading(plan: Plan, study: Study, output: Path, terminal: Terminal) -> Iterator[Tracker | None]:
    """Hold the study's run in MLflow; None: another process leads. Tells how a study that did not end goes on."""
    with study.store.leading(output) as leads:
        if not leads:
            yield None
            return
        tracker, identity = _start_tracker(plan, study, output), study.identity
        status = "FAILED"
        try:
            tracker.params({"sweep": plan.space.name, "exp": plan.exp, **_flat(definition(plan)["definition"])})
            yield tracker
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)
            _send_spools(output, identity, plan.space.arms)
            if status != "FINISHED":
                terminal.say(f"resume  the same command again: it goes on with the study {plan.name}", always=True)


def _send_spools(output: Path, identity: str, arms: Iterable[str]) -> None:
    """Send what trials kept: who leads can wait longer for a busy store than a worker that was stopped.

    Ends in time whatever the store does: a spool stays until all of it was sent.
    """
    tags = [{"study_id": identity, "arm": arm} for arm in arms]

    def send() -> None:
        for of in tags:
            list(sync(output, tags=of))

    def left() -> int:
        return sum(len(waiting(output, of)) for of in tags)

    if left():
        sender = threading.Thread(target=send, name="spools", daemon=True)
        sender.start()
        sender.join(_SPOOLS_SECONDS)
    if number := left():
        what = f"not everything is in MLflow: records of {number} trials wait in {output / 'spool'}"
        notes.note(f"{what}; send them with: {sync_command(output)}")


def _start_tracker(plan: Plan, study: Study, output: Path) -> Tracker:
    """The study's own run, the parent of those of its trials; its id is known to all workers."""
    first = trial_spec(plan, "search", plan.first("search"), [])
    tags = {"study": plan.name, "study_id": study.identity, "kind": "study", "folder": str(study.folder)}
    is_known = not study.is_new or study.recall("mlflow_run") is not None
    store = stores.shown_uri(first.tracking.uri, output)
    if study.recall("mlflow_store") != store or not study.recall("mlflow_run"):
        study.remember("mlflow_run", None)  # of another store, or none: who helps waits for this one
        study.remember("mlflow_store", store)
    return stores.start(first.tracking, output, plan.name, plan.name, tags=tags, note=plan.space.story, resume=is_known)


def _flat(about: dict[str, object], prefix: str = "study") -> dict[str, object]:
    return {f"{prefix}.{key}": value for key, value in about.items()}


def _say_begin(plan: Plan, study: Study | None, terminal: Terminal, lead: Tracker | None, view: StudyView) -> None:
    if study is None:
        return
    terminal.title(f"\nstudy {plan.name}")
    terminal.say(" and ".join(plan.size(arm) for arm in plan.space.arms))
    terminal.say(f"watch: optuna-dashboard {shlex.quote(study.store.shown)}")
    view.begin(study)
    if lead is None:
        terminal.say("another process leads this study: this one helps with its trials")
