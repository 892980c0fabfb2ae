"""One spec -> finished runs, one per seed: the one place where everything meets, read from top to bottom.

A run that was stopped goes on in its own folder, under its own name and statements, in its own MLflow run.
"""

from __future__ import annotations

import os
import shlex
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from harness import (
    assembly,
    baselines,
    checkpoint,
    data,
    deployment,
    device,
    evaluate,
    faults,
    keys,
    ledger,
    processes,
    provenance,
    record,
    registry,
    replicates,
    report,
    selftest,
    storage,
    tracking,
    train,
    variants,
)  # fmt: skip
from harness.assembly import Assembled, Loaded
from harness.checkpoint import Checkpoints, Snapshot, Unsigned
from harness.console import Terminal
from harness.errors import Interrupted, StorageError, TrainingError, UnusableRun, UserError
from harness.fingerprint import Statement
from harness.metric import Metric
from harness.selection import Selection, history_of, tell
from harness.spec import Spec
from harness.storage import RunLock
from harness.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Result:
    """One finished run."""

    name: str
    seed: int
    folder: Path
    run_id: str | None
    scores: dict[str, float]


@dataclass(frozen=True)
class _Session:
    """What the runs of one call share."""

    spec: Spec
    loaded: Loaded
    accelerator: Accelerator
    key: keys.Key | None
    keyring: list[keys.Key]
    """What authenticates the statements and checkpoints of a run that goes on."""
    output: Path
    terminal: Terminal
    yardsticks: list[dict[str, Any]] = field(default_factory=list)
    """Scores of the baselines, filled by the first run: they depend on the data only."""
    loss_scale: dict[str, Any] = field(default_factory=dict)
    """Where the scaler of fp16 begins, for every run anew."""
    insecure: bool = False
    """Go on from checkpoints that are not signed with a key of the keyring."""


def run(spec: Spec, *, resume: str | None = None, insecure: bool = False) -> list[Result]:
    """Train and judge every seed of a spec; several seeds become children of one parent run.

    Args:
        spec: what to run.
        resume: the name of a run, or of a parent of replicates, that was stopped: it goes on; `spec` is its own.
        insecure: go on from checkpoints that are not signed with a key of the keyring.

    Raises:
        UserError: before training and before anything is written, for whatever cannot work.
        TrainingError, StorageError, Interrupted: after the tracker was told how the run ended.
    """
    session = _prepare(spec, insecure)
    try:
        assembled: Assembled | None = assembly.assemble(spec, session.loaded, spec.seeds[0])  # mistakes show here
        if len(spec.seeds) == 1:
            name = resume or _name(spec, f"s{spec.seeds[0]}", os.urandom(2).hex())
            name = _same(session, name)
            done = _same_result(session, name, spec.seeds[0])
            results = [done or _run_seed(session, spec.seeds[0], name, assembled)]
        else:
            assembled = None  # every replicate makes its own: two models are never held at once
            name = resume or _name(spec, f"x{len(spec.seeds)}", os.urandom(2).hex())
            results = _run_replicates(session, _same(session, name))
    except Interrupted as error:
        if error.is_agreed:  # a launcher ends the others as soon as one process has gone: the first one needs time
            with suppress(TrainingError):
                processes.wait(session.accelerator)
        raise
    session.terminal.say(f"\nSee all runs:  {tracking.ui_command(spec.tracking.uri, session.output)}")
    if session.accelerator.num_processes > 1:
        processes.wait(session.accelerator)
        session.accelerator.end_training()
    return results


def _name(spec: Spec, part: str, suffix: str) -> str:
    return storage.safe_name(f"{spec.name[:40]}-{part}-{suffix}")


def _same(session: _Session, name: str) -> str:
    """The first process's name for the run, on all."""
    return str(processes.from_first(session.accelerator, name))


def _prepare(spec: Spec, insecure: bool) -> _Session:
    """Key, folder, device and data."""
    is_first = os.environ.get("RANK", "0") == "0"
    keyring = keys.load_keyring() if is_first else []
    key = keys.take_key() if is_first else None
    keys.forget()
    if spec.provenance.require_signature and is_first and key is None:
        fix = "make one with `harness keygen`, or name it in HARNESS_SIGNING_KEY_FILE"
        raise UserError("there is no signing key", where="provenance.require_signature", fix=fix)
    output = storage.writable(storage.PROJECT / spec.output)
    terminal = Terminal(is_first)
    accelerator = processes.build_accelerator(device.resolve_precision(spec.precision, terminal.say))
    device.use_all_cores(terminal.say)
    device.use_fast_matmul(terminal.say)
    loaded = assembly.load(spec)
    terminal.say(data.describe(loaded.splits))
    tokens = (f"{split} {t['tokens']:,} ({t['truncated']} rows truncated)" for split, t in loaded.tokens.items())
    terminal.say(f"tokens: {', '.join(tokens)}")
    scale = accelerator.scaler.state_dict() if accelerator.scaler else {}
    return _Session(spec, loaded, accelerator, key, keyring, output, terminal, loss_scale=scale, insecure=insecure)


def _run_replicates(session: _Session, group: str) -> list[Result]:
    """Every seed as a child run; the parent holds means and spreads. Those that are finished are read, not repeated."""
    spec, terminal, folder = session.spec, session.terminal, session.output / "runs" / group
    parent = _start_tracker(session, group, is_resumed=folder.exists())
    results: list[Result] = []
    with _working(session, group, parent):
        if session.accelerator.is_main_process:
            record.write_spec(spec, spec.seeds, folder)
        parent.params({**spec.flat(), **device.describe()})
        parent_id = parent.wait_open(60)
        for seed in spec.seeds:
            name = _name(spec, f"s{seed}", group.rpartition("-")[2])
            done = _same_result(session, name, seed, parent_id)
            results.append(done or _run_seed(session, seed, name, None, parent_id, of_group=True))
        if session.accelerator.is_main_process:
            replicates.summarise([r.scores for r in results], [r.name for r in results], folder, parent, terminal)
    return results


def _same_result(session: _Session, name: str, seed: int, parent: str | None = None) -> Result | None:
    """A run that is sealed already, as its end statement tells it, on all processes; None: it is not.

    What follows the seal may be missing, if it was killed there: it is done again, which changes nothing where it was
    done before.
    """
    folder, found = session.output / "runs" / name, None
    if session.accelerator.is_main_process and (folder / "end.envelope.json").exists():
        envelope = provenance.open_envelope(folder / "end.envelope.json", session.keyring)
        is_doubtful = envelope.check.ok is not True and bool(session.keyring) and not session.insecure
        if envelope.predicate is None or is_doubtful:
            raise StorageError(f"the end statement of {name} cannot be trusted", why=envelope.check.detail)
        session.terminal.say(f"\n{name} is finished already")
        ledger.append(session.output, ledger.Entry(envelope.attestation_id, "end", name))
        found = Result(name, seed, folder, None, envelope.predicate["metrics"])
        if (folder / "checkpoints").is_dir():
            _complete(session, found, parent)
    finished: Result | None = processes.from_first(session.accelerator, found)
    return finished


def _complete(session: _Session, result: Result, parent: str | None) -> None:
    """Send the record of a run that was killed after it was sealed, and remove its checkpoints."""
    tracker = _start_tracker(session, result.name, parent, is_resumed=True)
    with _working(session, result.name, tracker, of_group=True):
        checkpoints = Checkpoints(result.folder, 2, Unsigned(), session.keyring, insecure=session.insecure)
        with suppress(StorageError):
            snapshot = checkpoints.newest()
            if snapshot:
                tell(history_of(snapshot), tracker)
        _record_end(result.folder, result.scores, tracker)
        checkpoints.clear()


def _record_end(folder: Path, scores: dict[str, float], tracker: Tracker) -> None:
    tracker.metrics(scores, int(scores["train/steps"]))
    tracker.tags({"mlflow.note.content": (folder / "model_card.md").read_text(encoding="utf-8")})
    tracker.artifacts(folder, ignore=["checkpoints/*"])
    tracker.finish("FINISHED")


def _run_seed(
    session: _Session, seed: int, name: str, assembled: Assembled | None, parent: str | None = None,
    *, of_group: bool = False,
) -> Result:  # fmt: skip
    """One run, from the pretrained model or from its last checkpoint to the sealed folder.

    Assembles the model unless one is given.
    """
    spec, loaded, accelerator, terminal = session.spec, session.loaded, session.accelerator, session.terminal
    started = time.monotonic()
    device.reset_peak_memory()
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(session.loss_scale)
    assembled = assembled or assembly.assemble(spec, loaded, seed)
    folder = session.output / "runs" / name
    record.say_start(terminal, name, assembled)
    tracker = _start_tracker(session, name, parent, is_resumed=folder.exists())
    with _working(session, name, tracker, of_group=of_group) as lock:
        statement = Statement(spec, seed, name, loaded, accelerator, session.key)
        checkpoints = _open_folder(session, assembled, seed, folder, statement)
        snapshot = _newest(session, checkpoints, statement)
        record.track_inputs(spec, loaded, assembled, seed, tracker)
        selftest.precede(spec, seed, loaded.splits, accelerator, folder, tracker, terminal)

        metrics: dict[str, Metric] = {n: registry.build("metric", n, s) for n, s in spec.metrics.items()}
        shared = spec, loaded.task, assembled, metrics, accelerator, tracker, terminal
        evaluator = evaluate.Evaluator(accelerator, terminal.say)
        selected = Selection(*shared, checkpoints, lock, evaluator).select(seed, snapshot)
        if accelerator.is_main_process:  # what is judged is what was written
            checkpoint.save(selected.state, folder / "weights")
            selected.state = checkpoint.load(folder / "weights")
        checkpoint.restore(assembled.model, selected.state)

        faults.point("report")
        predictions = evaluator.predict(assembled.model, loaded.task, "test")
        scores = evaluate.score(predictions, metrics, "test") | record.effort(spec, selected)
        scores["oom/evaluation_events"] = float(evaluator.num_out_of_memory)
        if accelerator.is_main_process:
            evaluate.write(predictions, metrics, folder / "test")
            scores |= deployment.deploy(spec, loaded.task, assembled, predictions, evaluator, folder, terminal)
            compressed = variants.judge(spec, loaded.task, assembled, metrics, accelerator, folder, terminal)
            scores |= compressed.scores
            if spec.evaluation.baselines and not session.yardsticks:
                given = loaded.splits, spec.data, spec.model.name, spec.model.revision
                session.yardsticks.extend(baselines.measure(*given, terminal.say))
            scores["time/total_s"] = selected.seconds_before + time.monotonic() - started
            own = baselines.score(predictions.labels, predictions.predicted, predictions.label_names)
            ladder = report.score_rows(own, session.yardsticks, name)
            report.learning_curves(selected.history, selected.step, folder)
            told = statement.signed_by, compressed.section
            card = report.model_card(spec, loaded, assembled, name, own, ladder, scores, *told)
            report.write_card(card, folder)
            statement.end(folder, scores)
            _enter(session, statement, "end", folder)
            faults.point("report.sealed")
            _record_end(folder, scores, tracker)
            if checkpoints:  # last: while they are there, a run that is sealed may lack something in its record
                checkpoints.clear()
    if accelerator.is_main_process:
        record.say_result(terminal, name, folder, tracker, own, scores, ladder, statement.signed_by)
    accelerator.free_memory()  # the optimizer of this run; the next one brings its own
    return Result(name, seed, folder, tracker.run_id, scores)


def _open_folder(
    session: _Session, assembled: Assembled, seed: int, folder: Path, statement: Statement
) -> Checkpoints | None:
    """Begin the run's folder, or find it as it was left; nothing on the other processes."""
    if not session.accelerator.is_main_process:
        return None
    if (folder / "start.envelope.json").exists():
        statement.resume(folder, session.keyring, insecure=session.insecure)
        storage.sweep(folder)
        for change in statement.changes:
            session.terminal.say(f"NOTE since the run began: {change}")
    else:
        record.write_inputs(session.spec, session.loaded, assembled, seed, folder)
        statement.start(folder)
    _enter(session, statement, "start", folder)
    keep, say = session.spec.checkpoint.keep, session.terminal.say
    return Checkpoints(folder, keep, statement, session.keyring, insecure=session.insecure, notice=say)


def _enter(session: _Session, statement: Statement, kind: str, folder: Path) -> None:
    """Enter the latest statement in the ledger of all runs."""
    ledger.append(session.output, ledger.Entry(statement.latest, kind, folder.name))


def _newest(session: _Session, checkpoints: Checkpoints | None, statement: Statement) -> Snapshot | None:
    """Where a run that was stopped goes on, the same on every process; None: at the beginning."""
    snapshot = checkpoints.newest() if checkpoints else None
    if snapshot:
        statement.follow(snapshot.statement, snapshot.attempt + 1)
        session.terminal.say(f"going on from the checkpoint of step {snapshot.step}")
    found: Snapshot | None = processes.from_first(session.accelerator, snapshot)
    return found


@contextmanager
def _working(session: _Session, name: str, tracker: Tracker, *, of_group: bool = False) -> Iterator[RunLock | None]:
    """Hold the run's lock, and whatever happens tell the tracker how the run ended, and the person how it goes on."""
    lock = RunLock(session.output, name) if session.accelerator.is_main_process else None
    if lock:
        lock.acquire()
    status, can_go_on = "FAILED", True
    try:
        yield lock
        status, can_go_on = "FINISHED", False
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    except (UserError, UnusableRun, train.NonFinite):  # it would end the same way again
        can_go_on = False
        raise
    finally:
        tracker.finish(status)
        if lock:
            lock.release()
        if can_go_on and not of_group and (session.output / "runs" / name).is_dir():
            session.terminal.say(f"resume  {_resume_command(session, name)}")


def _resume_command(session: _Session, name: str) -> str:
    place = [] if session.spec.output == "mlruns" else [f"output={session.spec.output}"]
    launch, number = "accelerate launch", session.accelerator.num_processes
    if number > 1:
        cpu = "ACCELERATE_USE_CPU=true " if session.accelerator.device.type == "cpu" else ""
        launch = f"{cpu}{launch} --multi_gpu --num_processes {number}"
    return f"{launch} launch.py " + shlex.join(["--resume", name, *place])


def _start_tracker(session: _Session, name: str, parent: str | None = None, *, is_resumed: bool = False) -> Tracker:
    """The run's tracker on the first process; one that records nothing on the others."""
    spec, folder = session.spec, session.output / "runs" / name
    if not session.accelerator.is_main_process:
        return Tracker()
    tags = {"spec": spec.name, "methods": "+".join(spec.methods) or "full_finetune", "folder": str(folder)}
    return tracking.start(
        spec.tracking, session.output, spec.name, name, parent=parent, tags=tags, note=spec.story, resume=is_resumed
    )
