"""Train, validate as often as the spec says, stop early, and keep the best checkpoint."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from harness import checkpoint, evaluate, train
from harness.assembly import Assembled
from harness.console import Terminal
from harness.errors import TrainingError
from harness.metric import History, Metric
from harness.spec import Spec
from harness.task import Task
from harness.tracker import Tracker

PENDING_STEPS = 50
"""Values of so many steps wait on the device before they are read together."""


@dataclass
class Selected:
    """The best checkpoint of a run, and how it was found."""

    history: History = field(default_factory=lambda: defaultdict(list))
    score: float | None = None
    step: int = 0
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    num_steps: int = 0
    num_examples: int = 0
    train_seconds: float = 0.0


class Selection:
    """One run's training: `fit` yields steps, this decides what follows each."""

    def __init__(
        self, spec: Spec, task: Task, assembled: Assembled, metrics: dict[str, Metric],
        accelerator: Accelerator, tracker: Tracker, terminal: Terminal,
    ) -> None:  # fmt: skip
        self.spec, self.task, self.assembled, self.metrics = spec, task, assembled, metrics
        self.accelerator, self.tracker, self.terminal = accelerator, tracker, terminal
        self.found = Selected()
        self.waiting: list[train.Step] = []
        self.per_epoch = task.num_batches(spec.train.batch_size)
        self.total = spec.train.total_steps(self.per_epoch)

    def select(self, seed: int) -> Selected:
        """Take steps until the end or until nothing got better for the patience; `seed` orders the examples.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        every = self.spec.evaluation.every.steps(self.per_epoch)
        generator = torch.Generator().manual_seed(seed)
        methods = list(self.assembled.methods.values())
        model = self.assembled.model.to(self.accelerator.device)
        clock = time.monotonic()
        with self.terminal.progress(self.total) as line:
            for step in train.fit(model, self.task, methods, self.spec.train, self.accelerator, generator):
                self._note(step)
                if line.due():
                    line.update(step.number, f"epoch {step.epoch}  loss {float(step.loss):.3f}")
                if step.number % every == 0 or step.number == self.total:
                    self._log()
                    self.found.train_seconds += time.monotonic() - clock
                    self._validate(step)
                    clock = time.monotonic()
                    if self._is_out_of_patience(step):
                        break
        return self.found

    def _note(self, step: train.Step) -> None:
        self.waiting.append(step)
        self.found.num_steps, self.found.num_examples = step.number, self.found.num_examples + step.num_examples
        if step.number == 1:
            self.tracker.open()  # not before: importing the tracker's library would delay the first step by seconds
        if len(self.waiting) >= PENDING_STEPS:
            self._log()

    def _log(self) -> None:
        """Read the values of the waiting steps at once, which waits for the device, and hand them to the tracker."""
        if not self.waiting:
            return
        values = torch.stack([torch.stack([s.loss.float(), s.grad_norm.float()]) for s in self.waiting]).tolist()
        for step, (loss, grad_norm) in zip(self.waiting, values, strict=True):
            if not math.isfinite(loss) or not (math.isfinite(grad_norm) or step.was_skipped):
                raise TrainingError(
                    f"the loss is {loss}, the gradient norm {grad_norm}, at step {step.number}",
                    fix="lower train.learning_rate, warm up longer, or use precision=bf16 instead of fp16",
                )
            norm = {} if step.was_skipped else {"train/grad_norm": grad_norm}
            observed = {f"train/{name}": float(value) for name, value in step.observed.items()}
            self._record(
                norm
                | observed
                | {
                    "train/loss": loss,
                    "train/learning_rate": step.learning_rate,
                    "train/micro_batches": float(step.num_micro_batches),
                },
                step.number,
            )
        self.waiting.clear()

    def _record(self, scores: dict[str, float], step: int) -> None:
        self.tracker.metrics(scores, step)
        for key, value in scores.items():
            self.found.history[key].append((step, value))

    def _validate(self, step: train.Step) -> None:
        """Score the validation split; keep the checkpoint if it is the best so far."""
        predictions = evaluate.predict(self.assembled.model, self.task, "validation", self.accelerator)
        scores = evaluate.score(predictions, self.metrics, "validation")
        self._record(scores, step.number)
        stopping = self.spec.early_stopping
        score, sign = scores[stopping.metric], 1 if stopping.direction == "maximize" else -1
        if not math.isfinite(score):
            raise TrainingError(f"{stopping.metric} is {score} at step {step.number}", fix="lower train.learning_rate")
        is_better = self.found.score is None or sign * score > sign * self.found.score
        if is_better:
            self.found.score, self.found.step, self.found.epoch = score, step.number, step.epoch
            self.found.state = checkpoint.trained_state(self.assembled.model)
        best = "  best so far" if is_better else ""
        self.terminal.say(f"epoch {step.epoch}  step {step.number}  {stopping.metric} {score:.4f}{best}")

    def _is_out_of_patience(self, step: train.Step) -> bool:
        patience = self.spec.early_stopping.patience
        is_out = patience is not None and step.number - self.found.step >= patience.steps(self.per_epoch)
        if is_out and step.number < self.total:
            self.terminal.say(f"stopped early: nothing better for {patience}")
        return is_out
