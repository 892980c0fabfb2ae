"""A study against a process per trial: the same trials at the same steps, and what the bookkeeping of a study costs.

    python benchmarks/study_cost.py [--trials 12] [--steps 20] [--workers 2]

The study runs first, cold as a user starts it, by one process and by several; then each of its trials is launched as a
process of its own with the same settings, one after the other, each with all cores: by `accelerate launch`, as the
README does, and by python alone. Wall times of whole commands; the ratio is what counts. Bookkeeping is what lies
between the trials of one process: to take one, to tell its end.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend

PROJECT = Path(__file__).parent.parent
SPACE = ["exp=lora", "sweep=lora_rank", "~confirm", "~baseline", "pruner=none", "sampler=random"]


PYTHON = [sys.executable]
ACCELERATE = [
    str(Path(sys.executable).parent / "accelerate"), "launch", "--quiet", "--num_processes", "1", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


def launch(*words: str, by: list[str] = PYTHON) -> float:
    """Seconds of one command. Raises CalledProcessError if it fails."""
    started = time.monotonic()
    command = [*by, "launch.py", *words]
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
        walls = {}
        for workers in dict.fromkeys([asked.workers, 1]):
            size = [f"trials={asked.trials}", f"workers={workers}", f"study=by-{workers}"]
            walls[workers] = launch(*SPACE, *size, *of_study, f"output={folder}")
            print(f"study, {workers} workers: {walls[workers]:.0f} s", flush=True)
        trials = _trials(Path(folder) / "studies" / "by-1")
        assert [row["state"] for row in trials] == ["complete"] * asked.trials
        alone = {"accelerate launch": 0.0, "python": 0.0}
        for row in trials:
            chosen = [f"{key}={row[key]}" for key in row if key.startswith(("methods.", "train."))]
            for name, by in zip(alone, (ACCELERATE, PYTHON), strict=True):
                alone[name] += launch("exp=lora", *training, *chosen, f"output={folder}/alone", by=by)
        between = _bookkeeping(Path(folder) / "studies" / "by-1" / "journal.log")
    for name, seconds in alone.items():
        ratios = ", ".join(f"{seconds / wall:.2f} x of {workers} workers" for workers, wall in walls.items())
        print(f"{asked.trials} trials of {asked.steps} steps by {name}: {seconds:.0f} s, {ratios}")
    print(f"bookkeeping: {1000 * between / asked.trials:.0f} ms a trial, {between / walls[1]:.2%} of the study's time")


def _trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _bookkeeping(journal: Path) -> float:
    """Seconds between the first trial's start and the last one's end in which none was at work."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    trials = optuna.load_study(study_name="by-1", storage=storage).get_trials()
    starts, ends = ([getattr(trial, name) for trial in trials] for name in ("datetime_start", "datetime_complete"))
    return float((max(ends) - min(starts)).total_seconds() - sum(trial.user_attrs["seconds"] for trial in trials))


if __name__ == "__main__":
    main()
