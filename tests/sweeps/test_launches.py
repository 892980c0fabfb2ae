"""`launch.py sweep=... workers=2` with real training: workers that are killed, a study that is stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.sweeps.launches import RUNS, assert_whole, command, last_step, launch, launched, owners, recorded, saved
from tests.test_launch import processes_with, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_study_survives_its_workers_and_its_own_end(tiny: list[str], tmp_path: Path) -> None:
    """F32, F11: one of two workers is killed, another one goes on with its trial; then the study is stopped."""
    words = command(tiny, tmp_path, "workers=2")
    with launched(words, tmp_path) as study:
        wait_for(lambda: [trial for trial in owners(tmp_path) if saved(tmp_path, trial)])
        trial, worker = next((one, pid) for one, pid in owners(tmp_path).items() if saved(tmp_path, one))
        os.kill(worker, signal.SIGKILL)
        before = saved(tmp_path, trial)
        wait_for(lambda: saved(tmp_path, trial) > before)
        assert owners(tmp_path)[trial] != worker
        study.terminate()
        assert study.wait(90) == 143
    wait_for(lambda: not processes_with(str(tmp_path)), seconds=10)
    assert {status for _, status in recorded(tmp_path).values()} <= {"KILLED", "FINISHED"}
    assert recorded(tmp_path)["small"] == ("", "KILLED")
    unfinished = [name for name in RUNS if recorded(tmp_path).get(name, ("", ""))[1] == "KILLED"]
    assert f"s{trial[-3:]}-small" in unfinished
    assert {name: saved(tmp_path, name) for name in unfinished} == {
        name: last_step(tmp_path, name) for name in unfinished
    }
    assert saved(tmp_path, trial) > before

    done = launch(words)
    assert done.returncode == 0, done.stderr
    assert_whole(tmp_path)
    assert "going on: search" in done.stdout
    assert not processes_with(str(tmp_path))
