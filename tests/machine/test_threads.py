from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.machine import threads


def test_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert threads.share_of_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20")
    assert threads.share_of_cores() == 1


@pytest.mark.parametrize(("set_to", "expected"), [("1", 8), ("3", 3)])
def test_a_number_of_threads_is_respected_unless_it_is_the_launchers_one(
    monkeypatch: pytest.MonkeyPatch, set_to: str, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    assert threads.share_of_cores() == expected


@pytest.mark.parametrize(("busy", "expected"), [(0.0, None), (0.9, "PASSIVE")])
def test_threads_sleep_only_beside_others(monkeypatch: pytest.MonkeyPatch, busy: float, expected: str | None) -> None:
    environment = {"LOCAL_WORLD_SIZE": "1"}
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr(threads, "busy_share", lambda: busy)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    threads.choose_wait_policy()
    assert environment.get("OMP_WAIT_POLICY") == expected


def test_processes_started_together_sleep_and_a_given_policy_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"LOCAL_WORLD_SIZE": "2"}
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setitem(sys.modules, "torch", sys)
    threads.choose_wait_policy()
    assert "OMP_WAIT_POLICY" not in environment  # torch has read it
    monkeypatch.delitem(sys.modules, "torch")
    threads.choose_wait_policy()
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    environment["OMP_WAIT_POLICY"] = "ACTIVE"
    threads.choose_wait_policy()
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"


GROWTH = """
import sys
from harness.machine import threads
if sys.argv[1] == "bounded":
    threads.before_torch()
import torch
from harness.machine import device
device.use_fast_matmul()
torch.set_num_threads(1)
weight = torch.randn(384, 1536)
for rows in range(300, 700):
    torch.randn(rows, 384) @ weight
    if rows == 350:
        before = device.peak_memory_gib()
print(1024 * (device.peak_memory_gib() - before))
"""


def test_kernels_for_every_number_of_tokens_there_ever_was_are_not_kept() -> None:
    """MiB that 350 numbers of tokens add after the first 50."""
    clean = {key: value for key, value in os.environ.items() if not key.endswith("_CACHE_CAPACITY")}
    grown = {}
    for kind in ("unbounded", "bounded"):
        command = [sys.executable, "-W", "ignore", "-c", GROWTH, kind]
        done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
        grown[kind] = float(done.stdout.split()[-1])
    if grown["unbounded"] < 20:
        pytest.skip("this machine's products are not oneDNN's")
    assert grown["bounded"] < grown["unbounded"] / 4


def test_capacities_that_were_given_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"LRU_CACHE_CAPACITY": "5"}
    monkeypatch.setattr("os.environ", environment)
    threads.bound_caches()
    assert environment == {"LRU_CACHE_CAPACITY": "5", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


def test_busy_share_is_what_is_not_idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    samples = iter([[100, 0, 0, 100, 0], [130, 0, 0, 165, 5]])
    monkeypatch.setattr(threads, "_times", lambda _: next(samples))
    assert threads.busy_share() == pytest.approx(0.3)
    monkeypatch.undo()
    assert threads.busy_share(tmp_path / "absent") == 0.0
