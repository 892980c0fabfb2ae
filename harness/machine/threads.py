"""Threads, cores and caches, decided before torch is imported: OpenMP and oneDNN read their settings once."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_SAMPLE_SECONDS = 0.1
_BUSY = 0.25
_ONEDNN_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own cache of kernels, and torch's of what it asks oneDNN for."""
_KERNELS = 64
"""More than a step has shapes of products."""


def share_of_cores() -> int:
    """The cores this process may use, divided by the processes started together; OMP_NUM_THREADS above 1 decides.

    A value of 1 does not: `accelerate launch` sets it without being asked. A study's workers are told (HARNESS_CORES).
    """
    if given := os.environ.get("HARNESS_CORES"):
        return int(given)
    if int(os.environ.get("OMP_NUM_THREADS", "1")) > 1:
        return int(os.environ["OMP_NUM_THREADS"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def before_torch() -> None:
    """Decide what libraries read once; settings that were given stay."""
    bound_caches()
    choose_wait_policy()


def bound_caches() -> None:
    """Let oneDNN keep the kernels of a step, not those of every number of tokens there ever was.

    By default it keeps 1,024 of half a MiB each, and every batch has another number of tokens: 35 MiB more with every
    step. To make them anew takes no time that could be measured.
    """
    for name in _ONEDNN_CACHES:
        os.environ.setdefault(name, str(_KERNELS))


def choose_wait_policy() -> None:
    """Let OpenMP threads sleep instead of spin where others want the same cores; a policy that was set, or read, stays.

    Alone on its cores a training step is up to twice as fast with spinning threads; beside one busy process it is many
    times slower with them.
    """
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    is_in_time = "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ
    if is_in_time and (together or busy_share() > _BUSY):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        if os.environ.get("RANK", "0") == "0":
            print(
                "NOTE other programs use these cores just now: this run is slower for it, and its threads wait asleep"
            )


def busy_share(stat: Path = Path("/proc/stat")) -> float:
    """The share of the machine's CPU time that is in use just now, over a tenth of a second; 0 where it is unknown."""
    try:
        before = _times(stat)
        time.sleep(_SAMPLE_SECONDS)
        after = _times(stat)
    except (OSError, ValueError, IndexError):
        return 0.0
    passed = [late - early for early, late in zip(before, after, strict=True)]
    idle = passed[3] + passed[4]  # idle, iowait
    return 1 - idle / sum(passed) if sum(passed) else 0.0


def _times(stat: Path) -> list[int]:
    return [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:]]
