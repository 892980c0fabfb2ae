"""A study against a process per trial: the same trials at the same steps, and what the bookkeeping of a study costs.

    python benchmarks/study_cost.py [--trials 12] [--steps 20] [--workers 2]

The study runs first, cold as a user starts it; then each of its trials is launched as a process of its own with the
same settings, one after the other, each with all cores. Wall times of whole commands; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SPACE = ["exp=lora", "sweep=lora_rank", "study=cost", "~confirm", "~baseline", "pruner=none", "sampler=random"]


def launch(*words: str) -> float:
    """Seconds of one command. Raises CalledProcessError if it fails."""
    started = time.monotonic()
    command = [sys.executable, "launch.py", *words]
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    training = [
        f"train.max_steps={asked.steps}", "train.batch_size=16", f"evaluation.every={asked.steps} steps",
        "data.limit=256", "data.max_test_overlap=1.0", "evaluation.final=scores", "evaluation.baselines=false",
        "latency.measure=false",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        of_study = [word for word in training if not word.startswith("evaluation.final")]
        size = [f"trials={asked.trials}", f"workers={asked.workers}"]
        study = launch(*SPACE, *size, *of_study, f"output={folder}")
        with (Path(folder) / "studies" / "cost" / "trials.csv").open(newline="") as file:
            trials = list(csv.DictReader(file))
        assert [row["state"] for row in trials] == ["complete"] * asked.trials
        within = sum(float(row["seconds"]) for row in trials)
        alone = 0.0
        for row in trials:
            chosen = [f"{key}={row[key]}" for key in row if key.startswith(("methods.", "train."))]
            alone += launch("exp=lora", *training, *chosen, f"output={folder}/alone")
    print(
        f"{asked.trials} trials of {asked.steps} steps: study {study:.0f} s with {asked.workers} workers (sum of trials"
    )
    print(f"{within:.0f} s), as processes {alone:.0f} s: {alone / study:.2f} x")


if __name__ == "__main__":
    main()
