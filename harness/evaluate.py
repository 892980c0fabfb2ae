"""Predict a split on all processes, and put the predictions through every metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from harness.metric import Metric, Predictions
from harness.task import Task

CPU_TOKENS = 512
"""Forward at most so many tokens at once on a CPU, where larger activations leave the cache."""
GPU_TOKENS = 65_536


class Evaluator:
    """Predicts splits."""

    def __init__(self, accelerator: Accelerator, notice: Callable[[str], None] = print) -> None:
        self.accelerator, self.notice = accelerator, notice
        self.tokens = token_budget(accelerator.device)

    def predict(self, model: nn.Module, task: Task, split: str) -> Predictions:
        """Predictions for a whole split, in order, the same on every process; each process computes a part."""
        accelerator = self.accelerator
        rows, rank, world = task.num_rows(split), accelerator.process_index, accelerator.num_processes
        mine = range(rank * rows // world, (rank + 1) * rows // world)
        with accelerator.autocast():
            part = task.predict(model, split, mine, self.tokens)
        if world == 1:
            return part
        parts: list[Predictions] = gather_object([part])
        return Predictions(
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.scores for p in parts]),
            part.label_names,
            [row for p in parts for row in p.rows],
        )


def token_budget(device: torch.device) -> int:
    """Padded tokens per forward in evaluation."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


def score(predictions: Predictions, metrics: dict[str, Metric], split: str) -> dict[str, float]:
    """Every metric of a split as `split/name`."""
    return {f"{split}/{key}": value for m in metrics.values() for key, value in m.compute(predictions).items()}


def write(predictions: Predictions, metrics: dict[str, Metric], folder: Path) -> None:
    """The files of every metric: tables and figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for metric in metrics.values():
        metric.write(predictions, folder)
