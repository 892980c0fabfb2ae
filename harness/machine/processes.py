"""Several processes, one run: what they decide together, and how the end of one of them is told by the others."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor

from harness import interruption, notes
from harness.errors import LostProcess, SpecError
from harness.machine import memory

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for a living one. That one has died is seen at once, by the launcher or the connection."""
_PLAIN = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
_ON_CPU = "on a CPU: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N launch.py ..."


def build_accelerator(precision: str) -> Accelerator:
    """Accelerate's view of device, processes and mixed precision (`no`, `bf16` or `fp16`).

    Raises:
        SpecError: fewer processes than were asked for, processes that do not know of each other, or an engine (FSDP,
            DeepSpeed, Megatron) that shards what the harness needs whole.
    """
    refuse_lost_processes()
    if (dynamo := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() not in ("", "no"):
        notes.note(f"Accelerate's dynamo backend {dynamo} is not used: nothing is compiled")
    patience = InitProcessGroupKwargs(timeout=PATIENCE)  # the first process writes reports alone, the others wait
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise SpecError(
            f"{started} processes were started but this one knows of {accelerator.num_processes}",
            why="each would train alone and write the same run",
            fix=_ON_CPU,
        )
    if accelerator.distributed_type not in _PLAIN:
        raise SpecError(
            f"{accelerator.distributed_type.value} is not supported: every process holds the whole model",
            why="micro-batches are cut by length, and cut again when memory runs out; a sharded model would need all "
            "processes to take the same number of them",
            fix="launch without it (see `accelerate config`); for a large model train LoRA with precision=bf16",
        )
    if accelerator.gradient_accumulation_steps != 1:
        what = f"Accelerate is set up for {accelerator.gradient_accumulation_steps} accumulation steps"
        fix = "leave them at 1, and name train.batch_size: the harness cuts it into micro-batches that fit"
        raise SpecError(what, why="the loss would be divided twice", fix=fix)
    return accelerator


def is_from_accelerate() -> bool:
    """Whether `accelerate launch` started this process: it always says the precision."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def refuse_lost_processes() -> None:
    """Raise SpecError if `accelerate launch` was asked for several processes and started one: so it does on a CPU.

    It then names a meeting point (MASTER_ADDR) but no number of processes (WORLD_SIZE).
    """
    if is_from_accelerate() and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise SpecError("several processes were asked for, but accelerate started one", fix=_ON_CPU)


@dataclass
class Wishes:
    """What any process may ask all of them to do; the largest value wins."""

    retry: int = 0
    """Memory ran out: take this step again in smaller pieces."""
    shrink: int = 0
    """Memory is nearly used up: take the next step in smaller pieces."""
    exit_code: int = 0
    """Stop after this step."""
    save: int = 0
    """Save a checkpoint after this step."""
    stop: int = 0
    """End the run after this step: its time is over."""


class Agreement:
    """Lets all processes decide the same: every process calls `reach` equally often, between its own computations.

    Between two calls no process enters another collective, so that one of them failing cannot leave the others waiting.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.is_save_due: Callable[[], bool] = lambda: False
        """Asked on every process; the first one's clock is enough."""
        self.is_time_over: Callable[[], bool] = lambda: False
        """The same, for the end of the run."""
        self.agreed = Wishes()
        """The outcome of the last call."""

    def reach(self, *, retry: bool = False, shrink: bool = False) -> Wishes:
        """Say what this process wishes, and learn what all do (one reduction of five numbers, maximum)."""
        own = [int(retry), int(shrink), interruption.requested(), int(self.is_save_due())]
        own.append(int(self.is_time_over()))
        if self._accelerator.num_processes > 1:
            tensor = torch.tensor(own, dtype=torch.int32, device=self._accelerator.device)
            with together():
                torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
                own = [int(value) for value in tensor.tolist()]
        self.agreed = Wishes(*own)
        return self.agreed


@contextmanager
def together() -> Iterator[None]:
    """Around what needs every process. Raises LostProcess if another one is gone."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors; only their texts differ
        if memory.ran_out(error):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        what = f"process {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')} lost another process"
        fix = "its own message, or the launcher's, says why; then resume the run"
        raise LostProcess(what, why=lines[0], fix=fix) from error


def sum_over(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if accelerator.num_processes > 1:
        with together():
            torch.distributed.all_reduce(tensor)
    return tensor


def gather(accelerator: Accelerator, value: Any) -> list[Any]:
    """The values of all processes in order of rank, on every process."""
    if accelerator.num_processes == 1:
        return [value]
    with together():
        gathered: list[Any] = gather_object([value])
        return gathered


def from_first(accelerator: Accelerator, value: Any) -> Any:
    """The first process's value, on every process."""
    if accelerator.num_processes == 1:
        return value
    with together():
        return broadcast_object_list([value])[0]


def wait(accelerator: Accelerator) -> None:
    """Until every process is here."""
    if accelerator.num_processes > 1:
        with together():
            accelerator.wait_for_everyone()
