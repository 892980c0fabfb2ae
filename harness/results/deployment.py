"""From a trained model to one that is used: formats others read, merged weights, what a prediction costs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from harness import latency
from harness.assembly import Assembled
from harness.console import Terminal
from harness.evaluate import Evaluator
from harness.predictions import Predictions
from harness.specs.schema import Spec
from harness.task import Task


def deploy(
    spec: Spec, task: Task, assembled: Assembled, predictions: Predictions, evaluator: Evaluator,
    folder: Path, terminal: Terminal,
) -> dict[str, float]:  # fmt: skip
    """Save tokenizer and methods, merge a copy, measure; `predictions` are those of the test split.

    Returns:
        What merging changes, and latency, as metrics.
    """
    model = assembled.model.eval()
    task.save(model, folder / "weights" / "tokenizer")
    for name, method in assembled.methods.items():
        method.save(model, folder / "weights" / name, spec.model.name, assembled.head)
    scores: dict[str, float] = {}
    variants = {"model": model}
    if assembled.merges:
        variants = {"unmerged": model, "merged": merged(assembled)}
        scores |= merge_changes(task, model, variants["merged"], predictions, evaluator)
    if spec.latency.measure:
        rows = _measure(spec, task, model, variants, evaluator, terminal)
        latency.write(rows, folder / "latency")
        scores |= latency.as_metrics(rows)
    return scores


def measure_latency(
    spec: Spec, task: Task, assembled: Assembled, evaluator: Evaluator, terminal: Terminal
) -> dict[str, float]:
    """Latency alone, of the model as one would deploy it: merged where a method merges."""
    model = assembled.model.eval()
    variants = {"merged": merged(assembled)} if assembled.merges else {"model": model}
    return latency.as_metrics(_measure(spec, task, model, variants, evaluator, terminal))


def _measure(
    spec: Spec, task: Task, model: nn.Module, variants: Mapping[str, nn.Module], evaluator: Evaluator,
    terminal: Terminal,
) -> list[latency.Row]:  # fmt: skip
    settings = readable(spec.latency, model, terminal)
    with evaluator.accelerator.autocast():
        return latency.measure(calls(variants), task.example, settings, evaluator.accelerator.device)


def merged(assembled: Assembled) -> nn.Module:
    """A copy in evaluation mode with every method folded into plain weights, as far as it allows."""
    model = copy.deepcopy(assembled.model).eval()
    for method in reversed(assembled.methods.values()):
        model = method.merge(model)
    return model


def merge_changes(
    task: Task, model: nn.Module, merged: nn.Module, before: Predictions, evaluator: Evaluator
) -> dict[str, float]:
    """What merging changes in the predictions of the test split, both computed with the same cuts on this process."""
    if evaluator.accelerator.num_processes > 1:
        before = evaluator.predict_alone(model, task, "test")
    after = evaluator.predict_alone(merged, task, "test")
    return {
        "merge/max_logit_difference": float(abs(after.values - before.values).max()),
        "merge/label_flips": float(after.num_flips(before)),
    }


def readable(settings: latency.Latency, model: nn.Module, terminal: Terminal) -> latency.Latency:
    """The latency settings without lengths that the model cannot read."""
    positions = getattr(model.config, "max_position_embeddings", None) or 2**31
    lengths = [length for length in settings.lengths if length <= positions] or [min(positions, settings.lengths[0])]
    if lengths != settings.lengths:
        terminal.say_once(f"NOTE latency at {lengths} tokens only: the model reads {positions}")
    return settings.model_copy(update={"lengths": lengths})


def calls(variants: Mapping[str, nn.Module]) -> dict[str, latency.Call]:
    """Models as what `latency.measure` calls."""
    return {name: functools.partial(_call, variant) for name, variant in variants.items()}


def _call(model: nn.Module, inputs: dict[str, Tensor]) -> object:
    return model(**inputs)
