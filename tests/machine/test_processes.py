"""Two processes take the steps one process takes, also when one of them runs out of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.storage import PROJECT

pytestmark = pytest.mark.slow

WORKER = """
import gc, json, os, sys
import torch, torch.distributed as dist
from datetime import timedelta
from harness import train
from harness.errors import TrainingError
from harness.gradients import ExactGradient
from harness.machine import processes
from harness.methods.awp import AWP
from harness.methods.mixout import Mixout
from tests.test_train import LENGTHS, settings
from tests.toys import OutOfMemoryAbove, ToyTask, classifier, random_batch

accelerator = processes.build_accelerator("no")
model = classifier()
if sys.argv[1] in ("out_of_memory", "exhausted") and accelerator.process_index == 1:
    OutOfMemoryAbove(model, 16 if sys.argv[1] == "out_of_memory" else 0)
lengths = [[9] * 3, *LENGTHS] if sys.argv[1] == "exhausted" else [*LENGTHS, [4]]
batches = [random_batch(of, seed=i) for i, of in enumerate(lengths)]
task = ToyTask(class_weights=[0.2, 1.0, 3.0]).with_batches(batches)
methods = [Mixout(p=0.5, layers="all", units="element"), AWP(gamma=0.1)] if sys.argv[1] == "methods" else []
for method in methods:
    method.prepare(model, settings(), len(batches))
    torch.rand(3 + accelerator.process_index)  # processes may draw differently
generator = torch.Generator().manual_seed(0)
training = train.Training(model, task, methods, settings(micro_batch_tokens=64), accelerator, generator, lambda _: None)
try:
    losses = [s.loss for s in training.steps()]
except TrainingError as error:
    os.write(1, (json.dumps({"error": type(error).__name__}) + "\\n").encode())  # at once: two processes speak
    os._exit(0)
flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
same = True
if accelerator.num_processes > 1:
    every = [torch.empty_like(flat) for _ in range(accelerator.num_processes)]
    dist.all_gather(every, flat)
    same = all(torch.equal(every[0], other) for other in every)
if accelerator.is_main_process:
    torch.save(flat, sys.argv[2])
    print(json.dumps({"world": accelerator.num_processes, "same": same, "losses": losses}), flush=True)
accelerator.wait_for_everyone()
sys.stdout.flush()
os._exit(0)  # gloo of torch 2.13 now and then aborts at exit
"""


def work(tmp_path: Path, world: int, fault: str) -> tuple[list[dict[str, object]], Path]:
    """What the processes printed, and where the first one left the weights."""
    script, weights = tmp_path / "worker.py", tmp_path / f"{world}-{fault}.pt"
    script.write_text(WORKER)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    command = [*torchrun, str(script), fault, str(weights)]
    done = subprocess.run(
        command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], weights


@pytest.mark.parametrize("fault", ["none", "out_of_memory", "methods"])
def test_two_processes_are_one(tmp_path: Path, fault: str) -> None:
    """F5. One batch has fewer examples than there are processes. `methods`: with mixout and AWP."""
    import torch

    (alone,), one = work(tmp_path, 1, "methods" if fault == "methods" else "none")
    (together,), two = work(tmp_path, 2, fault)
    assert (alone["world"], together["world"], together["same"]) == (1, 2, True)
    assert together["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert float((torch.load(one, weights_only=True) - torch.load(two, weights_only=True)).abs().max()) < 1e-9


def test_processes_of_which_one_never_has_enough_memory_end_together(tmp_path: Path) -> None:
    """They cut the whole batch, not their parts of it: both find at once that nothing is left to halve."""
    told, _ = work(tmp_path, 2, "exhausted")
    assert told == [{"error": "MemoryExhausted"}] * 2
