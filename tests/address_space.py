"""Memory that really runs out: a Python process that may map only so much more than torch itself takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LIMIT = """
import resource, torch
def limit(mib):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(mib * 2**20), resource.RLIM_INFINITY))
"""


def run(snippet: str, timeout: float = 120) -> str:
    """What a Python snippet prints in a process of its own, on one thread.

    The snippet calls `limit(mib)` where its address space shall end so many MiB above what it has by then.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", _LIMIT + snippet],
        env=environment, cwd=ROOT, timeout=timeout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout
