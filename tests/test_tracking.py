from __future__ import annotations

import hashlib
import json
import shlex
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness import tracking
from harness.errors import StorageError, UserError
from harness.tracking import MemoryTracker, Tracker, Trackers, Tracking, find_run, start, ui_command
from harness.tracking_mlflow import allowed_name, param_value, short_digest

pytestmark = [
    # MLflow's tables use an option that SQLAlchemy 2.1 is about to drop.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for most tests: creating it takes over a second."""
    return tmp_path_factory.mktemp("my runs")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def begin(folder: Path, name: str, **more: Any) -> Tracker:
    return start(Tracking(), folder, "exp", name, **more)


def run_id(tracker: Tracker) -> str:
    found = tracker.wait_open(30)
    assert found
    return found


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_everything_recorded_arrives(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plots" / ".hidden").mkdir(parents=True)
    for name in ("spec.yaml", "plots/a.txt", "plots/b.tmp", "plots/.hidden/c.txt"):
        (tmp_path / name).write_text(name)
    tracker = begin(folder, "complete", tags={"team": "blue"}, note="A **note**")
    tracker.params({f"a.b{i}": i for i in range(250)} | {"train.learning_rate": 1e-4})
    before = time.time_ns() // 1_000_000
    for step in range(3):
        tracker.metrics({"train/loss": 1 / (step + 1), "train/grad_norm": 2.0 * step}, step)
    after = time.time_ns() // 1_000_000
    tracker.tags({"spec": "abc"})
    tracker.dataset("reviews", "builtin:reviews", f"sha256:{'ab' * 32}", 2592, "train")
    tracker.artifacts(tmp_path, ignore=("*.tmp",))
    tracker.artifacts(tmp_path / "plots", within="again")
    tracker.finish()

    run = client(folder).get_run(run_id(tracker))
    assert run.data.params == {f"a.b{i}": str(i) for i in range(250)} | {"train.learning_rate": "0.0001"}
    assert run.data.metrics == {"train/loss": pytest.approx(1 / 3), "train/grad_norm": 4.0}
    history = client(folder).get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert all(before <= m.timestamp <= after for m in history)
    expected = {"team": "blue", "spec": "abc", "mlflow.note.content": "A **note**", "mlflow.runName": "complete"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.source.name"] == "launch.py"
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("reviews", "ab" * 16)
    assert json.loads(used.dataset.profile) == {"num_rows": 2592}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "train")]
    artifacts = Path(run.info.artifact_uri)
    assert artifacts.is_relative_to(folder / "artifacts" / "exp")
    assert {p.relative_to(artifacts).as_posix() for p in artifacts.rglob("*") if p.is_file()} == {
        *("spec.yaml", "plots/a.txt", "plots/.hidden/c.txt"),
        *("again/a.txt", "again/b.tmp", "again/.hidden/c.txt"),
    }
    assert (artifacts / "plots/a.txt").read_text() == "plots/a.txt"
    assert run.info.status == "FINISHED"
    assert not (folder / "spool").exists()


def test_thousands_of_metrics_go_out_in_few_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sizes: list[int] = []
    original = MlflowClient.log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        sizes.append(len(metrics))
        original(self, run_id, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    tracker = begin(folder, "many")
    for step in range(1500):
        tracker.metrics({"train/loss": float(step), "train/grad_norm": 1.0}, step)
    tracker.finish()
    assert sum(sizes) == 3000
    assert max(sizes) <= 1000
    assert len(sizes) == 3
    history = client(folder).get_metric_history(run_id(tracker), "train/loss")
    assert [(m.step, m.value) for m in history] == [(step, float(step)) for step in range(1500)]


def test_metrics_are_seen_while_the_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = begin(folder, "live")
    store, identity = client(folder), run_id(tracker)

    def wait_for(steps: int) -> bool:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            if len(store.get_metric_history(identity, "train/loss")) == steps:
                return True
            time.sleep(0.02)
        return False

    tracker.metrics({"train/loss": 1.0}, 0)
    time.sleep(0.3)
    assert store.get_metric_history(identity, "train/loss") == []
    tracker.flush()
    assert wait_for(1)
    for step in range(1, 51):
        tracker.metrics({"train/loss": 1.0}, step)
    assert wait_for(51)
    monkeypatch.setattr(tracking, "_BATCH_SECONDS", 0.2)
    tracker.metrics({"train/loss": 1.0}, 51)
    assert wait_for(52)
    assert store.get_run(identity).info.status == "RUNNING"
    tracker.finish()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_status_is_the_one_given_and_finish_may_be_repeated(folder: Path, status: str) -> None:
    tracker = begin(folder, f"ends-{status}")
    tracker.finish(status)
    tracker.finish("FINISHED")
    info = client(folder).get_run(run_id(tracker)).info
    assert info.status == status
    assert info.end_time >= info.start_time


def test_a_child_names_its_parent_and_a_run_can_be_resumed(folder: Path) -> None:
    parent = begin(folder, "parent")
    child = begin(folder, "child", parent=run_id(parent))
    child.metrics({"train/loss": 1.0}, 0)
    child.finish("KILLED")
    again = begin(folder, "child", resume=run_id(child))
    again.metrics({"train/loss": 0.5}, 1)
    assert run_id(again) == run_id(child)
    assert client(folder).get_run(run_id(child)).info.status == "RUNNING"
    again.finish()
    parent.finish()
    run = client(folder).get_run(run_id(child))
    assert run.data.tags["mlflow.parentRunId"] == run_id(parent)
    assert run.info.status == "FINISHED"
    assert len(client(folder).get_metric_history(run_id(child), "train/loss")) == 2


def test_long_params_become_their_digest(folder: Path) -> None:
    tracker = begin(folder, "long")
    tracker.params({"short": "y" * 6000, "long": "x" * 6001})
    tracker.finish()
    params = client(folder).get_run(run_id(tracker)).data.params
    assert params["short"] == "y" * 6000
    assert params["long"] == f"sha256:{hashlib.sha256(b'x' * 6001).hexdigest()} (see the resolved spec)"
    assert param_value(None) == "None"


def test_values_that_are_no_finite_number_become_a_tag(folder: Path) -> None:
    tracker = begin(folder, "nonfinite")
    bad: Any = {"train/inf": float("inf"), "train/nan": float("nan"), "train/none": None, "train/loss": 1.0}
    tracker.metrics(bad, 0)
    tracker.metrics({"train/loss": float("nan")}, 1)
    tracker.metrics({"train/loss": 0.5}, 2)
    tracker.finish()
    data = client(folder).get_run(run_id(tracker)).data
    assert data.metrics == {"train/loss": 0.5}
    assert data.tags["nonfinite_metrics"] == "train/inf, train/loss, train/nan, train/none"


@pytest.mark.parametrize(
    "name", ["train/loss", "a*b<c", "../up", "..", "/root//x/", "a/./b", "ü/é", "x" * 300, "y" * 249 + "/z", "a/" * 200]
)
def test_every_name_becomes_one_mlflow_accepts(name: str) -> None:
    from mlflow.utils import validation

    check: Any = validation._validate_metric_name
    check(allowed_name(name))
    assert len(allowed_name(name)) <= 250
    assert allowed_name("train/f1 macro-1.0:x_y") == "train/f1 macro-1.0:x_y"


def test_digests_fit() -> None:
    assert short_digest("ab" * 32) == short_digest("sha256:" + "ab" * 32) == "ab" * 16


def test_a_refused_record_is_kept_and_the_rest_arrives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = begin(folder, "refused")
    tracker.params({"rank": 8})
    tracker.params({"rank": 16})
    tracker.artifacts(folder / "missing")
    tracker.metrics({"train/loss": 1.0}, 7)
    tracker.finish()
    run = client(folder).get_run(run_id(tracker))
    assert (run.data.params, run.data.metrics, run.info.status) == ({"rank": "8"}, {"train/loss": 1.0}, "FINISHED")
    head, *kept = [json.loads(line) for line in (folder / "spool/refused.jsonl").read_text().splitlines()]
    assert head["run_id"] == run.info.run_id
    assert kept[0] == {"kind": "params", "values": {"rank": 16}}
    assert [message["kind"] for message in kept] == ["params", "artifacts"]
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_server_that_is_not_there_costs_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed_port()}")
    begun = time.monotonic()
    tracker = begin(tmp_path, "offline")
    tracker.params({"rank": 8})
    for step in range(120):
        tracker.metrics({"train/loss": float(step)}, step)
    assert tracker.wait_open(10) is None
    tracker.artifacts(tmp_path / "folder", within="x")
    tracker.finish("FAILED")
    assert time.monotonic() - begun < 10
    text = (tmp_path / "spool/offline.jsonl").read_text()
    head, *messages = [json.loads(line) for line in text.splitlines()]
    assert (head["kind"], head["name"], head["experiment"], head["run_id"]) == ("run", "offline", "exp", None)
    assert {"kind": "params", "values": {"rank": 8}} in messages
    points = [point for message in messages if message["kind"] == "metrics" for point in message["points"]]
    assert [(key, value, step) for key, value, _, step in points] == [("train/loss", float(s), s) for s in range(120)]
    assert (messages[-1]["kind"], messages[-1]["status"]) == ("finish", "FAILED")
    assert any(m["kind"] == "artifacts" and m["folder"] == str(tmp_path / "folder") for m in messages)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert str(tmp_path / "spool/offline.jsonl") in error
    assert "secret" not in text + error
    with pytest.raises(StorageError, match="nothing answers"):
        find_run(None, tmp_path, "offline")


def test_a_store_that_fails_for_a_while_gets_what_comes_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    tracker = begin(folder, "outage")
    identity = run_id(tracker)
    with monkeypatch.context() as broken:
        calls: list[str] = []

        def fail(*_: object, **__: object) -> None:
            calls.append("log_batch")
            raise MlflowException("API request failed")

        broken.setattr(MlflowClient, "log_batch", fail)
        for step in range(4):
            tracker.metrics({"train/loss": 1.0}, step)
            tracker.flush()
        deadline = time.monotonic() + 5
        spool = folder / "spool/outage.jsonl"
        while not spool.exists() or len(spool.read_text().splitlines()) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(calls) == 1, "a failing store is left alone"
    tracker.metrics({"train/loss": 0.5}, 4)
    tracker.finish()
    assert [m.step for m in client(folder).get_metric_history(identity, "train/loss")] == [4]
    assert client(folder).get_run(identity).info.status == "FINISHED"


def test_nothing_heavy_is_imported_before_open(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from harness.tracking import Tracking, start
tracker = start(Tracking(), Path({str(tmp_path)!r}), "exp", "name")
tracker.params({{"a": 1}})
tracker.metrics({{"train/loss": 1.0}}, 0)
heavy = {{"mlflow", "torch", "tensorboard", "sqlalchemy", "filelock"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert not list(tmp_path.iterdir())


def test_recording_a_metric_takes_microseconds(tmp_path: Path) -> None:
    tracker = begin(tmp_path, "fast")
    values = {"train/loss": 1.0, "train/grad_norm": 1.0, "train/learning_rate": 1.0}
    fastest = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        for step in range(100):
            tracker.metrics(values, step)
        fastest = min(fastest, (time.perf_counter() - begun) / 100)
    assert fastest < 50e-6


def test_a_deleted_experiment_is_refused_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(folder).delete_experiment(client(folder).create_experiment("gone"))
    with pytest.raises(UserError, match=r"(?s)'gone' was deleted.*mlflow experiments restore.*tracking.experiment="):
        start(Tracking(experiment="gone"), folder, "exp", "name")
    monkeypatch.setattr(tracking, "refuse_deleted", lambda *_: None)
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

    tracker = tracking.TensorBoardTracker(tmp_path / "events")
    tracker.params({"rank": 8})
    for step in range(5):
        tracker.metrics({"train/loss": step / 2}, step)
    tracker.finish()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(s, s / 2) for s in range(5)]
    assert b"| rank | 8 |" in events.Tensors("params/text_summary")[0].tensor_proto.string_val[0]


def test_missing_tensorboard_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        start(Tracking(tensorboard=True), tmp_path, "exp", "name")


def test_memory_tracker_and_fan_out() -> None:
    first, second = MemoryTracker(), MemoryTracker()
    both = Trackers([Tracker(), first, second])
    both.params({"rank": 8})
    both.metrics({"train/loss": 1.0}, 3)
    both.tags({"a": "b"})
    both.dataset("reviews", "builtin", "ab", 3, "test")
    both.artifacts(Path("/x"), "y", ("*.z",))
    both.open()
    assert both.run_id is both.url is both.wait_open(0) is None
    both.finish("KILLED")
    assert first.messages == second.messages
    assert (first.all_params, first.all_tags, first.status) == ({"rank": 8}, {"a": "b"}, "KILLED")
    assert first.history == {"train/loss": [(3, 1.0)]}
    assert {"kind": "artifacts", "folder": "/x", "within": "y", "ignore": ["*.z"]} in first.messages


@pytest.mark.slow
def test_processes_that_start_on_a_new_database_at_once_all_succeed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from harness.tracking import Tracking, start
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
