"""Starting, finding and showing runs."""

from __future__ import annotations

import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.tracking import stores
from harness.tracking.stores import Tracking, find_run, start, ui_command
from tests.stores import QUIET, begin, client, run_id

pytestmark = QUIET


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for most tests: creating it takes over a second."""
    return tmp_path_factory.mktemp("my runs")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_child_names_its_parent_and_a_run_can_be_resumed(folder: Path) -> None:
    parent = begin(folder, "parent")
    child = begin(folder, "child", parent=run_id(parent))
    child.metrics({"train/loss": 1.0}, 0)
    child.finish("KILLED")
    again = begin(folder, "child", resume=True)
    again.metrics({"train/loss": 0.5}, 1)
    assert run_id(again) == run_id(child)
    assert client(folder).get_run(run_id(child)).info.status == "RUNNING"
    again.finish()
    parent.finish()
    run = client(folder).get_run(run_id(child))
    assert run.data.tags["mlflow.parentRunId"] == run_id(parent)
    assert run.info.status == "FINISHED"
    assert len(client(folder).get_metric_history(run_id(child), "train/loss")) == 2


def test_nothing_heavy_is_imported_before_open(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from harness.tracking.stores import Tracking, start
tracker = start(Tracking(), Path({str(tmp_path)!r}), "exp", "name")
tracker.params({{"a": 1}})
tracker.metrics({{"train/loss": 1.0}}, 0)
heavy = {{"mlflow", "torch", "tensorboard", "sqlalchemy", "filelock"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert not list(tmp_path.iterdir())


def test_a_deleted_experiment_is_refused_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(folder).delete_experiment(client(folder).create_experiment("gone"))
    with pytest.raises(UserError, match=r"(?s)'gone' was deleted.*mlflow experiments restore.*tracking.experiment="):
        start(Tracking(experiment="gone"), folder, "exp", "name")
    monkeypatch.setattr(stores, "refuse_deleted", lambda *_: None)
    tracker = start(Tracking(experiment="gone"), folder, "exp", "too late")
    with pytest.raises(UserError, match="was deleted"):
        tracker.wait_open(30)
    tracker.finish()
    assert "too late" in (folder / "spool/too_late.jsonl").read_text()


def test_a_folder_of_files_is_refused() -> None:
    for uri in ("file:///tmp/mlruns", "./mlruns"):
        with pytest.raises(UserError, match="file store"):
            start(Tracking(uri=uri), Path("/tmp"), "exp", "name")


def test_runs_are_found_by_id_and_by_name(folder: Path, tmp_path: Path) -> None:
    tracker = begin(folder, "sought", tags={"team": "red"})
    for step in range(2):
        tracker.metrics({"train/loss": float(step)}, step)
    tracker.finish()
    found = find_run(None, folder, "sought")
    assert found
    assert found == find_run(None, folder, run_id(tracker))
    assert (found.run_id, found.name, found.status) == (run_id(tracker), "sought", "FINISHED")
    assert (found.metrics, found.tags["team"]) == ({"train/loss": 1.0}, "red")
    assert find_run(None, folder, "never") is find_run(None, folder, "f" * 32) is None
    assert find_run(None, folder, "' OR '1' = '1") is None
    begin(folder, "sought").finish()
    with pytest.raises(UserError, match="2 runs are called 'sought'"):
        find_run(None, folder, "sought")
    assert find_run(None, tmp_path, "sought") is None
    assert not list(tmp_path.iterdir()), "looking does not create a database"


def test_the_database_is_in_wal_mode(folder: Path) -> None:
    begin(folder, "wal").finish()
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_ui_command_is_one_that_a_shell_reads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(ui_command(None, Path("/my runs/$x")))
    assert words[:2] == ["mlflow", "ui"]
    assert words[2:] == [
        *("--backend-store-uri", "sqlite:////my runs/$x/mlflow.db"),
        *("--default-artifact-root", "/my runs/$x/artifacts", "--host", "127.0.0.1", "--port", "5000"),
    ]
    assert ui_command("http://127.0.0.1:5000", Path("/x")) == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db/mlflow")
    assert "postgresql://me:***@db/mlflow" in ui_command(None, Path("/x"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own, from protobuf and numpy
def test_tensorboard_files_hold_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = stores.TensorBoardTracker(tmp_path / "events")
    tracker.params({"rank": 8})
    for step in range(5):
        tracker.metrics({"train/loss": step / 2}, step)
    tracker.finish()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(s, s / 2) for s in range(5)]
    assert b"| rank | 8 |" in events.Tensors("params/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_that_cannot_write_does_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F16."""
    (tmp_path / "events").write_text("in the way")
    tracker = stores.TensorBoardTracker(tmp_path / "events")
    for step in range(2):
        tracker.metrics({"train/loss": 1.0}, step)
    tracker.finish()
    assert "are incomplete" in tracker.problem
    assert capsys.readouterr().err.count("warning") == 1


def test_missing_tensorboard_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        start(Tracking(tensorboard=True), tmp_path, "exp", "name")


@pytest.mark.slow
def test_processes_that_start_on_a_new_database_at_once_all_succeed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from harness.tracking.stores import Tracking, start
tracker = start(Tracking(), Path({str(tmp_path)!r}), "exp", "racer")
tracker.metrics({{"train/loss": 1.0}}, 0)
tracker.finish()
"""
    racers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [racer.communicate(timeout=120)[1] for racer in racers]
    assert errors == ["", ""]
    [experiment] = [e for e in client(tmp_path).search_experiments() if e.name == "exp"]
    runs = client(tmp_path).search_runs([experiment.experiment_id])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"train/loss": 1.0})] * 2
