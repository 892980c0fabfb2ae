"""`launch.py` below real launchers: several processes, signals, dead processes, launches that are not what they say."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from harness import faults
from harness.cli.launching import SMOKE
from harness.storage import PROJECT

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
ACCELERATE = [
    str(BIN / "accelerate"),
    "launch",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]
ONE = [*ACCELERATE, "--num_processes", "1"]
TWO = [*ACCELERATE, "--num_processes", "2", "--multi_gpu"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ARGUMENTS = ["exp=lora", *SMOKE, "latency.measure=false", "evaluation.every=1 epoch", "checkpoint.every=2 steps"]


def environment(**more: str) -> dict[str, str]:
    base = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    return {**base, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **more}


def launch(launcher: list[str], output: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "launch.py", *more, f"output={output}"]
    return subprocess.run(
        command, cwd=PROJECT, env=environment(**variables), capture_output=True, text=True, timeout=240, check=False
    )


def query(output: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(output / "mlflow.db")) as database:
        return database.execute(sql).fetchall()


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def processes_with(text: str) -> list[int]:
    """Living processes whose command line holds this text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes() and is_alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_two_processes_make_one_run_and_count_each_example_once(tmp_path: Path) -> None:
    done = launch(TWO, tmp_path, *ARGUMENTS, "train.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert query(tmp_path, "select status from runs") == [("FINISHED",)]
    steps = query(tmp_path, "select step from metrics where key = 'train/loss' order by step")
    assert steps == [(1,), (2,), (3,)]
    (folder,) = (tmp_path / "runs").iterdir()
    rows = (folder / "test" / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + 24
    assert len({row.split(",")[0] for row in rows}) == 25
    assert "aborted" not in done.stderr


def test_a_process_that_dies_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    """kill -9 of one of two: the other one says so, tells the tracker, and how to go on; then the run does."""
    fault = {faults.VARIABLE: "step.end:kill@step=3@rank=1"}
    begun = time.monotonic()
    done = launch(TORCHRUN, tmp_path, *ARGUMENTS, "train.max_steps=8", **fault)
    assert done.returncode == 1
    assert time.monotonic() - begun < 120  # starting two processes included; the limit of a hang is in minutes
    assert "error: process 0 of 2 lost another process" in done.stderr
    assert "--multi_gpu --num_processes 2 launch.py --resume" in done.stdout
    assert query(tmp_path, "select status from runs") == [("FAILED",)]
    (folder,) = (tmp_path / "runs").iterdir()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000002"]
    again = launch(TORCHRUN, tmp_path, "--resume", folder.name)
    assert again.returncode == 0, again.stderr
    assert "going on from the checkpoint of step 2" in again.stdout
    assert query(tmp_path, "select status from runs") == [("FINISHED",)]
    steps = query(tmp_path, "select step from metrics where key = 'train/loss' order by step")
    assert steps == [(step,) for step in range(1, 9)]


@pytest.mark.parametrize("launcher", [ONE, TWO, TORCHRUN], ids=["accelerate", "accelerate, two", "torchrun, two"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_stopped_leaves_a_checkpoint_and_no_orphan(
    launcher: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    """F11: SIGTERM to the launcher alone. F12: SIGINT to the whole group, as a terminal sends it."""
    endless = ["train.max_steps=20000", "train.epochs=20000", "early_stopping.patience=null"]
    command = [*launcher, "launch.py", *ARGUMENTS, *endless, f"output={tmp_path}"]
    log = tmp_path / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, cwd=PROJECT, env=environment(), stdout=out, stderr=out, start_new_session=True
        ) as process,
    ):
        wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/step-*")))
        wait_for(lambda: (tmp_path / "mlflow.db").exists() and query(tmp_path, "select status from runs"))
        if number == signal.SIGTERM:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    assert process.returncode != 0
    wait_for(lambda: not processes_with(str(tmp_path)))
    told = log.read_text()
    assert f"{number.name}: finishing this step and saving it" in told
    assert "resume  " in told
    assert query(tmp_path, "select status from runs") == [("KILLED",)]


def wait_for(condition: object, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def test_a_launch_that_starts_fewer_processes_than_asked_is_refused(tmp_path: Path) -> None:
    done = launch([*ACCELERATE, "--cpu", "--num_processes", "2"], tmp_path, *ARGUMENTS)
    assert done.returncode == 1  # the launcher's
    assert "several processes were asked for, but accelerate started one" in done.stderr
    assert not list(tmp_path.iterdir())
