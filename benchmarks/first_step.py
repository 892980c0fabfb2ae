"""Seconds from starting `python launch.py exp=lora_adapter` to the end of its first optimizer step, warm caches.

python benchmarks/first_step.py [rounds]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CHILD = """
import os, sys, time
from harness import command, threads
threads.before_torch()
from harness import selection

def stop(self, step):
    float(step.loss)
    print("FIRST", time.time(), flush=True)
    os._exit(0)

selection.Selection._note = stop
sys.exit(command.main(["exp=lora_adapter", f"output={sys.argv[1]}"]))
"""


def once(folder: str) -> float:
    """One start, from a fresh process."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, folder], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return float(next(line for line in done.stdout.splitlines() if line.startswith("FIRST")).split()[1]) - started


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        once(folder)
        seconds = [once(folder) for _ in range(rounds)]
    middle, spread = statistics.median(seconds), f"{min(seconds):.1f} to {max(seconds):.1f}"
    print(f"first step after {middle:.1f} s (median of {rounds}; {spread})")
