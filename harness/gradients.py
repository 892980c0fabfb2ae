"""The exact gradient of a batch, whatever it is cut into.

    gradient = sum over processes and micro-batches of d(share),    share = sum of losses / units of the whole batch

The units (examples, tokens, their weights) are counted over the whole global batch before any forward, so the gradient
depends neither on the cut, nor on the number of processes, nor on a retry after running out of memory, up to the order
of floating-point sums. Dropout is the exception: its masks are drawn per micro-batch.

Price: gradients are exchanged once per step after all backwards, so communication does not overlap computation; right
at fine-tuning scale, and the reason why one process's lack of memory cannot leave the others waiting in a collective.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness import faults
from harness.batch import FEWEST, Batch, cut, overhead_tokens
from harness.machine import memory
from harness.machine.processes import Agreement, sum_over
from harness.models import padding_free
from harness.models.embedding_gradients import EmbeddingGradients
from harness.task import Task


class OutOfMemory(Exception):
    """Memory ran out on some process, and all of them know: the step is to be taken again in smaller pieces."""


class ExactGradient:
    """A `Backward`: replaces `.grad` by the exact gradient of the batch that `load` was given, and returns its loss."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        task: Task,
        micro_batch_tokens: int,
        agreement: Agreement | None = None,
    ) -> None:
        self.accelerator, self.model, self.task = accelerator, model, task
        self.agreement = agreement or Agreement(accelerator)
        self.micro_batch_tokens = micro_batch_tokens
        self.num_micro_batches = 0
        self.overhead = overhead_tokens(accelerator.device)
        """What one more micro-batch costs, in tokens of padding; without padding there are as few as can be."""
        self._is_tried = False
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._embeddings = EmbeddingGradients(model)

    def load(self, batch: Batch) -> None:
        """Set the batch of the next step: the global one, the same on all processes; each takes its part."""
        self._units = self.task.count(batch)
        self._rows, self._longest = len(batch), int(batch.lengths.max())
        self._batch = batch.shard(self.accelerator.process_index, self.accelerator.num_processes)
        if not self._is_tried:
            self._is_tried = True
            self._try_without_padding(batch)

    def _try_without_padding(self, batch: Batch) -> None:
        """See whether the model runs without padding before the first cut is made, so that all are made alike.

        On the same texts on every process. Where memory does not suffice for two of them, that is for the step to tell.
        """
        if not padding_free.is_on(self.model):
            return
        order = batch.by_length()
        few = batch.take([order[0], order[-1]]).to(self.accelerator.device)
        try:
            with padding_free.trial(self.model), self.accelerator.autocast():
                self.task.loss(self.model, few, self._units)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise

    def __call__(self) -> Tensor:
        """The batch loss, shape [], detached. Raises OutOfMemory, on all processes, if it ran out on any."""
        loss, summed, has_failed = torch.zeros(()), [], False
        try:
            with self._embeddings.collected():
                loss = self._accumulate()
            summed = self._flatten(loss)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            has_failed = True
        if self.agreement.reach(retry=has_failed).retry:  # outside `except`: its traceback holds the activations
            raise OutOfMemory
        return self._exchange(summed) if summed else loss

    def _accumulate(self) -> Tensor:
        """Forward and backward of every micro-batch of this process, without any collective."""
        for parameter in self._parameters:
            parameter.grad = None
        total = torch.zeros((), device=self.accelerator.device)
        overhead = FEWEST if padding_free.is_on(self.model) else self.overhead
        micro_batches = cut(self._batch.lengths.tolist(), self.micro_batch_tokens, overhead)
        self.num_micro_batches = len(micro_batches)
        for rows in micro_batches:
            micro = self._batch.take(rows).to(self.accelerator.device)
            faults.point("gradient.forward")
            with self.accelerator.autocast(), padding_free.running(self.model):
                share = self.task.loss(self.model, micro, self._units)
            faults.point("gradient.backward")
            self.accelerator.backward(share)
            total += share.detach()
        return total

    def _flatten(self, loss: Tensor) -> list[Tensor]:
        """One tensor per dtype that holds every gradient (zeros where there is none), and which of them there are.

        All that the exchange needs is allocated here, so that nothing can fail between the processes' agreement and it.
        The first tensor ends with the loss.
        """
        if self.accelerator.num_processes == 1:
            return []
        flat = []
        for index, parameters in enumerate(self._by_dtype()):
            grads = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters]
            present = torch.tensor([float(p.grad is not None) for p in parameters]).to(grads[0])
            flat.append(torch.cat([*grads, present, *([loss.to(grads[0]).reshape(1)] if index == 0 else [])]))
        return flat

    def _by_dtype(self) -> list[list[nn.Parameter]]:
        dtypes = dict.fromkeys(parameter.dtype for parameter in self._parameters)
        return [[p for p in self._parameters if p.dtype == dtype] for dtype in dtypes]

    def _exchange(self, flat: list[Tensor]) -> Tensor:
        """Sum gradients and loss over the processes, once; a parameter that none of them used keeps no gradient."""
        for summed, parameters in zip(flat, self._by_dtype(), strict=True):
            sum_over(self.accelerator, summed)
            sizes = [parameter.numel() for parameter in parameters]
            *grads, present = summed[: sum(sizes) + len(sizes)].split([*sizes, len(sizes)])
            for parameter, grad, is_present in zip(parameters, grads, present.tolist(), strict=True):
                parameter.grad = grad.view_as(parameter) if is_present else None
        return flat[0][-1].clone()

    def halve(self) -> None:
        """Take smaller micro-batches from now on. Raises TrainingError: the longest example stands alone already."""
        if self.is_smallest:
            raise memory.exhausted("a forward and backward pass", 1, self._longest)
        self.micro_batch_tokens = max(1, min(self.micro_batch_tokens, self._rows * self._longest) // 2)

    @property
    def is_smallest(self) -> bool:
        """Whether smaller micro-batches would leave the largest one of the loaded batch as it is."""
        return self.micro_batch_tokens < self._longest or self._rows == 1
