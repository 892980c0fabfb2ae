"""What recording costs per optimizer step and at the end of a run, against a step of the main job; in one process.

    python benchmarks/tracking_cost.py [--quick] [--rounds 5]

Every round makes a run in MLflow's SQLite store and records the metrics of 500 steps; then one more, of 20 steps, which
have been sent when it ends; then it trains 5 steps of exp=lora_adapter. CPU time is that of the whole process, the
sending thread included, with one thread for torch; the end of a run is what a person waits. The store is opened before
the clock starts: importing MLflow and making a database is a fixed cost. Results: recording.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import training
from recording import bars, parser, publish, ratios, spread

from harness.machine import device
from harness.tracking import stores
from harness.tracking.tracker import Tracker
from harness.train import Step

STEPS, FEW, TRAINED, WARM = 500, 20, 5, 3
IN_ALL, IN_TRAINING, AT_END, TRAINING = (
    "recording a step, CPU of all threads",
    "recording a step, CPU of the training thread",
    "end of a run",
    "training a step, CPU",
)
MUST = {IN_ALL: 0.3, AT_END: 100.0}
"""Milliseconds at most."""


def opened(folder: Path, name: str) -> Tracker:
    """A run of its own in a store that is ready."""
    tracker = stores.start(stores.Tracking(), folder, "benchmark", name)
    assert tracker.wait_open(60)
    return tracker


def log(tracker: Tracker, steps: int) -> None:
    """The metrics of so many steps, as training records them."""
    for step in range(1, steps + 1):
        values = {"train/loss": 1 / step, "train/grad_norm": 1.0, "train/learning_rate": 1e-3}
        tracker.metrics(values | {"train/micro_batches": 4.0}, step)


def recording(folder: Path, name: str) -> tuple[float, float]:
    """CPU milliseconds per step until all of it is in the store: of the whole process, of the training thread."""
    tracker = opened(folder, name)
    whole, own = time.process_time(), time.thread_time()
    log(tracker, STEPS)
    own = time.thread_time() - own
    tracker.finish()
    return 1000 * (time.process_time() - whole) / STEPS, 1000 * own / STEPS


def ending(folder: Path, name: str) -> float:
    """Milliseconds that the end of a run takes whose metrics have been sent."""
    tracker = opened(folder, name)
    log(tracker, FEW)
    tracker.flush()
    time.sleep(1)
    begun = time.perf_counter()
    tracker.finish()
    return 1000 * (time.perf_counter() - begun)


def step(steps: Iterator[Step]) -> float:
    """CPU milliseconds of a training step."""
    begun = time.process_time()
    for _ in range(TRAINED):
        next(steps)
    return 1000 * (time.process_time() - begun) / TRAINED


def measure(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of everything in every round."""
    found: dict[str, list[float]] = {name: [] for name in (IN_ALL, IN_TRAINING, AT_END, TRAINING)}
    steps = training.start("lora_adapter").steps
    for _ in range(WARM):
        next(steps)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            whole, own = recording(Path(folder), f"steps-{number}")
            measured = whole, own, ending(Path(folder), f"end-{number}"), step(steps)
            for name, value in zip(found, measured, strict=True):
                found[name].append(value)
    return found


def main() -> None:
    """Measure and record."""
    asking = parser(__doc__, "two rounds")
    asking.add_argument("--rounds", type=int, default=5)
    asked = asking.parse_args()
    torch.set_num_threads(1)
    device.use_fast_matmul()
    found = measure(2 if asked.quick else asked.rounds)
    ms = {name: spread(values) for name, values in found.items()}
    share = ratios(found[IN_ALL], found[TRAINING])
    rows = [
        {
            "of exp=lora_adapter": name,
            "ms": value.text(3 if value.middle < 1 else 0),
            "must be at most": f"{MUST[name]:g}" if name in MUST else "",
        }
        for name, value in ms.items()
    ]
    note = f"Recording takes {share.middle:.3%} ({share.low:.3%} to {share.high:.3%}) of the CPU time of a step."
    allowed = {name: ratios(found[name], [limit] * len(found[name])) for name, limit in MUST.items()}
    figure = bars("What recording costs", "of what it may", {"measured": allowed}, dict.fromkeys(MUST, 1.0))
    publish("tracking_cost", rows, {"ms": ms, "share": share, "rounds": found}, figure, note)


if __name__ == "__main__":
    main()
