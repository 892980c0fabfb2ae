"""What the machine offers: precision, threads, fast matrix products. Nothing is changed silently."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from harness.machine import threads

_GIB = 1024**3


def resolve_precision(asked: str, notice: Callable[[str], None] = print) -> str:
    """`auto` is bf16 where the GPU has it, else `no`. A precision the device would ignore is announced and replaced.

    So is one that `accelerate launch` was given, or its config file has: the spec decides.
    """
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
    taken = _resolve(asked, on_gpu, notice)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in ("no", taken):
        here = taken.replace("no", "float32")
        notice(f"NOTE Accelerate's mixed precision {launched} is not used: precision={asked} decides, here {here}")
    return taken


def _resolve(asked: str, on_gpu: bool, notice: Callable[[str], None]) -> str:
    if asked == "auto":
        return "bf16" if on_gpu and _has_bf16(on_gpu) else "no"
    if asked == "fp16" and not on_gpu:
        notice("NOTE precision=fp16 needs a GPU; this machine has none, training in float32")
        return "no"
    if asked == "bf16" and not _has_bf16(on_gpu):
        notice("NOTE precision=bf16: this device has no instructions for it, float32 would be several times faster")
    return asked


def _has_bf16(on_gpu: bool) -> bool:
    if on_gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def use_all_cores(notice: Callable[[str], None] = print) -> int:
    """Give this process its share of the cores: `accelerate launch` sets one thread on a CPU. Returns the threads."""
    share = threads.share_of_cores()
    if share != torch.get_num_threads():
        number = f"{share} thread{'s' if share > 1 else ''}"
        notice(f"NOTE {number} (this process's share of the cores); torch was set to {torch.get_num_threads()}")
        torch.set_num_threads(share)
    return share


def use_fast_matmul(notice: Callable[[str], None] = print) -> bool:
    """On a CPU, route float32 matrix products to oneDNN if it keeps full float32 there; returns whether it does.

    `torch.set_float32_matmul_precision("medium")` makes products up to twice as fast on CPUs without AMX, at full
    precision; on CPUs with AMX it may round to bfloat16. A check of one product decides.
    """
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(384, 384, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    torch.set_float32_matmul_precision("medium")
    error = float(((left @ right).double() - exact).abs().max() / exact.abs().max())
    if error < 1e-5:
        return True
    torch.set_float32_matmul_precision(before)
    notice("NOTE this CPU would round float32 products to bfloat16 in oneDNN; using the slower exact ones")
    return False


def reset_peak_memory() -> float:
    """Let the peak count from here: on the GPU, else of this process, where Linux allows it. Returns GiB held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / _GIB
    gc.collect()
    with suppress(OSError, AttributeError):  # what earlier runs of this process gave back to glibc alone
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_memory_gib()


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident on a machine without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIB
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024**2
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / _GIB


def name_of(device: torch.device) -> str:
    """A device as people know it: `CPU with 8 threads`, or the name of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def describe() -> dict[str, str]:
    """What the run ran on, for its record."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "device": ", ".join(gpus) or "cpu",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or ""),
    }
