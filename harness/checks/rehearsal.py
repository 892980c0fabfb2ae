"""A spec made small: its own data, model, methods and settings, for a few steps on a few short texts.

Whatever computes is the run's own: `assemble`, `Training`, the gradient. Smaller are the rows, the batch and the number
of steps; there is no warm-up, and a method that acts in some steps only acts in all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from harness import assembly, checkpoint, registry
from harness.assembly import Assembled, Loaded
from harness.batch import Batch
from harness.checks.findings import Finding, judged, largest
from harness.data.dataset import Split, Splits
from harness.method import Method
from harness.models import surgery
from harness.specs.schema import Spec
from harness.train import Training

ROWS = 16
"""Rows of each split: two batches an epoch."""
NUM_STEPS = 4
"""Two epochs."""
BOUNDLESS = 10**9
"""A number of tokens that no micro-batch reaches."""


class Alone:
    """An accelerator that knows of no other process, for what one of several processes computes by itself."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


@dataclass(frozen=True)
class Outcome:
    """What some steps left."""

    losses: list[float]
    start: dict[str, Tensor]
    """What trains, before the first step."""
    weights: dict[str, Tensor]
    """The same after the last."""


ON_GPU = 1e-2
"""What two outcomes of the same steps may differ by on a GPU: norm of the difference over norm of what they changed."""


class Rehearsal:
    """Assembles and trains the small spec as often as wanted, always from the same start."""

    def __init__(self, spec: Spec, splits: Splits, accelerator: Accelerator, seed: int) -> None:
        """`splits` are those of the spec; a few short rows of each are taken.

        Raises:
            UserError: data, model and methods do not fit.
        """
        self.accelerator, self.seed = accelerator, seed
        self.whole = spec
        """The spec as it was given."""
        self.task = assembly.task_of(spec)
        train, validation, test = map(_few, (splits.train, splits.validation, splits.test))
        few = dataclasses.replace(splits, train=train, validation=validation, test=test)
        self.spec = _shorten(spec, len(few.train.examples))
        tokens = self.task.load_data(few, spec.model)
        self.loaded = Loaded(few, self.task, tokens, {"id": spec.model.name})
        self._scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}

    @property
    def methods(self) -> dict[str, Method]:
        """The spec's methods, new ones each time."""
        return {name: registry.build("method", name, settings) for name, settings in self.spec.methods.items()}

    def fresh(self, methods: Mapping[str, Method] | None = None, *, dropout: bool = True) -> Assembled:
        """The model before its first step, on the device, under the spec's methods or these instead of them."""
        spec = self.spec if methods is None else _with_methods(self.spec, methods)
        assembled = assembly.assemble(spec, self.loaded, self.seed)
        if not dropout:
            surgery.disable_dropout(assembled.model)
        assembled.model.to(self.accelerator.device)
        return assembled

    def training(self, assembled: Assembled, micro_batch_tokens: int | None = None) -> Training:
        """A `Training` at its first step; with a budget of tokens, batches are cut by nothing else."""
        self.release()
        generator, methods = torch.Generator().manual_seed(self.seed), list(assembled.methods.values())
        given = self.spec.train, self.accelerator, generator, lambda notice: None
        training = Training(assembled.model, self.task, methods, *given)
        if micro_batch_tokens is not None:
            training.exact.micro_batch_tokens, training.exact.overhead = micro_batch_tokens, BOUNDLESS
        return training

    def steps(self, assembled: Assembled, number: int) -> Outcome:
        """Take so many steps from the start."""
        start = checkpoint.trained_state(assembled.model)
        losses = take(self.training(assembled), number)
        return Outcome(losses, start, checkpoint.trained_state(assembled.model))

    @functools.cached_property
    def trained(self) -> tuple[Assembled, Outcome]:
        """The model after `NUM_STEPS` steps without a stop."""
        assembled = self.fresh()
        return assembled, self.steps(assembled, NUM_STEPS)

    def batch(self, assembled: Assembled) -> Batch:
        """All rows of the training split as one batch."""
        generator = torch.Generator().manual_seed(self.seed)
        return next(self.task.batches(assembled.model, len(self.loaded.splits.train.examples), generator))

    def release(self) -> None:
        """Give back optimizers of former trainings, and put the scaler of the loss (fp16) back to its start."""
        self.accelerator.free_memory()
        if self._scaler:
            self.accelerator.scaler.load_state_dict(self._scaler)


def take(training: Training, number: int) -> list[float]:
    """Take so many more steps; returns their losses."""
    return [step.loss for step in itertools.islice(training.steps(), number)]


def same_steps(check: str, detail: str, rehearsal: Rehearsal, found: Outcome, expected: Outcome) -> Finding:
    """Whether two ways to take the same steps end alike: bit for bit on a CPU, within `ON_GPU` elsewhere."""
    losses = largest(by_step(found.losses), by_step(expected.losses))
    if rehearsal.accelerator.device.type == "cpu":
        apart = max(losses, largest(found.weights, expected.weights))
        return judged(check, f"{detail}, bit for bit", apart, 0.0)
    moved = _norm(expected.weights, expected.start)
    share = _norm(found.weights, expected.weights) / moved if moved else float("inf")
    apart = max(losses, (share, largest(found.weights, expected.weights)[1]))
    return judged(check, f"{detail}, as a share of what they change", apart, ON_GPU)


def by_step(losses: list[float]) -> dict[str, Tensor]:
    """The losses by the names they have in a finding."""
    return {f"the loss of step {n}": torch.tensor(loss, dtype=torch.float64) for n, loss in enumerate(losses, 1)}


def _norm(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squares = [(tensor.double() - other[name].double()).square().sum() for name, tensor in one.items()]
    return math.sqrt(float(sum(squares)))


def _few(split: Split) -> Split:
    """About `ROWS` rows with texts of different lengths up to the median, every class among them."""
    by_label: dict[int, list[int]] = {}
    sizes = ((len(example.text) + len(example.pair or ""), example.label) for example in split.examples)
    for _, index, label in sorted((size, index, label) for index, (size, label) in enumerate(sizes)):
        by_label.setdefault(label if isinstance(label, int) else 0, []).append(index)
    each = max(1, ROWS // len(by_label))
    kept = [row for rows in by_label.values() for row in _spread(rows[: -(-len(rows) // 2)], each)]
    return dataclasses.replace(split, examples=[split.examples[row] for row in kept])


def _spread(rows: list[int], number: int) -> list[int]:
    """So many of them, or all, at even distances."""
    if len(rows) <= number:
        return rows
    return [rows[i * (len(rows) - 1) // max(1, number - 1)] for i in range(number)]


def _shorten(spec: Spec, rows: int) -> Spec:
    two_epochs = {"batch_size": math.ceil(rows / 2), "epochs": 2, "max_steps": None, "warmup_steps": 0.0}
    train = spec.train.model_copy(update={**two_epochs, "memory_probe": "never", "nonfinite": "stop"})
    methods = {name: registry.build("method", name, settings).always() for name, settings in spec.methods.items()}
    return _with_methods(spec.model_copy(update={"train": train}), methods)


def _with_methods(spec: Spec, methods: Mapping[str, Method]) -> Spec:
    settings = {
        name: registry.settings_class("method", name)(**method.model_dump()) for name, method in methods.items()
    }
    return spec.model_copy(update={"methods": settings})
