"""One spec -> finished runs, one per seed: the one place where everything meets, read from top to bottom."""

from __future__ import annotations

import importlib.metadata
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from accelerate import Accelerator

from harness import (
    assembly,
    baselines,
    checkpoint,
    data,
    deployment,
    device,
    evaluate,
    keys,
    registry,
    replicates,
    report,
    storage,
    tracking,
    train,
    variants,
)  # fmt: skip
from harness.assembly import Assembled, Loaded
from harness.console import Terminal
from harness.errors import Interrupted, StorageError, UserError
from harness.fingerprint import Statement
from harness.metric import Metric
from harness.selection import Selected, Selection
from harness.spec import Spec
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
    output: Path
    terminal: Terminal
    yardsticks: list[dict[str, Any]] = field(default_factory=list)
    """Scores of the baselines, filled by the first run: they depend on the data only."""


def run(spec: Spec) -> list[Result]:
    """Train and judge every seed of a spec; several seeds become children of one parent run.

    Raises:
        UserError: before training and before anything is written, for whatever cannot work.
        TrainingError, StorageError, Interrupted: after the tracker was told how the run ended.
    """
    session = _prepare(spec)
    assembled: Assembled | None = assembly.assemble(spec, session.loaded, spec.seeds[0])  # mistakes show here
    if len(spec.seeds) == 1:
        results = [_run_seed(session, spec.seeds[0], assembled)]
    else:
        assembled = None  # every replicate makes its own: two models are never held at once
        results = _run_replicates(session)
    session.terminal.say(f"\nSee all runs:  {tracking.ui_command(spec.tracking.uri, session.output)}")
    return results


def _prepare(spec: Spec) -> _Session:
    """Key, folder, device and data."""
    is_first = os.environ.get("RANK", "0") == "0"
    key = keys.take_key() if is_first else None
    if spec.provenance.require_signature and is_first and key is None:
        fix = "make one with `harness keygen`, or name it in HARNESS_SIGNING_KEY_FILE"
        raise UserError("there is no signing key", where="provenance.require_signature", fix=fix)
    output = _writable(storage.PROJECT / spec.output)
    terminal = Terminal(is_first)
    accelerator = train.build_accelerator(device.resolve_precision(spec.precision, terminal.say))
    device.use_all_cores(terminal.say)
    device.use_fast_matmul(terminal.say)
    loaded = assembly.load(spec)
    terminal.say(data.describe(loaded.splits))
    tokens = (f"{split} {t['tokens']:,} ({t['truncated']} rows truncated)" for split, t in loaded.tokens.items())
    terminal.say(f"tokens: {', '.join(tokens)}")
    return _Session(spec, loaded, accelerator, key, output, terminal)


def _run_replicates(session: _Session) -> list[Result]:
    """Every seed as a child run; the parent holds means and spreads."""
    spec, terminal = session.spec, session.terminal
    group = f"{spec.name}-x{len(spec.seeds)}-{os.urandom(2).hex()}"
    parent = _start_tracker(session, group)
    results: list[Result] = []
    with _ending(parent):
        parent.params({**spec.flat(), **device.describe()})
        parent_id = parent.wait_open(60)
        for seed in spec.seeds:
            results.append(_run_seed(session, seed, None, parent_id))
        if session.accelerator.is_main_process:
            folder = session.output / "runs" / group
            replicates.summarise([r.scores for r in results], [r.name for r in results], folder, parent, terminal)
    return results


def _run_seed(session: _Session, seed: int, assembled: Assembled | None, parent: str | None = None) -> Result:
    """One run, from the pretrained model to the sealed folder; assembles the model unless one is given."""
    spec, loaded, accelerator, terminal = session.spec, session.loaded, session.accelerator, session.terminal
    started = time.monotonic()
    device.reset_peak_memory()
    assembled = assembled or assembly.assemble(spec, loaded, seed)
    name = storage.safe_name(f"{spec.name}-s{seed}-{os.urandom(2).hex()}")
    folder = session.output / "runs" / name
    _say_start(terminal, name, assembled)
    tracker = _start_tracker(session, name, parent)
    with _ending(tracker):
        statement = Statement(spec, seed, name, loaded, accelerator, session.key)
        if accelerator.is_main_process:
            _write_inputs(session, assembled, seed, folder)
            statement.start(folder)
        _record_inputs(session, assembled, seed, tracker)

        metrics: dict[str, Metric] = {n: registry.build("metric", n, s) for n, s in spec.metrics.items()}
        selected = Selection(spec, loaded.task, assembled, metrics, accelerator, tracker, terminal).select(seed)
        if accelerator.is_main_process:  # what is judged is what was written
            checkpoint.save(selected.state, folder / "weights")
            selected.state = checkpoint.load(folder / "weights")
        checkpoint.restore(assembled.model, selected.state)

        predictions = evaluate.predict(assembled.model, loaded.task, "test", accelerator)
        scores = evaluate.score(predictions, metrics, "test") | _effort(spec, selected)
        if accelerator.is_main_process:
            evaluate.write(predictions, metrics, folder / "test")
            scores |= deployment.deploy(spec, loaded.task, assembled, predictions, accelerator, folder, terminal)
            compressed = variants.judge(spec, loaded.task, assembled, metrics, accelerator, folder, terminal)
            scores |= compressed.scores
            if spec.evaluation.baselines and not session.yardsticks:
                given = loaded.splits, spec.data, spec.model.name, spec.model.revision
                session.yardsticks.extend(baselines.measure(*given, terminal.say))
            scores["time/total_s"] = time.monotonic() - started
            own = baselines.score(predictions.labels, predictions.predicted, predictions.label_names)
            ladder = report.score_rows(own, session.yardsticks, name)
            report.learning_curves(selected.history, selected.step, folder)
            told = statement.signed_by, compressed.section
            card = report.model_card(spec, loaded, assembled, name, own, ladder, scores, *told)
            report.write_card(card, folder)
            statement.end(folder, scores)
            tracker.metrics(scores, selected.num_steps)
            tracker.tags({"mlflow.note.content": card})
            tracker.artifacts(folder)
    if accelerator.is_main_process:
        _say_result(terminal, name, folder, tracker, own, scores, ladder, statement.signed_by)
    accelerator.free_memory()  # the optimizer of this run; the next one brings its own
    return Result(name, seed, folder, tracker.run_id, scores)


def _effort(spec: Spec, selected: Selected) -> dict[str, float]:
    """Where the best checkpoint was found, and what it took."""
    return {
        f"best/{spec.early_stopping.metric.replace('/', '_')}": selected.score or 0.0,
        "best/step": float(selected.step),
        "best/epoch": float(selected.epoch),
        "memory/peak_gib": device.peak_memory_gib(),
        "time/train_s": selected.train_seconds,
        "train/examples_per_second": selected.num_examples / max(selected.train_seconds, 1e-9),
    }


@contextmanager
def _ending(tracker: Tracker) -> Iterator[None]:
    """Tell the tracker how the run ended, whatever happens."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def _start_tracker(session: _Session, name: str, parent: str | None = None) -> Tracker:
    """The run's tracker on the first process; one that records nothing on the others."""
    spec, folder = session.spec, session.output / "runs" / name
    if not session.accelerator.is_main_process:
        return Tracker()
    tags = {"spec": spec.name, "methods": "+".join(spec.methods) or "full_finetune", "folder": str(folder)}
    return tracking.start(spec.tracking, session.output, spec.name, name, parent=parent, tags=tags, note=spec.story)


def _record_inputs(session: _Session, assembled: Assembled, seed: int, tracker: Tracker) -> None:
    splits, count = session.loaded.splits, assembled.count
    tracker.params({**session.spec.flat(), "seed": seed, **device.describe()})
    tracker.metrics({"parameters/trainable": float(count.trainable), "parameters/total": float(count.total)})
    tracker.metrics({"parameters/share_of_full_fine_tuning": count.share})
    for split in (splits.train, splits.validation, splits.test):
        tracker.dataset(split.name, splits.source, split.digest, len(split.examples), split.name)


def _write_inputs(session: _Session, assembled: Assembled, seed: int, folder: Path) -> None:
    """What the run starts from; the start statement covers these files."""
    resolved = {**session.spec.resolved(), "seeds": [seed]}
    storage.write_text(folder / "spec.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    storage.write_json(folder / "data.json", {**session.loaded.splits.report, "tokens": session.loaded.tokens})
    storage.write_json(folder / "parameters.json", report.parameters(assembled))
    installed = sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)
    storage.write_text(folder / "environment.txt", "\n".join(installed) + "\n")


def _writable(folder: Path) -> Path:
    """The folder, made if need be. Raises StorageError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        fix = "name a folder of yours: output=<folder>"
        raise StorageError(f"cannot write into {folder}", where="output", why=str(error), fix=fix) from error
    return folder


def _say_start(terminal: Terminal, name: str, assembled: Assembled) -> None:
    terminal.title(f"\n{name}")
    terminal.table(["parameters", "", "of full fine-tuning"], report.parameter_rows(assembled))
    for method, note in assembled.notes.items():
        terminal.say(f"{method}: {note}")


def _say_result(
    terminal: Terminal, name: str, folder: Path, tracker: Tracker, own: dict[str, float], scores: dict[str, float],
    ladder: list[list[str]], signed_by: str,
) -> None:  # fmt: skip
    terminal.say()
    terminal.table(["on the test split", "macro-F1", "accuracy"], ladder)
    terminal.say(
        f"\nscore   test/f1_macro {own['f1_macro']:.4f}, checkpoint of epoch {scores['best/epoch']:.0f}; "
        f"{scores['time/total_s']:.0f} s, {scores['memory/peak_gib']:.2f} GiB"
    )
    terminal.say(f"run     {name}, MLflow id {tracker.run_id or 'none: not recorded'}")
    terminal.say(f"folder  {folder}")
    terminal.say(f"signed  {signed_by}  Check it: harness verify {folder}")
