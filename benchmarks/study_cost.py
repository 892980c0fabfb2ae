"""A study against a process per trial, and against Optuna around Trainer in one process: the same trials and steps.

    python benchmarks/study_cost.py [--quick] [--rounds 2] [--trials 8] [--steps 20] [--workers 2]

Wall times of whole commands, each cold as a user starts it; a round runs every way once, one after the other. The study
runs by several workers and by one; Optuna around Trainer is given the trials that the study drew (study_peer.py); then
each trial is launched as a process of its own with the same settings and all cores, by python alone and by `accelerate
launch`, as the README does. Bookkeeping is what lies between the trials of a study by one worker: to take one, to tell
its end. It wants a quiet machine: where other programs use the cores at the start, threads of all ways sleep while they
wait; where they come later, ways with two threads are many times slower. Results: recording.py.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from contestants import settle_wait_policy
from optuna.storages.journal import JournalFileBackend
from recording import PROJECT, Spread, bars, parser, publish, ratios, spread

SPACE = ["exp=lora", "sweep=lora_rank", "~confirm", "~baseline", "pruner=none", "sampler=random"]
PYTHON = [sys.executable]
ACCELERATE = [
    str(Path(sys.executable).parent / "accelerate"), "launch", "--quiet", "--num_processes", "1", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip
DATA = ["data.limit=256", "data.max_test_overlap=1.0"]
RANK, RATE = "methods.lora.rank", "train.learning_rate"
TRAINER, BY_PYTHON, BY_ACCELERATE = "Optuna around Trainer", "python per trial", "accelerate launch per trial"
MUST = {TRAINER: 2.3, BY_PYTHON: 3.0, BY_ACCELERATE: 3.0}
"""How many times as fast the study has to be."""


def seconds_of(*command: str) -> float:
    """Wall time of one command. Raises RuntimeError with its last words."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("\n".join([" ".join(command), *done.stderr.splitlines()[-8:]]))
    return time.monotonic() - started


def once(folder: Path, trials: int, steps: int, workers: int) -> tuple[dict[str, float], float]:
    """One round in an empty folder: seconds of every way, and seconds a trial that are bookkeeping."""
    training = [
        f"train.max_steps={steps}", "train.batch_size=16", f"evaluation.every={steps} steps", *DATA,
        "evaluation.baselines=false", "latency.measure=false",
    ]  # fmt: skip
    walls = {}
    for number in dict.fromkeys([workers, 1]):
        size = [f"trials={trials}", f"workers={number}", f"study=by-{number}", f"output={folder}"]
        walls[by(number)] = told(by(number), seconds_of(*PYTHON, "launch.py", *SPACE, *size, *training))
    study = folder / "studies" / "by-1"
    drawn = drawn_by(study)
    assert len(drawn) == trials
    file = folder / "trials.json"
    file.write_text(json.dumps(drawn), encoding="utf-8")
    walls[TRAINER] = told(TRAINER, seconds_of(*PYTHON, "benchmarks/study_peer.py", str(file), str(steps), *DATA))
    walls |= {BY_PYTHON: 0.0, BY_ACCELERATE: 0.0}
    for trial in drawn:
        chosen = [f"{RANK}={trial['rank']}", f"{RATE}={trial['learning_rate']}", f"output={folder / 'alone'}"]
        words = ["launch.py", "exp=lora", *training, "evaluation.final=scores", *chosen]
        walls[BY_PYTHON] += seconds_of(*PYTHON, *words)
        walls[BY_ACCELERATE] += seconds_of(*ACCELERATE, *words)
    for name in (BY_PYTHON, BY_ACCELERATE):
        told(name, walls[name])
    return walls, bookkeeping(study / "journal.log") / trials


def by(workers: int) -> str:
    """What a study is called."""
    return f"study, {workers} worker{'s' if workers > 1 else ''}"


def told(name: str, seconds: float) -> float:
    """The same, once a person has seen it."""
    print(f"  {name}: {seconds:.0f} s", flush=True)
    return seconds


def drawn_by(study: Path) -> list[dict[str, float]]:
    """What each trial of a study tried; all are complete."""
    with (study / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["state"] for row in rows} == {"complete"}
    return [{"rank": int(row[RANK]), "learning_rate": float(row[RATE])} for row in rows]


def bookkeeping(journal: Path) -> float:
    """Seconds between the first trial's start and the last one's end in which none was at work."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    trials = optuna.load_study(study_name="by-1", storage=storage).get_trials()
    starts, ends = ([getattr(trial, name) for trial in trials] for name in ("datetime_start", "datetime_complete"))
    return float((max(ends) - min(starts)).total_seconds() - sum(trial.user_attrs["seconds"] for trial in trials))


def faster(walls: dict[str, list[float]], study: str) -> dict[str, Spread]:
    """How many times as long every way but studies took as this study."""
    return {name: ratios(walls[name], walls[study]) for name in MUST}


def table(walls: dict[str, list[float]], studies: dict[str, dict[str, Spread]]) -> list[dict[str, str]]:
    """One row per way."""
    return [
        {"way": name, "s": spread(seconds).text(0)}
        | {f"x {study}": found[name].text() if name in found else "" for study, found in studies.items()}
        | {"must be at least": f"{MUST[name]:.1f}" if name in MUST else ""}
        for name, seconds in walls.items()
    ]


def main() -> None:
    """Measure and record."""
    asking = parser(__doc__, "one round of two trials of ten steps")
    asking.add_argument("--rounds", type=int, default=2)
    asking.add_argument("--trials", type=int, default=8)
    asking.add_argument("--steps", type=int, default=20)
    asking.add_argument("--workers", type=int, default=2)
    asked = asking.parse_args()
    rounds, trials, steps = (1, 2, 10) if asked.quick else (asked.rounds, asked.trials, asked.steps)
    settle_wait_policy()
    walls: dict[str, list[float]] = {}
    between = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found, waited = once(Path(folder), trials, steps, asked.workers)
        for name, seconds in found.items():
            walls.setdefault(name, []).append(seconds)
        between.append(1000 * waited)
    studies = {study: faster(walls, study) for study in dict.fromkeys([by(asked.workers), by(1)])}
    note = f"{trials} trials of {steps} steps. Bookkeeping: {spread(between).text(0)} ms a trial."
    figure = bars(f"{trials} trials: times as long as a study", "times as long", studies, MUST)
    measured = {"times as long": studies, "bookkeeping ms": spread(between), "seconds": walls}
    publish("study_cost", table(walls, studies), measured, figure, note)


if __name__ == "__main__":
    main()
