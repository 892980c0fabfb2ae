"""Optimizer and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim.lr_scheduler import LRScheduler


class Train(Settings):
    """How long and how fast to train; the names of transformers' `TrainingArguments` where the meaning is the same."""

    batch_size: int = Field(ge=1)
    """Examples per optimizer step over all processes; how they are cut into micro-batches changes nothing."""
    epochs: int = Field(ge=1)
    """Passes over the training split, at most."""
    max_steps: int | None = Field(ge=1)
    """Optimizer steps, at most; null: no further limit."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"]
    """What follows the warm-up: down to zero linearly or as a cosine, or constant."""
    warmup_steps: float = Field(ge=0)
    """Steps of linear warm-up; below 1: as a share of all steps."""
    weight_decay: float = Field(ge=0)
    """Decoupled weight decay of matrices; biases and normalisation weights have none."""
    beta1: float = Field(ge=0, lt=1)
    """AdamW: how slowly the mean of the gradient changes."""
    beta2: float = Field(ge=0, lt=1)
    """AdamW: how slowly the mean of its square changes."""
    epsilon: float = Field(gt=0)
    """AdamW: added to the root of the mean square."""
    max_grad_norm: float | None = Field(gt=0)
    """The exact gradient of the batch is clipped to this norm; null: not clipped."""
    micro_batch_tokens: int = Field(ge=1)
    """At most so many padded tokens per forward on one device. A matter of memory: it never changes the gradient."""

    padding_free: Literal["auto", "always", "never"]
    """Run the layers of the model on real tokens only, where that was shown to compute the same. auto: on a CPU."""
    memory_probe: Literal["auto", "always", "never"]
    """Take the gradient of the longest texts before the first step, so that memory that does not suffice shows at once
    instead of after hours. auto: on a GPU."""
    nonfinite: Literal["stop", "skip", "rollback"]
    """What a loss or gradient that is NaN or infinite leads to, found before the weights change: stop the run; leave
    the step out; or compute again from the last checkpoint, which helps against a fault of the machine only."""
    max_nonfinite: int = Field(ge=1)
    """How many steps may be left out, or how many times the run may go back, before it stops all the same."""

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of a run that is not stopped early."""
        steps = self.epochs * steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def num_warmup_steps(self, total_steps: int) -> int:
        """Steps of warm-up."""
        return int(self.warmup_steps * total_steps if self.warmup_steps < 1 else self.warmup_steps)


@dataclass(frozen=True)
class Rule:
    """How the optimizer treats a parameter that a method speaks for."""

    learning_rate_ratio: float = 1.0
    """Its learning rate, as a multiple of `train.learning_rate`."""
    weight_decay: float | None = None
    """Its weight decay; None: that of `train`. Parameters below 2 axes have none either way."""


def parameter_groups(model: nn.Module, train: Train, rules: dict[str, Rule]) -> list[dict[str, Any]]:
    """Trainable parameters: matrices with weight decay; biases and normalisation weights (below 2 axes) without.

    `rules` by parameter name are the exceptions. Parameters with equal settings share a group, which also has its
    `learning_rate_ratio`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rule = rules.get(name, Rule())
            decay = train.weight_decay if rule.weight_decay is None else rule.weight_decay
            groups.setdefault((rule.learning_rate_ratio, decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    return [
        {"params": members, "lr": train.learning_rate * ratio, "weight_decay": decay, "learning_rate_ratio": ratio}
        for (ratio, decay), members in groups.items()
    ]


def build_optimizer(model: nn.Module, train: Train, rules: dict[str, Rule]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over the trainable parameters.

    Fused: one pass over each parameter, in place. On a CPU too it is several times faster than torch's loop, and it
    needs no memory that could run out in the middle of a step (rollback.py).
    """
    import torch

    return torch.optim.AdamW(
        parameter_groups(model, train, rules),
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=True,
    )


def build_schedule(optimizer: torch.optim.Optimizer, train: Train, total_steps: int) -> LRScheduler:
    """Warm-up, then the chosen schedule; counts optimizer steps."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if train.schedule == "constant" else train.schedule
    schedule: LRScheduler = get_scheduler(
        name, optimizer, num_warmup_steps=train.num_warmup_steps(total_steps), num_training_steps=total_steps
    )
    return schedule
