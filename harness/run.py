"""One spec -> finished runs, one per seed: the one place where everything meets, read from top to bottom."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import os
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from harness import (
    assembly,
    baselines,
    checkpoint,
    data,
    device,
    evaluate,
    fingerprint,
    keys,
    latency,
    registry,
    report,
    storage,
    tracking,
    train,
)  # fmt: skip
from harness.assembly import Assembled, Loaded
from harness.console import Terminal
from harness.errors import Interrupted, StorageError, TrainingError, UserError
from harness.metric import Metric, Predictions
from harness.replicates import summarise
from harness.spec import Spec
from harness.tracking import Tracker

_PENDING_STEPS = 50
"""Values of so many steps wait on the device before they are read together."""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    name: str
    seed: int
    folder: Path
    run_id: str | None
    scores: dict[str, float]


@dataclass
class _Progress:
    """What one run has seen so far."""

    history: report.History = field(default_factory=lambda: defaultdict(list))
    pending: list[train.Step] = field(default_factory=list)
    best_score: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    num_steps: int = 0
    num_examples: int = 0
    train_seconds: float = 0.0


def run(spec: Spec) -> list[Result]:
    """Train and judge every seed of a spec.

    Raises:
        UserError: before training, for anything that cannot work.
        TrainingError, StorageError, Interrupted: after the tracker was told.
    """
    key = keys.take_key() if os.environ.get("RANK", "0") == "0" else None
    if spec.provenance.require_signature and key is None:
        raise UserError(
            "no signing key", where="provenance.require_signature", fix="make one with `harness keygen`, or name it"
        )
    output = _writable(storage.PROJECT / spec.output)
    terminal = Terminal(os.environ.get("RANK", "0") == "0")
    accelerator = train.build_accelerator(device.resolve_precision(spec.precision, terminal.say))
    device.use_all_cores(terminal.say)
    device.use_fast_matmul(terminal.say)
    loaded = assembly.load(spec)
    terminal.say(data.describe(loaded.splits))
    terminal.say(_tokens_line(loaded))

    group = f"{spec.name}-x{len(spec.seeds)}-{os.urandom(2).hex()}" if len(spec.seeds) > 1 else ""
    parent = _start_tracker(spec, output, group, terminal, note=spec.story) if group else Tracker()
    ladder: list[dict[str, Any]] = []
    results: list[Result] = []
    status = "FAILED"
    try:
        parent.params({**spec.flat(), **device.describe()} if group else {})
        parent_id = parent.wait_open(60) if group else None
        for seed in spec.seeds:
            results.append(_run_seed(spec, seed, loaded, accelerator, key, output, terminal, parent_id, ladder))
        if group:
            summarise([r.scores for r in results], [r.name for r in results], output / "runs" / group, parent, terminal)
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    finally:
        parent.finish(status)
    terminal.say(f"\nSee all runs:  {tracking.ui_command(spec.tracking.uri, output)}")
    return results


def _run_seed(
    spec: Spec,
    seed: int,
    loaded: Loaded,
    accelerator: Accelerator,
    key: keys.Key | None,
    output: Path,
    terminal: Terminal,
    parent: str | None,
    ladder: list[dict[str, Any]],
) -> Result:
    """One run, from the pretrained model to the sealed folder."""
    started = time.monotonic()
    name = storage.safe_name(f"{spec.name}-s{seed}-{os.urandom(2).hex()}")
    assembled = assembly.assemble(spec, loaded, seed)
    terminal.title(f"\n{name}")
    terminal.table(["parameters", "", "of full fine-tuning"], report.parameter_rows(assembled))

    folder = output / "runs" / name
    tracker = _start_tracker(spec, output, name, terminal, parent=parent, note=spec.story)
    status = "FAILED"
    try:
        statement = fingerprint.Statement(spec, seed, name, loaded, accelerator, key)
        if accelerator.is_main_process:
            _write_inputs(spec, seed, loaded, assembled, folder)
            statement.start(folder)
        _record_inputs(spec, seed, loaded, assembled, tracker)
        metrics: dict[str, Metric] = {n: registry.build("metric", n, s) for n, s in spec.metrics.items()}

        progress = _train(spec, seed, loaded, assembled, metrics, accelerator, tracker, terminal)
        checkpoint.restore(assembled.model, progress.best_state)

        predictions = evaluate.predict(assembled.model, loaded.task, "test", accelerator)
        scores = evaluate.score(predictions, metrics, "test")
        scores |= {f"best/{spec.early_stopping.metric.replace('/', '_')}": progress.best_score or 0.0}
        scores |= {"best/step": float(progress.best_step), "best/epoch": float(progress.best_epoch)}
        scores |= {"memory/peak_gib": device.peak_memory_gib(), "time/train_s": progress.train_seconds}
        scores |= {"train/examples_per_second": progress.num_examples / max(progress.train_seconds, 1e-9)}
        if accelerator.is_main_process:
            evaluate.write(predictions, metrics, folder / "test")
            scores |= _deploy(spec, loaded, assembled, predictions, accelerator, folder)
            if spec.evaluation.baselines and not ladder:
                ladder += baselines.measure(loaded.splits, spec.data, spec.model.name)
            scores["time/total_s"] = time.monotonic() - started
            report.learning_curves(progress.history, progress.best_step, folder)
            rungs = report.score_rows(scores, ladder, name)
            card = report.model_card(spec, loaded, assembled, name, rungs, scores, statement.signed_by)
            report.write_card(card, folder)
            tracker.metrics(scores, progress.num_steps)
            tracker.tags({"mlflow.note.content": card})
            statement.end(folder, scores)
            tracker.artifacts(folder)
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    if accelerator.is_main_process:
        _say_result(terminal, name, folder, tracker, scores, rungs, statement.signed_by)
    return Result(name, seed, folder, tracker.run_id, scores)


def _train(
    spec: Spec,
    seed: int,
    loaded: Loaded,
    assembled: Assembled,
    metrics: dict[str, Metric],
    accelerator: Accelerator,
    tracker: Tracker,
    terminal: Terminal,
) -> _Progress:
    """Steps, validation, early stopping; the best checkpoint is kept in memory."""
    task, model = loaded.task, assembled.model
    model.to(accelerator.device)
    per_epoch = task.num_batches(spec.train.batch_size)
    total = spec.train.total_steps(per_epoch)
    every = spec.evaluation.every.steps(per_epoch)
    patience = spec.early_stopping.patience
    progress, clock = _Progress(), time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    with terminal.progress(total) as line:
        for step in train.fit(model, task, list(assembled.methods.values()), spec.train, accelerator, generator):
            progress.pending.append(step)
            progress.num_steps, progress.num_examples = step.number, progress.num_examples + step.num_examples
            if step.number == 1:
                tracker.open()
            if line.due():
                line.update(step.number, f"epoch {step.epoch}  loss {float(step.loss):.3f}")
            if len(progress.pending) >= _PENDING_STEPS:
                _log_steps(progress, tracker)
            if step.number % every == 0 or step.number == total:
                _log_steps(progress, tracker)
                progress.train_seconds += time.monotonic() - clock
                is_better = _validate(spec, loaded, assembled, metrics, accelerator, tracker, progress, step)
                score = progress.history[spec.early_stopping.metric][-1][1]
                note = "  best so far" if is_better else ""
                terminal.say(f"epoch {step.epoch}  step {step.number}  {spec.early_stopping.metric} {score:.4f}{note}")
                clock = time.monotonic()
                if patience and step.number - progress.best_step >= patience.steps(per_epoch):
                    terminal.say(f"stopped early: nothing better for {patience}")
                    break
    return progress


def _validate(
    spec: Spec,
    loaded: Loaded,
    assembled: Assembled,
    metrics: dict[str, Metric],
    accelerator: Accelerator,
    tracker: Tracker,
    progress: _Progress,
    step: train.Step,
) -> bool:
    """Score the validation split; keep the checkpoint if it is the best so far."""
    predictions = evaluate.predict(assembled.model, loaded.task, "validation", accelerator)
    scores = evaluate.score(predictions, metrics, "validation")
    tracker.metrics(scores, step.number)
    for key, value in scores.items():
        progress.history[key].append((step.number, value))
    score = scores[spec.early_stopping.metric]
    sign = 1 if spec.early_stopping.direction == "maximize" else -1
    is_better = progress.best_score is None or sign * score > sign * progress.best_score
    if is_better:
        progress.best_score, progress.best_step, progress.best_epoch = score, step.number, step.epoch
        progress.best_state = checkpoint.trained_state(assembled.model)
    return is_better


def _log_steps(progress: _Progress, tracker: Tracker) -> None:
    """Read the values of the waiting steps at once, and hand them to the tracker. Raises TrainingError for NaN, Inf."""
    if not progress.pending:
        return
    read = torch.stack([torch.stack([s.loss.float(), s.grad_norm.float()]) for s in progress.pending]).tolist()
    for step, (loss, grad_norm) in zip(progress.pending, read, strict=True):
        if not (abs(loss) < float("inf") and abs(grad_norm) < float("inf")):
            raise TrainingError(
                f"the loss is {loss}, the gradient norm {grad_norm}, at step {step.number}",
                fix="lower train.learning_rate, warm up longer, or use precision=bf16 instead of fp16",
            )
        values = {
            "train/loss": loss,
            "train/grad_norm": grad_norm,
            "train/learning_rate": step.learning_rate,
            "train/micro_batches": float(step.num_micro_batches),
        }
        tracker.metrics(values, step.number)
        for key, value in values.items():
            progress.history[key].append((step.number, value))
    progress.pending.clear()


def _deploy(
    spec: Spec, loaded: Loaded, assembled: Assembled, predictions: Predictions, accelerator: Accelerator, folder: Path
) -> dict[str, float]:
    """Save what was trained; merge a copy; say what merging changes and what a prediction costs."""
    weights = folder / "weights"
    checkpoint.save(checkpoint.trained_state(assembled.model), weights)
    loaded.task.save(weights / "tokenizer")
    for name, method in assembled.methods.items():
        method.save(assembled.model, weights / name, spec.model.name, assembled.head)
    scores: dict[str, float] = {}
    variants = {"model": assembled.model}
    if assembled.merges:
        merged = copy.deepcopy(assembled.model)
        for method in reversed(assembled.methods.values()):
            merged = method.merge(merged)
        with accelerator.autocast():
            after = loaded.task.predict(merged, "test", range(len(predictions.labels)), evaluate.CPU_TOKENS)
        scores["merge/max_logit_difference"] = float(abs(after.scores - predictions.scores).max())
        scores["merge/label_flips"] = float((after.predicted != predictions.predicted).sum())
        variants = {"unmerged": assembled.model, "merged": merged}
    if spec.latency.measure:
        with accelerator.autocast() if accelerator.mixed_precision != "no" else nullcontext():
            calls = {name: functools.partial(_call, model.eval()) for name, model in variants.items()}
            rows = latency.measure(calls, loaded.task.example, spec.latency, accelerator.device)
        latency.write(rows, folder / "latency")
        scores |= latency.as_metrics(rows)
    return scores


def _call(model: nn.Module, inputs: dict[str, Tensor]) -> object:
    return model(**inputs)


def _start_tracker(
    spec: Spec, output: Path, name: str, terminal: Terminal, *, parent: str | None = None, note: str
) -> Tracker:
    """The run's tracker on the first process; one that records nothing on the others."""
    if not terminal.speaks:
        return Tracker()
    tags = {
        "spec": spec.name,
        "methods": "+".join(spec.methods) or "full_finetune",
        "folder": str(output / "runs" / name),
    }
    return tracking.start(spec.tracking, output, spec.name, name, parent=parent, tags=tags, note=note)


def _record_inputs(spec: Spec, seed: int, loaded: Loaded, assembled: Assembled, tracker: Tracker) -> None:
    count = assembled.count
    tracker.params({**spec.flat(), "seed": seed, **device.describe()})
    tracker.metrics({"parameters/trainable": float(count.trainable), "parameters/total": float(count.total)})
    tracker.metrics({"parameters/share_of_full_fine_tuning": count.share})
    for split in (loaded.splits.train, loaded.splits.validation, loaded.splits.test):
        tracker.dataset(split.name, loaded.splits.source, split.digest, len(split.examples), split.name)


def _write_inputs(spec: Spec, seed: int, loaded: Loaded, assembled: Assembled, folder: Path) -> None:
    """What the run starts from; the start statement covers these files."""
    resolved = {**spec.resolved(), "seeds": [seed]}
    storage.write_text(folder / "spec.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    storage.write_json(folder / "data.json", {**loaded.splits.report, "tokens": loaded.tokens})
    storage.write_json(folder / "parameters.json", report.parameters(assembled))
    installed = sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)
    storage.write_text(folder / "environment.txt", "\n".join(installed) + "\n")


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot write into {folder}", where="output", why=str(error), fix="output=<folder>"
        ) from error
    return folder


def _tokens_line(loaded: Loaded) -> str:
    parts = [
        f"{split} {t['tokens']:,} (longest {t['longest']}, {t['truncated']} truncated)"
        for split, t in loaded.tokens.items()
    ]
    return "tokens: " + ", ".join(parts)


def _say_result(
    terminal: Terminal,
    name: str,
    folder: Path,
    tracker: Tracker,
    scores: dict[str, float],
    rungs: list[list[str]],
    signed: str,
) -> None:
    terminal.say()
    terminal.table(["on the test split", "macro-F1", "accuracy"], rungs)
    terminal.say(
        f"\ntest/f1_macro {scores['test/f1_macro']:.4f}   checkpoint of epoch {scores['best/epoch']:.0f}"
        f"   {scores['time/total_s']:.0f} s   {scores['memory/peak_gib']:.2f} GiB"
    )
    terminal.say(f"run     {name}  (MLflow id {tracker.run_id or 'not recorded'})")
    terminal.say(f"folder  {folder}")
    terminal.say(f"{signed}  Check with: harness verify {name}")
