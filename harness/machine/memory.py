"""Running out of memory: how it is recognised, what is released, what is said at the end, and how thrashing shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from harness.errors import MemoryExhausted
from harness.machine import device

_SIGNS = (
    "CUDA error: out of memory",  # a failed cudaMalloc outside the caching allocator
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSPARSE, cuSOLVER
    "DEVICE_ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "HOST_ALLOCATION_FAILED",
    "std::bad_alloc",  # C++ containers inside torch
)


def ran_out(error: BaseException) -> bool:
    """Whether this error says that memory ran out: on a device, in a library of its, or on the host.

    `MemoryError` is among them (numpy, Python), which accelerate's `should_reduce_batch_size` leaves out.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(sign in str(error) for sign in _SIGNS)


def release() -> None:
    """Give back what nobody uses: unreachable objects, and the blocks that the device's allocator keeps.

    Call it after the `except` block has ended: until then the traceback holds every tensor of the failed frames.
    """
    clear_device_cache(garbage_collection=True)


def exhausted(what: str, rows: int, longest: int) -> MemoryExhausted:
    """The error of a run that cannot be cut smaller: `what` ran out of memory at `rows` texts of `longest` tokens.

    What is 0 is not said: no batch is to blame, or the length is not known.
    """
    size = f"{rows} x {longest} tokens (batch x longest text)" if longest else f"{rows} text at a time"
    shape = f" with {size}" if rows else ""
    free = ", ".join(f"{size / 1024**3:.2f} GiB free {where}" for where, size in _free().items())
    return MemoryExhausted(
        f"out of memory in {what}{shape}",
        why=f"peak {device.peak_memory_gib():.2f} GiB{free and ', '}{free}; there is nothing left to halve",
        fix="a smaller max_length, precision=bf16 (on a GPU), fewer trained parameters (exp=lora), or a smaller model",
    )


def _free() -> dict[str, int]:
    """Bytes that are free on the GPU, where there is one, and on the host, where it tells (Linux)."""
    free = {"on the GPU": torch.cuda.mem_get_info()[0]} if torch.cuda.is_available() else {}
    table = Path("/proc/meminfo")
    for line in table.read_text(encoding="ascii").splitlines() if table.exists() else ():
        if line.startswith("MemAvailable:"):
            free["on the host"] = int(line.split()[1]) * 1024
    return free


class AllocatorThrash:
    """Whether CUDA's caching allocator lives from hand to mouth.

    A retry is an allocation that only succeeded after the whole cache was given back to the driver, which waits for
    the device: training still works, several times slower. One step with retries may be a longest batch; two in a row
    ask for a smaller micro-batch.
    """

    def __init__(self, statistics: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """`statistics` stands for `torch.cuda.memory_stats`, the default where there is a GPU."""
        on_gpu = torch.cuda.is_available()
        self._statistics = statistics or (torch.cuda.memory_stats if on_gpu else dict[str, Any])
        self._retries = self._count()
        self._in_a_row = 0

    def is_thrashing(self) -> bool:
        """To be called once per step: True where this call and the one before it both saw new retries.

        Counting starts afresh then, so that a smaller micro-batch gets two steps before it is judged.
        """
        retries = self._count()
        self._in_a_row = self._in_a_row + 1 if retries > self._retries else 0
        self._retries = retries
        if self._in_a_row < 2:
            return False
        self._in_a_row = 0
        return True

    def _count(self) -> int:
        return int(self._statistics().get("num_alloc_retries", 0))
