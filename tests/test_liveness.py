"""F30: runs whose process is gone do not stay RUNNING, and those that live are left alone."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import liveness
from harness.liveness import list_runs, look, reap, trainings
from harness.tracking.mlflow_store import FoundRun
from tests.stores import QUIET, begin, client, closed_port, run_id

pytestmark = QUIET
Found = tuple[FoundRun, bool]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def lock(folder: Path, name: str, host: str = "", age: float = 0.0, text: str = "") -> Path:
    path = folder / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or json.dumps({"pid": 4711, "host": host or socket.gethostname(), "time": "now"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


@contextmanager
def held(path: Path) -> Iterator[None]:
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def running(folder: Path, name: str) -> str:
    return run_id(begin(folder, name))


def test_a_lock_tells_whether_its_run_lives(tmp_path: Path) -> None:
    path = lock(tmp_path, "here")
    assert look(tmp_path, "here").is_alive is False
    with held(path):
        life = look(tmp_path, "here")
        assert (life.is_alive, life.why) == (True, f"process 4711 on {socket.gethostname()} lives")
    lock(tmp_path, "elsewhere", host="other", age=500)
    assert look(tmp_path, "elsewhere").is_alive is True
    lock(tmp_path, "elsewhere", host="other", age=700)
    assert look(tmp_path, "elsewhere").is_alive is False
    lock(tmp_path, "unreadable", text="{", age=500)
    assert look(tmp_path, "unreadable").is_alive is True
    assert look(tmp_path, "never").is_alive is None
    assert look(tmp_path, "../locks/here").is_alive is None


def test_reap_ends_what_was_killed_and_nothing_else(folder: Path) -> None:
    names = ("dead", "alive", "unknown", "waiting", "over")
    identities = {name: running(folder, name) for name in names}
    touched = int(lock(folder, "dead", age=100).stat().st_mtime * 1000)
    client(folder).set_terminated(identities["over"])
    lock(folder, "waiting")
    lock(folder, "over")
    (folder / "spool").mkdir()
    (folder / "spool" / "waiting.jsonl").write_text("")

    def status(name: str) -> str:
        return str(client(folder).get_run(identities[name]).info.status)

    with held(lock(folder, "alive")):
        told = dict(reap(folder))
        assert [status(name) for name in names] == ["KILLED", "RUNNING", "RUNNING", "RUNNING", "FINISHED"]
        assert client(folder).get_run(identities["dead"]).info.end_time == touched
        assert set(told) == {"dead", "alive", "unknown", "waiting"}
        assert told["dead"].startswith("KILLED: process 4711")
        assert "lives" in told["alive"]
        assert "--force" in told["unknown"]
        assert "harness sync" in told["waiting"]
        dict(reap(folder, force=True))
        assert [status(name) for name in names] == ["KILLED", "RUNNING", "KILLED", "RUNNING", "FINISHED"]


def test_runs_of_other_people_on_a_shared_server_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    found = [FoundRun(name, name, "RUNNING", {"folder": f"{place}/runs/{name}"}, {}, {}) for name, place in
             (("theirs", "/home/other/mlruns"), ("ours", tmp_path))]  # fmt: skip
    monkeypatch.setattr(liveness, "every_run", lambda client: iter(found))
    monkeypatch.setattr(liveness, "connect", lambda uri, folder: None)

    def end(folder: Path, uri: str, run: FoundRun, last_seen: int) -> str:
        ended.append(run.name)
        return "KILLED"

    monkeypatch.setattr(liveness, "_end", end)
    for name in ("theirs", "ours"):
        lock(tmp_path, name)
    told = dict(reap(tmp_path, "http://127.0.0.1:5000", force=True))
    assert ended == ["ours"]
    assert told["theirs"] == "left alone: it belongs to /home/other/mlruns/runs/theirs"


def test_a_run_that_ended_by_itself_meanwhile_keeps_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = running(folder, "quick")
    lock(folder, "quick")
    looked = liveness.look

    def look_and_end(folder: Path, name: str) -> liveness.Life:
        if name == "quick":
            client(folder).set_terminated(identity, "FINISHED")
        return looked(folder, name)

    monkeypatch.setattr(liveness, "look", look_and_end)
    assert dict(reap(folder))["quick"].startswith("FINISHED")
    assert client(folder).get_run(identity).info.status == "FINISHED"


def test_list_tells_status_and_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "runs" / "listed").mkdir(parents=True)
    before = time.time_ns() // 1_000_000
    begin(folder, "listed").finish()
    begin(folder, "moved", tags={"folder": str(tmp_path / "gone")}).finish("FAILED")
    found = {run.name: (run.status, has_folder) for run, has_folder in list_runs(folder)}
    assert found["listed"] == ("FINISHED", True)
    assert found["moved"] == ("FAILED", False)
    assert all(run.time >= before for run, _ in list_runs(folder) if run.name in ("listed", "moved"))
    assert list(list_runs(tmp_path)) == []
    assert list(reap(tmp_path)) == []
    assert not list(tmp_path.iterdir()), "looking does not create a database"


def known(name: str, time: int, parent: str = "", spec: str = "lora", kind: str = "", **scores: float) -> Found:
    tags = {"spec": spec, "kind": kind, "mlflow.parentRunId": f"id-{parent}"}
    params = {"early_stopping.metric": "validation/f1_macro"}
    metrics = {f"best/validation_{name}": value for name, value in scores.items()}
    return FoundRun(f"id-{name}", name, "FINISHED", {k: v for k, v in tags.items() if v}, params, metrics, time), True


def test_trainings_stand_in_their_order_with_their_scores() -> None:
    found = [
        known("page", 9, spec="", kind="report"),
        known("bench", 8, spec=""),
        known("new", 7, f1_macro=0.75),
        known("s1", 3, "x2", f1_macro=0.5),
        known("s0", 2, "x2"),
        known("orphan", 1, "gone"),
        known("x2", 0, "study", f1_macro=0.5, f1_macro_sd=0.125),
        known("study", 0, spec="", kind="study"),
    ]
    told = [(one.run.name, one.depth, one.parent, one.score) for one in trainings(found)]
    assert told == [
        ("new", 0, None, "validation/f1_macro 0.7500"),
        ("orphan", 0, None, ""),
        ("study", 0, None, ""),
        ("x2", 1, "study", "validation/f1_macro 0.5000 ± 0.1250"),
        ("s0", 2, "x2", ""),
        ("s1", 2, "x2", "validation/f1_macro 0.5000"),
    ]
    first = trainings(found)[0].values()
    assert first["score"] == 0.75 and first["began"] == "1970-01-01T00:00:00+00:00" and first["id"] == "id-new"
    assert trainings([]) == []


def test_a_store_that_does_not_answer_is_told(tmp_path: Path) -> None:
    from harness.errors import StorageError

    with pytest.raises(StorageError, match=r"(?s)cannot read http://127\.0\.0\.1:\d+.*nothing answers"):
        list(reap(tmp_path, f"http://127.0.0.1:{closed_port()}"))
