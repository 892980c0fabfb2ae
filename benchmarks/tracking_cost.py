"""What recording costs per optimizer step, against a step of the main job; all in one process.

    python benchmarks/tracking_cost.py

CPU time of the whole process, the sending thread included, for the metrics of 2,000 steps; and of 20 training steps of
exp=lora_adapter. The store is opened before the clock starts: importing MLflow and making a database is a fixed cost.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from harness import assembly, device, processes, spec, tracking, train

STEPS, TRAINED = 2_000, 20


def recording() -> tuple[float, float]:
    """CPU seconds per step: of the whole process, and of the training thread alone."""
    with tempfile.TemporaryDirectory() as folder:
        tracker = tracking.start(tracking.Tracking(), Path(folder), "benchmark", "cost")
        assert tracker.wait_open(60)
        whole, own = time.process_time(), time.thread_time()
        for step in range(1, STEPS + 1):
            values = {"train/loss": 1 / step, "train/grad_norm": 1.0, "train/learning_rate": 1e-3}
            tracker.metrics(values | {"train/micro_batches": 4.0}, step)
        own = time.thread_time() - own
        tracker.finish()
        return (time.process_time() - whole) / STEPS, own / STEPS


def training() -> tuple[float, float]:
    """CPU and wall seconds per training step."""
    chosen = spec.load("lora_adapter")
    device.use_all_cores()
    device.use_fast_matmul()
    loaded = assembly.load(chosen)
    assembled = assembly.assemble(chosen, loaded, 0)
    methods, generator = list(assembled.methods.values()), torch.Generator().manual_seed(0)
    accelerator = processes.build_accelerator("no")
    steps = train.Training(assembled.model, loaded.task, methods, chosen.train, accelerator, generator).steps()
    for _ in range(3):
        next(steps)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(TRAINED):
        next(steps)
    return (time.process_time() - cpu) / TRAINED, (time.perf_counter() - wall) / TRAINED


if __name__ == "__main__":
    whole, own = recording()
    cpu, wall = training()
    print(f"recording  {whole * 1e3:.3f} ms of CPU per step, {own * 1e6:.0f} µs of it in the training thread")
    print(f"training   {cpu * 1e3:.0f} ms of CPU, {wall * 1e3:.0f} ms of wall per step")
    print(f"share      {whole / cpu:.3%} of CPU")
