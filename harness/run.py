"""One spec -> finished runs, one per seed: the one place where everything meets, read from top to bottom.

A run that was stopped goes on in its own folder, under its own name and statements, in its own MLflow run.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import assembly, banners, checkpoint, faults, registry, replicates, storage
from harness.assembly import Assembled
from harness.checkpoint import Checkpoints, Snapshot, Unsigned
from harness.checks import selftest
from harness.curves import history_of, tell
from harness.errors import StorageError
from harness.evaluate import Evaluator
from harness.fingerprint import Statement
from harness.machine import device, processes
from harness.metric import Metric
from harness.results import judgement, record
from harness.selection import Oversight, Selection
from harness.session import Session, begin
from harness.signing import ledger, provenance
from harness.specs.schema import Spec
from harness.tracking import stores  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One finished run."""

    name: str
    seed: int
    folder: Path
    run_id: str | None
    """MLflow's; None: it has no such run, or this one was finished before."""
    scores: dict[str, float]
    parent: tuple[str, str | None] | None = None
    """Name and MLflow's id of the parent of replicates it belongs to."""


def run(spec: Spec, *, resume: str | None = None, insecure: bool = False, quiet: bool = False) -> list[Result]:
    """Train and judge every seed of a spec; several seeds become children of one parent run.

    Args:
        spec: what to run.
        resume: the name of a run, or of a parent of replicates, that was stopped: it goes on; `spec` is its own.
        insecure: go on from checkpoints that are not signed with a key of the keyring.
        quiet: say nothing but notes, and how a run that did not end goes on.

    Raises:
        UserError: before training and before anything is written, for whatever cannot work.
        TrainingError, StorageError, Interrupted: after the tracker was told how the run ended.
    """
    session = begin(spec, insecure, quiet=quiet)
    part = f"s{spec.seeds[0]}" if len(spec.seeds) == 1 else f"x{len(spec.seeds)}"
    name = session.same_name(resume or f"{spec.name[:40]}-{part}-{os.urandom(2).hex()}")
    with session.all_processes():
        results = run_in(session, name)
        session.terminal.say(f"\nMLflow  {stores.ui_command(spec.tracking.uri, session.output)}")
    return results


def run_in(session: Session, name: str, parent: str | None = None, oversight: Oversight | None = None) -> list[Result]:
    """Begin a run of this name, or go on with it; its results are read where it is finished.

    Args:
        session: what it runs in, with its spec.
        name: of the run; of several seeds, of the parent of replicates.
        parent: MLflow's id of the run it belongs to.
        oversight: who may end it early.

    Raises:
        UserError, TrainingError, StorageError, Interrupted: as `run`.
        Stopped: `oversight` ended it.
    """
    assembled: Assembled | None = assembly.assemble(session.spec, session.loaded, session.spec.seeds[0])  # mistakes
    banners.say_begin(session, storage.safe_name(name))
    if len(session.spec.seeds) > 1:
        assembled = None  # every replicate makes its own: two models are never held at once
        return _run_replicates(session, storage.safe_name(name), parent, oversight)
    (seed,) = session.spec.seeds
    of = _Run(session, storage.safe_name(name), seed, parent, oversight, of_group=oversight is not None)
    return [_same_result(of) or _run_seed(of, assembled)]


@dataclass(frozen=True)
class _Run:
    """One run that is to be made or gone on with."""

    session: Session
    name: str
    seed: int
    parent: str | None
    oversight: Oversight | None
    of_group: bool
    """Who goes on with the group goes on with it."""
    is_replicate: bool = False
    """It has a heading of its own."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.session.output / "runs" / self.name


def _run_replicates(session: Session, group: str, parent: str | None, oversight: Oversight | None) -> list[Result]:
    """Every seed as a child run; the parent holds means and spreads. Those that are finished are read, not repeated."""
    spec, terminal, folder = session.spec, session.terminal, session.output / "runs" / group
    tracker = session.start_tracker(group, parent, is_resumed=folder.exists())
    results: list[Result] = []
    with session.working(group, tracker, of_group=oversight is not None):
        if session.accelerator.is_main_process:
            record.write_spec(spec, spec.seeds, folder)
            if session.tags:
                storage.write_json(folder / "trial.json", session.tags)
        tracker.params({**spec.flat(), **device.describe()})
        parent_id = tracker.wait_open(60)
        for number, seed in enumerate(spec.seeds):
            one = oversight.of_seed(number, [r.scores for r in results]) if oversight else None
            of = _Run(session, name_of_child(group, seed), seed, parent_id, one, of_group=True, is_replicate=True)
            results.append(_same_result(of) or _run_seed(of, None))
        if session.accelerator.is_main_process:
            scores, names = [one.scores for one in results], [one.name for one in results]
            replicates.summarise(scores, names, session.loaded.task.headline, folder, tracker, terminal)
    return [replace(one, parent=(group, tracker.run_id)) for one in results]


def name_of_child(group: str, seed: int) -> str:
    """A replicate's name: `lora-s1-3f9a` of `lora-x3-3f9a`; any other name with the seed behind it."""
    of_seeds = re.fullmatch(r"(.*)-x[0-9]+-([0-9a-f]{4})", group)
    return storage.safe_name(f"{of_seeds[1]}-s{seed}-{of_seeds[2]}" if of_seeds else f"{group}-s{seed}")


def _same_result(of: _Run) -> Result | None:
    """A run that is sealed already, as its end statement tells it, on all processes; None: it is not.

    What follows the seal may be missing, if it was killed there: it is done again, which changes nothing where it was
    done before.
    """
    session, folder, found = of.session, of.folder, None
    if session.accelerator.is_main_process and (folder / "end.envelope.json").exists():
        envelope = provenance.open_envelope(folder / "end.envelope.json", session.keyring)
        is_doubtful = envelope.check.ok is not True and bool(session.keyring) and not session.insecure
        if envelope.predicate is None or is_doubtful:
            raise StorageError(f"the end statement of {of.name} cannot be trusted", why=envelope.check.detail)
        session.terminal.say(f"\n{of.name} is finished already")
        ledger.append(session.output, ledger.Entry(envelope.attestation_id, "end", of.name))
        found = Result(of.name, of.seed, folder, None, envelope.predicate["metrics"])
        if (folder / "checkpoints").is_dir():
            _complete(of, found)
    finished: Result | None = processes.from_first(session.accelerator, found)
    return finished


def _complete(of: _Run, result: Result) -> None:
    """Send the record of a run that was killed after it was sealed, and remove its checkpoints."""
    session = of.session
    tracker = session.start_tracker(of.name, of.parent, is_resumed=True)
    with session.working(of.name, tracker, of_group=True):
        checkpoints = Checkpoints(of.folder, 2, Unsigned(), session.keyring, insecure=session.insecure)
        with suppress(StorageError):
            snapshot = checkpoints.newest()
            if snapshot:
                tell(history_of(snapshot), tracker)
        record.send_end(session.spec, session.loaded.task.headline, of.folder, result.scores, tracker)
        checkpoints.clear()


def _run_seed(of: _Run, assembled: Assembled | None) -> Result:
    """One run, from the pretrained model or from its last checkpoint to the sealed folder.

    Assembles the model unless one is given.
    """
    session, name, seed, folder = of.session, of.name, of.seed, of.folder
    spec, loaded, accelerator, terminal = session.spec, session.loaded, session.accelerator, session.terminal
    started = time.monotonic()
    before = device.reset_peak_memory()
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(session.loss_scale)
    assembled = assembled or assembly.assemble(spec, loaded, seed)
    if of.is_replicate:
        terminal.title(f"\n{name}")
    banners.say_parts(terminal, assembled)
    tracker = session.start_tracker(name, of.parent, is_resumed=folder.exists())
    with session.working(name, tracker, of_group=of.of_group) as lock:
        statement = Statement(spec, seed, name, loaded, accelerator, session.key)
        checkpoints = _open_folder(of, assembled, statement)
        snapshot = _newest(session, checkpoints, statement)
        record.track_inputs(spec, loaded, assembled, seed, tracker)
        selftest.precede(spec, seed, loaded.splits, accelerator, folder, tracker, terminal)

        metrics: dict[str, Metric[Any]] = {n: registry.build("metric", n, s) for n, s in spec.metrics.items()}
        shared = spec, loaded.task, assembled, metrics, accelerator, tracker, terminal
        evaluator = Evaluator(accelerator, terminal.say)
        selected = Selection(*shared, checkpoints, lock, evaluator, of.oversight).select(seed, snapshot)
        if accelerator.is_main_process and spec.evaluation.final != "scores":  # what is judged is what was written
            checkpoint.save(selected.state, folder / "weights")
            selected.state = checkpoint.load(folder / "weights")
        checkpoint.restore(assembled.model, selected.state)

        faults.point("report")
        judged = judgement.judge(session, name, assembled, selected, metrics, evaluator, statement.signed_by)
        scores = judged.scores
        if accelerator.is_main_process:
            scores["memory/before_gib"] = before
            scores["time/total_s"] = selected.seconds_before + time.monotonic() - started
            statement.end(folder, scores)
            session.enter(statement, "end", folder)
            faults.point("report.sealed")
            record.send_end(spec, loaded.task.headline, folder, scores, tracker)
            if checkpoints:  # last: while they are there, a run that is sealed may lack something in its record
                checkpoints.clear()
    if accelerator.is_main_process:
        titles = list(loaded.task.headline.values())
        told = scores, judged.headline, titles, judged.ladder, statement.signed_by
        banners.say_result(terminal, name, folder, tracker, *told)
    accelerator.free_memory()  # the optimizer of this run; the next one brings its own
    return Result(name, seed, folder, tracker.run_id, scores)


def _open_folder(of: _Run, assembled: Assembled, statement: Statement) -> Checkpoints | None:
    """Begin the run's folder, or find it as it was left; nothing on the other processes."""
    session, folder = of.session, of.folder
    if not session.accelerator.is_main_process:
        return None
    if (folder / "start.envelope.json").exists():
        statement.resume(folder, session.keyring, insecure=session.insecure)
        storage.sweep(folder)
        for change in statement.changes:
            session.terminal.say(f"NOTE since the run began: {change}")
    else:
        precision = session.accelerator.mixed_precision
        record.write_inputs(session.spec, session.loaded, assembled, of.seed, precision, folder)
        if session.tags:
            storage.write_json(folder / "trial.json", session.tags)
        statement.start(folder)
    session.enter(statement, "start", folder)
    keep, say = session.spec.checkpoint.keep, session.terminal.say
    return Checkpoints(folder, keep, statement, session.keyring, insecure=session.insecure, notice=say)


def _newest(session: Session, checkpoints: Checkpoints | None, statement: Statement) -> Snapshot | None:
    """Where a run that was stopped goes on, the same on every process; None: at the beginning."""
    snapshot = checkpoints.newest() if checkpoints else None
    if snapshot:
        statement.follow(snapshot.statement, snapshot.attempt + 1)
        session.terminal.say(f"going on from the checkpoint of step {snapshot.step}")
    found: Snapshot | None = processes.from_first(session.accelerator, snapshot)
    return found
