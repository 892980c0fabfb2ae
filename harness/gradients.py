"""The exact gradient of a batch, whatever it is cut into.

    gradient = sum over processes and micro-batches of d(share),    share = sum of losses / units of the whole batch

The units (examples, tokens, their weights) are counted over the whole global batch before any forward, so the gradient
depends neither on the cut, nor on the number of processes, nor on a retry after running out of memory, up to the order
of floating-point sums. Dropout is the exception: its masks are drawn per micro-batch.

Price: gradients are exchanged once per step after all backwards, so communication does not overlap computation; right
at fine-tuning scale, and the reason why one process's lack of memory cannot leave the others waiting in a collective.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from harness import seeding
from harness.batch import Batch, cut
from harness.errors import TrainingError
from harness.task import Task

CPU_OVERHEAD_TOKENS = 64
"""What one more forward and backward costs on a CPU, in tokens: short micro-batches pay off."""
GPU_OVERHEAD_TOKENS = 16_384
"""On a GPU launching kernels costs more than padding: cut only where memory demands it."""


class ExactGradient:
    """A `Backward`: replaces `.grad` by the exact gradient of the batch that `load` was given, and returns its loss."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        task: Task,
        micro_batch_tokens: int,
        notice: Callable[[str], None] = print,
    ) -> None:
        self.accelerator, self.model, self.task, self.notice = accelerator, model, task, notice
        self.micro_batch_tokens = micro_batch_tokens
        self.num_micro_batches = 0
        self.num_out_of_memory = 0
        self.overhead = CPU_OVERHEAD_TOKENS if accelerator.device.type == "cpu" else GPU_OVERHEAD_TOKENS
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def load(self, batch: Batch) -> None:
        """Set the batch of the next step: the global one, the same on all processes; each takes its part."""
        self._units = self.task.count(batch)
        self._padded_tokens = len(batch) * int(batch.lengths.max())
        self._batch = batch.shard(self.accelerator.process_index, self.accelerator.num_processes)

    def __call__(self) -> Tensor:
        """The batch loss, shape [], detached. Raises TrainingError if even one example does not fit into memory."""
        random_state = seeding.capture()
        while True:
            loss, failed = self._attempt()
            has_grad, failed = self._agree(failed)
            if not failed:
                return self._exchange(loss, has_grad)
            self._halve()
            seeding.restore(random_state)

    def _attempt(self) -> tuple[Tensor, bool]:
        """Forward and backward of every micro-batch of this process, without any collective."""
        for parameter in self._parameters:
            parameter.grad = None
        total = torch.zeros((), device=self.accelerator.device)
        micro_batches = cut(self._batch.lengths.tolist(), self.micro_batch_tokens, self.overhead)
        self.num_micro_batches = len(micro_batches)
        try:
            for rows in micro_batches:
                micro = self._batch.take(rows).to(self.accelerator.device)
                with self.accelerator.autocast():
                    share = self.task.loss(self.model, micro, self._units)
                self.accelerator.backward(share)
                total += share.detach()
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            return total, True
        return total, False

    def _agree(self, failed: bool) -> tuple[list[bool], bool]:
        """Which parameters have a gradient, and whether memory ran out, on any process (one reduction, maximum)."""
        flags = [parameter.grad is not None for parameter in self._parameters]
        if self.accelerator.num_processes == 1:
            return flags, failed
        tensor = torch.tensor([failed, *flags], dtype=torch.int32, device=self.accelerator.device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        any_failed, *any_grad = (bool(flag) for flag in tensor.tolist())
        return any_grad, any_failed

    def _exchange(self, loss: Tensor, has_grad: list[bool]) -> Tensor:
        """Sum gradients and loss over the processes, once, as one flat tensor per dtype."""
        if self.accelerator.num_processes == 1:
            return loss
        exchanged = [p for p, has in zip(self._parameters, has_grad, strict=True) if has]
        for parameter in exchanged:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in {parameter.dtype for parameter in exchanged}:
            grads = [p.grad for p in exchanged if p.dtype == dtype and p.grad is not None]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            torch.distributed.all_reduce(flat)
            for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(summed.view_as(grad))
        torch.distributed.all_reduce(loss)
        return loss

    def _halve(self) -> None:
        """Halve the micro-batch; the optimizer step, its batch and its random numbers stay what they were."""
        for parameter in self._parameters:
            parameter.grad = None
        clear_device_cache(garbage_collection=True)
        longest = int(self._batch.lengths.max()) if len(self._batch) else 0
        alone = self.accelerator.num_processes == 1 and self.num_micro_batches >= len(self._batch)
        if alone or self.micro_batch_tokens == 1:
            raise TrainingError(
                f"out of memory with one example of {longest} tokens at a time",
                fix="shorten max_length, use precision=bf16, train fewer parameters (LoRA), or take a smaller model",
            )
        before = self.micro_batch_tokens
        self.micro_batch_tokens = max(1, min(before, self._padded_tokens) // 2)
        self.num_out_of_memory += 1
        self.notice(f"out of memory: micro_batch_tokens {before} -> {self.micro_batch_tokens}, the step is done again")
