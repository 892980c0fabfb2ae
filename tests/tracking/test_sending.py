"""Spools reach MLflow once, also half-written ones and those of runs that MLflow never saw; `harness sync` tells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.tracking.sending import describe, sync
from harness.tracking.spool import Spool
from harness.tracking.stores import Tracking, find_run, start
from harness.tracking.writer import Target
from tests.stores import QUIET, begin, client, closed_port, run_id

pytestmark = QUIET
BEGAN = 1_790_000_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def spooled(folder: Path, name: str, *messages: dict[str, Any], **more: Any) -> Path:
    """A spool as a run leaves it that was killed before its store answered."""
    target = Target(f"sqlite:///{folder / 'mlflow.db'}", folder, "exp", name, {"team": "blue"}, BEGAN, **more)
    spool = Spool(folder / "spool", name)
    for message in messages:
        spool.write(describe(target, target.run_id), message)
    spool.close()
    return spool.path


def metrics(*steps: int) -> dict[str, Any]:
    return {"kind": "metrics", "points": [["train/loss", float(step), BEGAN + step, step] for step in steps]}


def steps_of(folder: Path, name: str) -> list[int]:
    found = find_run(None, folder, name)
    assert found
    return sorted(m.step for m in client(folder).get_metric_history(found.run_id, "train/loss"))


def test_a_run_that_mlflow_never_saw_is_created_with_its_start_and_end(folder: Path) -> None:
    """F28: the last tag and the last end count; a line cut off by kill -9 is told."""
    path = spooled(
        folder,
        "unseen",
        {"kind": "tags", "values": {"note": "old", "a": "b"}},
        metrics(0, 1),
        {"kind": "finish", "status": "KILLED", "time": BEGAN + 5},
        metrics(1, 2),
        {"kind": "tags", "values": {"note": "new"}},
        {"kind": "params", "values": {"rank": 8}},
        {"kind": "finish", "status": "FINISHED", "time": BEGAN + 9},
    )
    with path.open("a") as file:
        file.write('{"kind": "metrics", "poi')
    [told] = sync(folder)
    assert told.is_sent
    assert "cut off" in told.what
    found = find_run(None, folder, "unseen")
    assert found
    info, data = client(folder).get_run(found.run_id).info, client(folder).get_run(found.run_id).data
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", BEGAN, BEGAN + 9)
    assert {"team": "blue", "note": "new", "a": "b"}.items() <= data.tags.items()
    assert data.params == {"rank": "8"}
    assert steps_of(folder, "unseen") == [0, 1, 2]
    assert not path.exists()


def test_the_same_spool_twice_changes_nothing(folder: Path) -> None:
    """F28: as after a kill -9 between the last request and the removal of the file."""
    path = spooled(folder, "twice", metrics(0, 1), {"kind": "finish", "status": "FAILED", "time": BEGAN + 5})
    content = path.read_bytes()
    for _ in range(2):
        path.write_bytes(content)
        [told] = sync(folder)
        assert told.is_sent
        assert find_run(None, folder, "twice"), "one run of this name"
        assert steps_of(folder, "twice") == [0, 1]


def test_another_run_of_the_same_name_is_not_touched(folder: Path) -> None:
    """Two people of one server may have chosen one name: only the start tells the runs apart."""
    begin(folder, "common").finish()
    spooled(folder, "common", metrics(3))
    [told] = sync(folder)
    assert told.is_sent
    named = [run for run in client(folder).search_runs([client(folder).get_experiment_by_name("exp").experiment_id])
             if run.info.run_name == "common"]  # fmt: skip
    assert sorted(len(run.data.metrics) for run in named) == [0, 1]


def test_the_spool_of_a_resumed_run_goes_to_the_run_of_its_name(folder: Path) -> None:
    tracker = begin(folder, "resumed")
    tracker.metrics({"train/loss": 0.0}, 0)
    tracker.finish("KILLED")
    spooled(folder, "resumed", metrics(0, 1), {"kind": "finish", "status": "FINISHED", "time": BEGAN}, resume=True)
    [told] = sync(folder)
    assert told.is_sent
    assert steps_of(folder, "resumed") == [0, 1]
    assert client(folder).get_run(run_id(tracker)).info.status == "FINISHED"


def test_a_run_without_an_end_is_told(folder: Path) -> None:
    spooled(folder, "endless", metrics(0))
    [told] = sync(folder)
    assert told.is_sent
    assert "harness runs reap" in told.what


def test_damaged_lines_are_told_and_kept_aside(folder: Path) -> None:
    path = spooled(folder, "damaged", metrics(0))
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n" + json.dumps(metrics(1)).encode() + b"\n")
    [told] = sync(folder)
    assert told.is_sent
    assert f"1 lines could not be read and lie in {path}.damaged" in told.what
    assert steps_of(folder, "damaged") == [0, 1]
    path.write_bytes(b"nothing\n")
    [told] = sync(folder)
    assert (told.is_sent, told.is_left_alone) == (False, False)
    assert "no line says which run it is" in told.what


def test_a_living_run_is_left_alone(folder: Path) -> None:
    spool = Spool(folder / "spool", "alive")
    spool.write({"kind": "run", "name": "alive"}, metrics(0))
    result = CliRunner().invoke(app, ["sync", "--output", str(folder)])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "alive: left alone: a process that lives writes or sends it",
        "0 sent, 1 left alone, 0 kept",
    ]
    spool.path.unlink()
    spool.close()


def test_sync_for_people(folder: Path) -> None:
    """F28: exit code 1 while something is kept, with the reason; 0 once all is sent, and when there is nothing."""
    good = spooled(folder, "good", metrics(0))
    bad = spooled(folder, "bad", {"kind": "artifacts", "folder": str(folder / "plots"), "within": "", "ignore": []})
    result = CliRunner().invoke(app, ["sync", "--output", str(folder)])
    assert result.exit_code == 1
    assert f"bad: kept in {bad}: artifacts: no folder {folder / 'plots'}\n" in result.stdout
    assert result.stdout.endswith("1 sent, 0 left alone, 1 kept\n")
    assert (good.exists(), bad.exists()) == (False, True)
    (folder / "plots").mkdir()
    (folder / "plots" / "a.txt").write_text("a")
    result = CliRunner().invoke(app, ["sync", "--output", str(folder)])
    assert result.exit_code == 0
    assert result.stdout.endswith("1 sent, 0 left alone, 0 kept\n")
    result = CliRunner().invoke(app, ["sync", "--output", str(folder)])
    assert (result.exit_code, result.stdout) == (0, "nothing waits to be sent\n")


def test_a_store_that_moved_is_named_by_hand(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    spooled(old, "moved", metrics(0))
    shutil.move(old, tmp_path / "new")
    [told] = sync(tmp_path / "new")
    assert "name the store with --uri" in told.what
    assert not old.exists()
    [told] = sync(tmp_path / "new", f"sqlite:///{folder / 'mlflow.db'}")
    assert told.is_sent
    assert steps_of(folder, "moved") == [0]


def test_a_password_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"http://me:secret@127.0.0.1:{closed_port()}"
    tracker = start(Tracking(uri=uri), tmp_path, "exp", "private")
    tracker.finish()
    assert "secret" not in (tmp_path / "spool" / "private.jsonl").read_text()
    [told] = sync(tmp_path)
    assert "is not kept; set MLFLOW_TRACKING_URI or give --uri" in told.what
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    [told] = sync(tmp_path)
    assert "nothing answers" in told.what


def test_runs_for_people(folder: Path) -> None:
    identity = run_id(begin(folder, "killed", tags={"spec": "lora"}))
    result = CliRunner().invoke(app, ["runs", "list", "--output", str(folder)])
    assert result.exit_code == 0
    assert any(line.split()[:2] == ["killed", "RUNNING"] for line in result.stdout.splitlines())
    result = CliRunner().invoke(app, ["runs", "reap", "--output", str(folder)])
    assert "killed: left alone: no lock file (--force ends it)\n" in result.stdout
    result = CliRunner().invoke(app, ["runs", "reap", "--output", str(folder), "--force"])
    assert (result.exit_code, client(folder).get_run(identity).info.status) == (0, "KILLED")
    assert CliRunner().invoke(app, ["runs", "reap", "--output", str(folder)]).stdout == "no run is RUNNING\n"
