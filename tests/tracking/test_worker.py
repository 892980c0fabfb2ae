"""Everything recorded arrives in MLflow, or lies in the spool; nothing waits for it."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from harness.errors import StorageError
from harness.tracking import sending, waiting, worker
from harness.tracking.mlflow_store import param_value
from harness.tracking.sending import describe, sync
from harness.tracking.spool import Spool
from harness.tracking.stores import find_run
from harness.tracking.writer import Target, open_run
from tests.stores import QUIET, begin, client, closed_port, run_id

pytestmark = QUIET


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for most tests: creating it takes over a second."""
    return tmp_path_factory.mktemp("my runs")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


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
    monkeypatch.setattr(waiting, "_BATCH_SECONDS", 600)
    tracker = begin(folder, "live")
    store, identity = client(folder), run_id(tracker)

    def wait_for(steps: int) -> bool:
        deadline = time.monotonic() + 60
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
    monkeypatch.setattr(waiting, "_BATCH_SECONDS", 0.2)
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


def test_a_refused_record_is_kept_and_the_rest_arrives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = begin(folder, "refused")
    tracker.artifacts(folder / "missing")
    tracker.metrics({"train/loss": 1.0}, 7)
    tracker.finish()
    run = client(folder).get_run(run_id(tracker))
    assert (run.data.metrics, run.info.status) == ({"train/loss": 1.0}, "FINISHED")
    head, *kept = [json.loads(line) for line in (folder / "spool/refused.jsonl").read_text().splitlines()]
    assert head["run_id"] == run.info.run_id
    assert [message["kind"] for message in kept] == ["artifacts", "finish"]
    assert capsys.readouterr().err.count("warning: ") == 1
    assert "no folder" in tracker.problem
    assert f"harness sync --output '{folder}'" in tracker.problem


def test_a_param_keeps_its_first_value(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F36: MLflow refuses another value, and with it every param of the same request."""
    tracker = begin(folder, "immutable")
    tracker.params({"rank": 8})
    tracker.params({"rank": 16, "alpha": 32})
    tracker.finish()
    assert client(folder).get_run(run_id(tracker)).data.params == {"rank": "8", "alpha": "32"}
    assert "rank stays 8 in MLflow; now it is 16" in capsys.readouterr().err
    assert tracker.problem == ""


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
    assert time.monotonic() - begun < 60, "the client alone waits for minutes"
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
        deadline = time.monotonic() + 60
        spool = folder / "spool/outage.jsonl"
        while not spool.exists() or len(spool.read_text().splitlines()) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(calls) == 1, "a failing store is left alone"
    tracker.metrics({"train/loss": 0.5}, 4)
    tracker.finish()
    assert sorted(m.step for m in client(folder).get_metric_history(identity, "train/loss")) == [0, 1, 2, 3, 4]
    assert client(folder).get_run(identity).info.status == "FINISHED"
    assert not spool.exists()
    assert tracker.problem == ""


def test_what_is_neither_sent_nor_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F16: a store that is down and a spool that cannot be written cost the record, not the run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    (tmp_path / "spool").write_text("in the way")
    tracker = begin(tmp_path, "lost")
    tracker.metrics({"train/loss": 1.0}, 0)
    tracker.finish()
    assert tracker.problem.startswith("records of this run are lost (")
    assert capsys.readouterr().err.count("records of this run are lost") == 1


def test_a_run_that_was_given_up_is_not_begun_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process lives on for a while: what it was about to do must not undo what `harness sync` did."""
    first = begin(folder, "stopped")
    identity = run_id(first)
    first.finish("KILLED")
    monkeypatch.setattr(worker, "_STOPPED_SECONDS", 0.1)
    is_opening, may_open = Event(), Event()

    def slow(*arguments: Any, **more: Any) -> Any:
        is_opening.set()
        assert may_open.wait(60)
        return open_run(*arguments, **more)

    monkeypatch.setattr("harness.tracking.worker.open_run", slow)
    again: Any = begin(folder, "stopped", resume=True)
    again.open()
    assert is_opening.wait(60)
    again.finish("KILLED")
    assert "finish kept in" in again.problem
    assert any(told.name == "stopped" and told.is_sent for told in sync(folder))
    may_open.set()
    again._thread.join(60)
    assert not again._thread.is_alive()
    assert client(folder).get_run(identity).info.status == "KILLED"


def test_a_run_that_goes_on_waits_for_who_sends_its_earlier_records(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes steps again that are on their way: it has to see them in the store before it adds its own."""
    first = begin(folder, "overlap")
    identity = run_id(first)
    first.finish("KILLED")
    target = Target(f"sqlite:///{folder / 'mlflow.db'}", folder, "exp", "overlap", {}, 0)
    spool = Spool(folder / "spool", "overlap")
    points = [["train/loss", 1.0, 1_790_000_000_000 + step, step] for step in range(4)]
    spool.write(describe(target, identity), {"kind": "metrics", "points": points})
    spool.close()
    is_replaying, may_replay = Event(), Event()
    replay = sending.replay

    def slow(*arguments: Any) -> Any:
        is_replaying.set()
        assert may_replay.wait(60)
        return replay(*arguments)

    monkeypatch.setattr(sending, "replay", slow)
    sender = Thread(target=lambda: list(sync(folder)))
    sender.start()
    assert is_replaying.wait(60)
    again = begin(folder, "overlap", resume=True)
    for step in range(2, 6):
        again.metrics({"train/loss": 2.0}, step)
    assert again.wait_open(1) is None
    may_replay.set()
    sender.join(60)
    again.finish()
    history = client(folder).get_metric_history(identity, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [*((s, 1.0) for s in range(4)), (4, 2.0), (5, 2.0)]
    assert not list((folder / "spool").glob("overlap*"))
