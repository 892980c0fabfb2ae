"""The loop, a generator: what to log, judge and save after a step is decided by whoever iterates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from harness.errors import SpecError
from harness.gradients import ExactGradient
from harness.method import Backward, Method
from harness.optim import Train, build_optimizer, build_schedule
from harness.task import Task

_PLAIN = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


@dataclass(frozen=True)
class Step:
    """One optimizer step that has been taken. Tensors are of shape [] and on the device: reading them waits for it."""

    number: int
    """Counted from 1."""
    epoch: int
    """Counted from 1."""
    ends_epoch: bool
    loss: Tensor
    grad_norm: Tensor
    """Norm of the exact gradient before clipping."""
    learning_rate: float
    """The rate this step was taken with."""
    num_examples: int
    num_tokens: int
    """Real tokens, without padding."""
    num_micro_batches: int
    """Micro-batches of this process."""
    was_skipped: bool
    """Whether fp16's loss scale overflowed: the scale was lowered, and no weight changed."""
    observed: dict[str, Tensor]
    """What the methods saw in this step, by name."""


def build_accelerator(precision: str) -> Accelerator:
    """Accelerate's view of device, processes and mixed precision (`no`, `bf16` or `fp16`).

    Raises:
        SpecError: processes were started that do not know of each other (accelerate launches such without a GPU).
    """
    accelerator = Accelerator(mixed_precision=precision)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise SpecError(
            f"{started} processes were started but this one knows of {accelerator.num_processes}",
            why="each would train alone and write the same run",
            fix="on CPU: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N launch.py ...",
        )
    if accelerator.gradient_accumulation_steps != 1 or accelerator.distributed_type not in _PLAIN:
        raise SpecError(
            f"Accelerate is set up for {accelerator.distributed_type.value} with "
            f"{accelerator.gradient_accumulation_steps} accumulation steps",
            why="batches are cut and gradients exchanged by the harness itself",
            fix="launch without --gradient_accumulation_steps, FSDP and DeepSpeed (see `accelerate config`)",
        )
    return accelerator


def fit(
    model: nn.Module,
    task: Task,
    methods: list[Method],
    train: Train,
    accelerator: Accelerator,
    generator: torch.Generator,
) -> Iterator[Step]:
    """Train, one yield per optimizer step.

        for every epoch, for every batch:
            methods draw what is random per step
            gradient of the whole batch, exact          (methods may wrap this: perturb, repeat, restore)
            clip, optimizer step, schedule step
            yield

    `generator` orders the examples; all processes must start it with the same seed.
    """
    total_steps = train.total_steps(task.num_batches(train.batch_size))
    rules = {name: rule for method in methods for name, rule in method.optimizer_rules(model).items()}
    optimizer: Any = accelerator.prepare_optimizer(build_optimizer(model, train, rules))
    schedule = build_schedule(optimizer.optimizer, train, total_steps)
    exact = ExactGradient(accelerator, model, task, train.micro_batch_tokens, notice=accelerator.print)
    backward: Backward = exact
    for method in methods:
        backward = method.wrap_backward(backward, model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    number = 0
    for epoch in range(1, train.epochs + 1):
        last = task.num_batches(train.batch_size)
        for index, batch in enumerate(task.batches(model, train.batch_size, generator), start=1):
            model.train()
            for method in methods:
                method.start_step(number)
            exact.load(batch)
            loss = backward()
            grad_norm = accelerator.clip_grad_norm_(parameters, train.max_grad_norm or float("inf"))
            learning_rate = float(schedule.get_last_lr()[0]) / optimizer.param_groups[0]["learning_rate_ratio"]
            optimizer.step()
            if not optimizer.step_was_skipped:
                schedule.step()
            number += 1
            yield Step(
                number, epoch, index == last, loss, grad_norm, learning_rate,
                len(batch), int(batch.lengths.sum()), exact.num_micro_batches, optimizer.step_was_skipped,
                {name: value for method in methods for name, value in method.observed().items()},
            )  # fmt: skip
            if number == total_steps:
                return
