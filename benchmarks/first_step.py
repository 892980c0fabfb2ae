"""Seconds from starting Python to the end of the first optimizer step of exp=lora_adapter, and what imports are of it.

    python benchmarks/first_step.py [--quick] [--rounds 5]

Every round starts each of these in a fresh process, on warm caches: a run with MLflow, a run without, and a process
that imports PyTorch, then the model's class from Transformers, which is what any trainer of this model waits for. Wall
time. Results: recording.py.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import PROJECT, bars, parser, publish, ratios, spread

RUN = """
import os, sys, time
from harness.cli import launching
from harness.machine import threads
threads.before_torch()
from harness import selection
from harness.tracking import stores, tracker

def stop(self, step):
    float(step.loss)
    print("DONE", time.time(), flush=True)
    os._exit(0)

selection.Selection._note = stop
if "{tracked}" == "no":
    stores.start = lambda *_, **__: tracker.MemoryTracker()
sys.exit(launching.main(["exp=lora_adapter", f"output={sys.argv[1]}"]))
"""
IMPORTS = """
import time
import torch
from transformers import BertForSequenceClassification
print("DONE", time.time(), flush=True)
"""
TRACKED = "first step, with MLflow"
PROGRAMS = {
    TRACKED: RUN.replace("{tracked}", "yes"),
    "first step, without MLflow": RUN.replace("{tracked}", "no"),
    "imports of PyTorch and Transformers": IMPORTS,
}


def once(program: str, folder: Path) -> float:
    """Seconds that a fresh process takes to get there."""
    started, command = time.time(), [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return float(next(line for line in done.stdout.splitlines() if line.startswith("DONE")).split()[1]) - started


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Of every program, the seconds of each round; a first one warms the caches."""
    found: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for turn in range(rounds + 1):
        for name, program in PROGRAMS.items():
            seconds = once(program, folder)
            if turn:
                found[name].append(seconds)
    return found


def main() -> None:
    """Measure and record."""
    asking = parser(__doc__, "one round")
    asking.add_argument("--rounds", type=int, default=5)
    asked = asking.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), 1 if asked.quick else asked.rounds)
    seconds = {name: spread(values) for name, values in found.items()}
    share = {name: ratios(values, found[TRACKED]) for name, values in found.items()}
    rows = [{"": name, "s": seconds[name].text(1), "of the first": share[name].text()} for name in PROGRAMS]
    publish("first_step", rows, {"s": seconds, "share": share, "rounds": found}, bars("Start", "s", {"wall": seconds}))


if __name__ == "__main__":
    main()
