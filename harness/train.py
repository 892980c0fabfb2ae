"""The loop, a generator: what to log, judge and save after a step is decided by whoever iterates."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness import faults, rollback, seeding
from harness.batch import Batch
from harness.errors import StorageError, TrainingError
from harness.gradients import ExactGradient, OutOfMemory
from harness.machine import memory
from harness.machine.processes import Agreement
from harness.method import Backward, Method
from harness.optim import Train, build_optimizer, build_schedule
from harness.task import Task


@dataclass(frozen=True)
class Step:
    """One optimizer step that has been taken, or left out."""

    number: int
    """Counted from 1."""
    epoch: int
    """Counted from 1."""
    ends_epoch: bool
    loss: float
    grad_norm: float
    """Norm of the exact gradient before clipping."""
    learning_rate: float
    """The rate this step was taken with."""
    num_examples: int
    num_tokens: int
    """Real tokens, without padding."""
    num_micro_batches: int
    """Micro-batches of this process."""
    micro_batch_tokens: int
    """The budget they were cut by."""
    skipped: str
    """Why no weight changed: `loss scale` (fp16's overflowed and was lowered), `nonfinite`; "" for a step taken."""
    observed: dict[str, Tensor]
    """What the methods saw in this step, by name; tensors of shape [] on the device."""


class NonFinite(TrainingError):
    """Loss or gradient are not finite; the weights are those of before the step."""


@dataclass
class Progress:
    """How far a run's training is, and what it met on the way."""

    number: int = 0
    """Steps taken or left out."""
    epoch: int = 1
    index: int = 0
    """Batches of the epoch that are done."""
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """The state of the generator that orders the examples, as it was at the beginning of the epoch."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Steps left out, by reason."""
    num_out_of_memory: int = 0
    seconds_lost: float = 0.0
    """Spent on what was computed in vain, because memory ran out."""


class Training:
    """One run's training: `steps` yields after every optimizer step; `state` and `load_state` carry it over a stop."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        methods: list[Method],
        train: Train,
        accelerator: Accelerator,
        generator: torch.Generator,
        notice: Callable[[str], None] = print,
    ) -> None:
        """`generator` orders the examples; all processes start it with the same seed."""
        self.model, self.task, self.methods, self.train = model, task, methods, train
        self.accelerator, self.generator, self.notice = accelerator, generator, notice
        self.total_steps = train.total_steps(task.num_batches(train.batch_size))
        self.agreement = Agreement(accelerator)
        self.exact = ExactGradient(accelerator, model, task, train.micro_batch_tokens, self.agreement)
        self.backward: Backward = self.exact
        for method in methods:
            self.backward = method.wrap_backward(self.backward, model)
        rules = {name: rule for method in methods for name, rule in method.optimizer_rules(model).items()}
        self.optimizer: Any = accelerator.prepare_optimizer(build_optimizer(model, train, rules))
        rollback.materialise(self.optimizer.optimizer)  # so that no step needs memory for it
        self.schedule: Any = build_schedule(self.optimizer.optimizer, train, self.total_steps)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        persistent = model.state_dict()
        self.buffers = [buffer for name, buffer in model.named_buffers() if name in persistent]
        self.thrash = memory.AllocatorThrash()
        self.progress = Progress()

    def steps(self) -> Iterator[Step]:
        """Train, one yield per optimizer step, from where `progress` stands.

            for every epoch, for every batch:
                methods draw what is random per step
                gradient of the whole batch, exact          (methods may wrap this: perturb, repeat, restore)
                clip, optimizer step, schedule step
                yield

        Raises:
            TrainingError: not even one example fits into memory, or another process is gone.
            NonFinite: the loss or the gradient, and `train.nonfinite` does not let the step be left out.
        """
        at, last = self.progress, self.task.num_batches(self.train.batch_size)
        if at.number == 0:
            self._probe()
        while at.epoch <= self.train.epochs and at.number < self.total_steps:
            if at.index == 0:
                at.order = self.generator.get_state()
            self.generator.set_state(at.order)
            batches = self.task.batches(self.model, self.train.batch_size, self.generator)
            for batch in islice(batches, at.index, None):
                step = self._step(batch)
                at.number, at.index = step.number, at.index + 1
                yield dataclasses.replace(step, ends_epoch=at.index == last)
                faults.point("step.end")
                if at.number == self.total_steps:
                    return
            at.epoch, at.index = at.epoch + 1, 0

    def _step(self, batch: Batch) -> Step:
        number = self.progress.number + 1
        faults.begin_step(number)
        self.model.train()
        for method in self.methods:
            method.start_step(number - 1)
        self.exact.load(batch)
        loss = self._gradient()
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.train.max_grad_norm or math.inf)
        if faults.point("gradient.result") == "nan":
            loss = loss * math.nan
        loss_value, norm_value = torch.stack([loss.float(), norm.float()]).tolist()
        learning_rate = float(self.schedule.get_last_lr()[0]) / self.optimizer.param_groups[0]["learning_rate_ratio"]
        skipped = self._update(number, loss_value, norm_value)
        if skipped:
            self.progress.skipped[skipped] = self.progress.skipped.get(skipped, 0) + 1
        return Step(
            number, self.progress.epoch, False, loss_value, norm_value, learning_rate,
            len(batch), int(batch.lengths.sum()), self.exact.num_micro_batches, self.exact.micro_batch_tokens, skipped,
            {name: value for method in self.methods for name, value in method.observed().items()},
        )  # fmt: skip

    def _gradient(self) -> Tensor:
        """The gradient through all methods, taken again in smaller pieces as long as memory runs out on any process.

        Between two attempts generators and buffers go back to what they were, so that the last attempt is bit for bit
        a step that was planned with its cut.
        """
        before = self._capture()
        while True:
            started, has_failed, retry = time.monotonic(), False, False
            loss = torch.zeros(())
            try:
                loss = self.backward()
                faults.point("gradient.after_pass")
            except OutOfMemory:
                retry = True
            except (RuntimeError, MemoryError) as error:  # in a method, outside of the forward and backward passes
                if not memory.ran_out(error):
                    raise
                has_failed = True
            if not retry:
                agreed = self.agreement.reach(retry=has_failed, shrink=self.thrash.is_thrashing())
                if agreed.shrink and not agreed.retry and not self.exact.is_smallest:
                    self._halve("memory is nearly used up")
                if not agreed.retry:
                    return loss
            self._put_back(before)
            memory.release()
            self._halve("out of memory")
            self.progress.num_out_of_memory += 1
            self.progress.seconds_lost += time.monotonic() - started

    def _capture(self) -> tuple[seeding.RandomState, list[Tensor]]:
        return seeding.capture(), [buffer.clone() for buffer in self.buffers]

    def _put_back(self, before: tuple[seeding.RandomState, list[Tensor]]) -> None:
        """Generators and buffers as they were captured, and no gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None
        seeding.restore(before[0])
        for buffer, value in zip(self.buffers, before[1], strict=True):
            buffer.copy_(value)

    def _halve(self, why: str) -> None:
        before = self.exact.micro_batch_tokens
        self.exact.halve()
        now = self.exact.micro_batch_tokens
        self.notice(f"NOTE {why}: micro_batch_tokens {before} -> {now}; the batch and the step stay what they are")

    def _update(self, number: int, loss: float, norm: float) -> str:
        """Take the optimizer step, or say why it was left out. Raises NonFinite."""
        scaler = self.accelerator.scaler  # in fp16: it finds infinite gradients itself, and scales down
        if not (math.isfinite(loss) and (scaler or math.isfinite(norm))):
            if scaler:
                scaler.update()  # it has unscaled this gradient, and would refuse the next one
            self._judge_nonfinite(number, loss, norm)
            return "nonfinite"
        if scaler is None:
            rollback.step(self.optimizer.optimizer, self.notice)
        elif self._overflows(scaler):
            return "loss scale"
        self.schedule.step()
        return ""

    def _overflows(self, scaler: Any) -> bool:
        """Take the step unless a scaled gradient is infinite; whether it was.

        Told by the scale, which only then falls: a fused optimizer is always called, and leaves the step out on the
        device, where `AcceleratedOptimizer.step_was_skipped` does not see it.
        """
        before = scaler.get_scale()
        scaler.step(self.optimizer.optimizer)
        scaler.update()
        return bool(scaler.get_scale() < before)

    def _judge_nonfinite(self, number: int, loss: float, norm: float) -> None:
        left_out = self.progress.skipped.get("nonfinite", 0)
        if self.train.nonfinite != "skip" or left_out >= self.train.max_nonfinite:
            fix = "start anew with a lower train.learning_rate or a longer warm-up"
            fix += ", or with precision=bf16 instead of fp16" if self.accelerator.scaler else ""
            fix += ", or leave such steps out: train.nonfinite=skip" if self.train.nonfinite == "stop" else ""
            why = f"{left_out} such steps were left out before" if left_out else ""
            raise NonFinite(f"the loss is {loss}, the gradient norm {norm}, at step {number}", why=why, fix=fix)
        self.notice(f"NOTE step {number} left out: the loss is {loss}, the gradient norm {norm}")

    def _probe(self) -> None:
        """Take the gradient of the longest texts once, so that memory runs out now or not at all; changes nothing."""
        wanted = {"always": True, "never": False}.get(self.train.memory_probe, self.accelerator.device.type != "cpu")
        batch = self.task.longest_batch(self.train.batch_size) if wanted else None
        if batch is None:
            return
        before = self._capture()
        self.model.train()
        for method in self.methods:
            method.start_step(0)
        self.exact.load(batch)
        self._gradient()
        self._put_back(before)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's moments and counts as `<kind>/<parameter>`."""
        state = self.optimizer.optimizer.state
        return {
            f"{kind}/{name}": value.detach().to("cpu", copy=True)
            for name, parameter in self.parameters.items()
            for kind, value in state.get(parameter, {}).items()
        }

    def state(self) -> dict[str, Any]:
        """Everything else a later process needs to go on, as values that JSON can hold."""
        schedule = {k: self.schedule.state_dict()[k] for k in ("last_epoch", "_step_count", "base_lrs", "_last_lr")}
        return {
            "progress": {**dataclasses.asdict(self.progress), "order": seeding.to_hex(self.progress.order)},
            "micro_batch_tokens": self.exact.micro_batch_tokens,
            "schedule": schedule,
            "learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }

    def load_state(self, optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on where `optimizer_state` and `state` were taken. Raises StorageError if they belong to another model."""
        by_kind = {tuple(key.split("/", 1)): value for key, value in optimizer.items()}
        if odd := {name for _, name in by_kind} - self.parameters.keys():
            why = f"no parameter is called {min(odd)}"
            raise StorageError("the optimizer's state belongs to another model or other methods", why=why)
        own = self.optimizer.optimizer.state
        own.clear()
        for (kind, name), value in by_kind.items():
            parameter = self.parameters[name]
            own[parameter][kind] = value.to(parameter.device, copy=True)  # a fused optimizer counts on the device
        for group, rate in zip(self.optimizer.param_groups, state["learning_rates"], strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None] * len(self.schedule.lr_lambdas)})
        self.exact.micro_batch_tokens = state["micro_batch_tokens"]
        self.progress = Progress(**{**state["progress"], "order": seeding.from_hex(state["progress"]["order"])})
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
