"""F25-F30 with real processes: a server that is killed, a database that is locked, runs that die by kill -9."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from harness.liveness import reap
from harness.storage import PROJECT
from harness.tracking import mlflow_store, waiting, worker
from harness.tracking.sending import sync
from harness.tracking.stores import Tracking, find_run, start
from tests.stores import QUIET, begin, client, closed_port, run_id

pytestmark = [QUIET, pytest.mark.slow]
RUN = """
import fcntl, json, os, socket, sys, time
from pathlib import Path
from harness.tracking.stores import Tracking, start
folder, name, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(folder / "locks").mkdir(exist_ok=True)
lock = (folder / "locks" / f"{name}.lock").open("w")
lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
lock.flush()
fcntl.flock(lock, fcntl.LOCK_EX)
tracker = start(Tracking(), folder, "exp", name, resume="resume" in sys.argv)
tracker.params({"rank": 8})
tracker.dataset("reviews", "builtin:reviews", "ab" * 32, 3, "train")
for step in range(last):
    tracker.metrics({"train/loss": float(step)}, step)
assert tracker.wait_open(60) or "MLFLOW_TRACKING_URI" in os.environ
tracker.flush()
while "wait" in sys.argv:
    print("ready", flush=True)
    time.sleep(60)
tracker.finish()
print(tracker.problem)
"""


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(folder: Path, name: str, last: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(folder), name, str(last), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Server:
    """`mlflow server` on a port of its own; kill it, start it again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, closed_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        database, artifacts = f"sqlite:///{self._folder / 'server.db'}", str(self._folder / "artifacts")
        words = ["server", "--backend-store-uri", database, "--default-artifact-root", artifacts, "--workers", "1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(self._port)],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._wait(True)

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._wait(False)

    def _wait(self, is_up: bool) -> None:
        from harness.tracking.mlflow_store import probe

        for _ in range(600):
            try:
                probe(self.uri)
                if is_up:
                    return
            except ConnectionError:
                if not is_up:
                    return
            time.sleep(0.2)
        raise AssertionError("the server does not do what it is told")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def test_a_real_server_that_is_killed_and_started_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F25, F26, F28: up, killed, up again for one run; the next ends without it and is synced."""
    from mlflow import MlflowClient

    monkeypatch.setattr(worker, "_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(waiting, "_BATCH_SECONDS", 0.1)
    server.start()
    survivor = start(Tracking(uri=server.uri), tmp_path, "exp", "survivor")
    assert survivor.wait_open(60)
    trackers = {"survivor": survivor, "late": start(Tracking(uri=server.uri), tmp_path, "exp", "late")}
    for step in range(90):
        if step == 30:
            server.kill()
        if step == 60:
            trackers["late"].finish()
            server.start()
        for tracker in trackers.values():
            tracker.metrics({"train/loss": float(step)}, step)
            tracker.flush()
        time.sleep(0.01)
    survivor.finish()
    assert survivor.problem == ""
    assert "harness sync" in trackers["late"].problem
    assert all(told.is_sent for told in sync(tmp_path))
    for name, last in (("survivor", 90), ("late", 60)):
        found = find_run(server.uri, tmp_path, name)
        assert found
        assert found.status == "FINISHED"
        history = MlflowClient(server.uri).get_metric_history(found.run_id, "train/loss")
        assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
            (s, float(s)) for s in range(last)
        ]


def test_a_database_locked_for_longer_than_mlflow_waits(tmp_path: Path) -> None:
    """F29: MLflow gives up after 20 s; the records go into the spool, and the end of the next step finds them."""
    tracker = begin(tmp_path, "locked")
    identity = run_id(tracker)
    code = f"""
import sqlite3, sys
connection = sqlite3.connect({str(tmp_path / "mlflow.db")!r}, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""
    locker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert locker.stdout
    assert locker.stdout.readline() == "locked\n"
    for step in range(200):
        tracker.metrics({"train/loss": float(step)}, step)
    tracker.flush()
    for _ in range(600):
        if list((tmp_path / "spool").glob("*")):
            break
        time.sleep(0.1)
    assert list((tmp_path / "spool").glob("*")), "what the database does not take is kept"
    locker.communicate("\n")
    tracker.metrics({"train/loss": 200.0}, 200)
    tracker.finish()
    assert tracker.problem == ""
    history = client(tmp_path).get_metric_history(identity, "train/loss")
    assert sorted(m.step for m in history) == list(range(201))


def test_four_runs_that_start_on_a_new_database_at_once(tmp_path: Path) -> None:
    """F29: they create one database, one experiment and one data set between them."""
    racers = [run(tmp_path, f"racer{i}", 3) for i in range(4)]
    assert [racer.communicate(timeout=200) for racer in racers] == [("\n", "")] * 4
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM datasets").fetchone() == (1,)
    for i in range(4):
        found: Any = find_run(None, tmp_path, f"racer{i}")
        assert (found.status, found.metrics) == ("FINISHED", {"train/loss": 2.0})
        assert len(client(tmp_path).get_run(found.run_id).inputs.dataset_inputs) == 1


def test_a_run_killed_by_kill_9_is_reaped_and_can_be_resumed(tmp_path: Path) -> None:
    """F28, F30: the resumed run continues the same MLflow run, and no step of it is there twice."""
    killed = run(tmp_path, "victim", 100, "wait")
    assert killed.stdout
    assert killed.stdout.readline() == "ready\n"
    assert dict(reap(tmp_path))["victim"].startswith("left alone: process")
    killed.kill()
    killed.communicate()
    found = find_run(None, tmp_path, "victim")
    assert found
    assert found.status == "RUNNING"
    assert dict(reap(tmp_path))["victim"].startswith("KILLED: process")
    assert client(tmp_path).get_run(found.run_id).info.status == "KILLED"
    assert run(tmp_path, "victim", 150, "resume").communicate(timeout=100) == ("\n", "")
    again = client(tmp_path).get_run(found.run_id)
    assert again.info.status == "FINISHED"
    history = client(tmp_path).get_metric_history(found.run_id, "train/loss")
    assert sorted(m.step for m in history) == list(range(150))


def test_a_run_killed_while_it_spools_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F28: nothing answers, kill -9; while it lives its spool is left alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    killed = run(tmp_path, "victim", 100, "wait")
    assert killed.stdout
    assert killed.stdout.readline() == "ready\n"
    for _ in range(600):
        if any("train/loss" in path.read_text() for path in (tmp_path / "spool").glob("*")):
            break
        time.sleep(0.1)
    [told] = sync(tmp_path)
    assert told.is_left_alone
    killed.kill()
    killed.communicate()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    [told] = sync(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert told.is_sent
    found = find_run(None, tmp_path, "victim")
    assert found
    history = client(tmp_path).get_metric_history(found.run_id, "train/loss")
    assert sorted(m.step for m in history) == list(range(100))


CREATOR = """
import sys
from pathlib import Path
from harness.tracking import mlflow_store
mlflow_store.connect(sys.argv[1], Path(sys.argv[2]))
"""


def num_tables(folder: Path) -> int:
    """In the database that is being made, wherever it lies."""
    for path in folder.glob("*mlflow.db*"):
        if path.suffix in (".db", ".new") and path.stat().st_size:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection, suppress(sqlite3.Error):
                (count,) = connection.execute("select count(*) from sqlite_master where type = 'table'").fetchone()
                return int(count)
    return 0


def test_a_process_killed_while_it_creates_the_database_leaves_none(tmp_path: Path) -> None:
    """F29: a database whose tables were made half way can never be opened again."""
    database = tmp_path / "mlflow.db"
    command = [sys.executable, "-c", CREATOR, f"sqlite:///{database}", str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL) as creator:
        while num_tables(tmp_path) < 10:
            assert creator.poll() is None
            time.sleep(0.001)
        creator.kill()
        creator.wait()
    client = mlflow_store.connect(f"sqlite:///{database}", tmp_path)
    assert client.create_experiment("works", artifact_location=str(tmp_path)) == "1"
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not list(tmp_path.glob(".mlflow.db.new*"))
