"""Predict a split on all processes, and put the predictions through every metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from harness import registry
from harness.machine import memory, processes
from harness.metric import Metric
from harness.models import padding_free
from harness.predictions import Predictions
from harness.task import Task

CPU_TOKENS = 512
"""Forward at most so many tokens at once on a CPU, where larger activations leave the cache."""
GPU_TOKENS = 65_536


class Evaluator:
    """Predicts splits, in smaller pieces where memory runs out; training's micro-batches stay what they are."""

    def __init__(self, accelerator: Accelerator, notice: Callable[[str], None] = print) -> None:
        self.accelerator, self.notice = accelerator, notice
        self.tokens = token_budget(accelerator.device)
        """Padded tokens per forward of this process; what once did not fit is not tried again."""
        self.num_out_of_memory = 0

    def predict(self, model: nn.Module, task: Task, split: str) -> Predictions:
        """Predictions for a whole split, in order, the same on every process; each process computes a part.

        Raises:
            TrainingError: on all processes, if not even single texts fit into the memory of one.
        """
        rows, rank, world = task.num_rows(split), self.accelerator.process_index, self.accelerator.num_processes
        part = self._predict(model, task, split, range(rank * rows // world, (rank + 1) * rows // world))
        gathered: list[Predictions | None] = processes.gather(self.accelerator, part)
        parts = [found for found in gathered if found is not None]
        if len(parts) < world:
            raise memory.exhausted("evaluation", 1, 0)
        return parts[0].joined(parts[1:])

    def predict_alone(self, model: nn.Module, task: Task, split: str) -> Predictions:
        """The same on this process only, without the others. Raises TrainingError."""
        found = self._predict(model, task, split, range(task.num_rows(split)))
        if found is None:
            raise memory.exhausted("evaluation", 1, 0)
        return found

    def _predict(self, model: nn.Module, task: Task, split: str, rows: range) -> Predictions | None:
        """Predictions for these rows, started afresh after every failure; None if single texts do not fit."""
        while True:
            found = self._attempt(model, task, split, rows)
            if found is not None:
                return found
            memory.release()
            self.num_out_of_memory += 1
            if self.tokens == 1:
                return None
            before, self.tokens = self.tokens, self.tokens // 2
            self.notice(f"NOTE out of memory in evaluation: {before} -> {self.tokens} tokens at once, {split} again")

    def _attempt(self, model: nn.Module, task: Task, split: str, rows: range) -> Predictions | None:
        try:
            with self.accelerator.autocast(), padding_free.running(model):
                return task.predict(model, split, rows, self.tokens)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            return None


def token_budget(device: torch.device) -> int:
    """Padded tokens per forward in evaluation."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


def headline(task: Task, predictions: Predictions) -> dict[str, float]:
    """The scores that the task tells first, whatever metrics the spec has."""
    made = type(predictions).__name__
    metrics = {key: registry.build("metric", registry.producer(key, made), {}) for key in task.headline}
    return {key: metric.compute(predictions)[key] for key, metric in metrics.items()}


def score(predictions: Predictions, metrics: Mapping[str, Metric[Any]], split: str) -> dict[str, float]:
    """Every metric of a split as `split/name`."""
    return {f"{split}/{key}": value for m in metrics.values() for key, value in m.compute(predictions).items()}


def write(predictions: Predictions, metrics: Mapping[str, Metric[Any]], folder: Path) -> None:
    """The files of every metric: tables and figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for metric in metrics.values():
        metric.write(predictions, folder)


def sections(predictions: Predictions, metrics: Mapping[str, Metric[Any]]) -> list[str]:
    """What metrics have to say in the model card."""
    return [told for metric in metrics.values() if (told := metric.section(predictions))]
