"""F25-F28: a server that is down, dies, answers slowly or with errors costs no record, and none arrives twice."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.tracking import waiting, worker
from harness.tracking.sending import Told, sync
from harness.tracking.spool import read
from harness.tracking.stores import Tracking, start
from harness.tracking.tracker import Tracker
from tests.servers import Faulty
from tests.stores import QUIET

pytestmark = QUIET
STEPS = 30


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """One server for all tests: the first request costs it seconds."""
    with pytest.MonkeyPatch.context() as patch:
        server = Faulty(tmp_path_factory.mktemp("server"), patch)
        yield server
        server.stop()


@pytest.fixture
def server(module_server: Faulty, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr(waiting, "_BATCH_SECONDS", 0.05)
    monkeypatch.setattr(worker, "_PAUSE_SECONDS", 0.1)
    module_server.stop()
    module_server.start()
    yield module_server
    module_server.fault = lambda path: None


def first_of(request: str, *faults: str | None) -> Callable[[str], str | None]:
    """These faults for the first requests of this kind."""
    left = iter(faults)
    return lambda path: next(left, None) if path.endswith(request) else None


def begin(server: Faulty, folder: Path, **more: Any) -> Tracker:
    return start(Tracking(uri=server.uri), folder, "exp", folder.name, **more)


def record(tracker: Tracker, steps: range = range(STEPS), pause: float = 0.0) -> None:
    """What every run of these tests records."""
    tracker.params({"rank": 8, "empty": ""})
    tracker.dataset("reviews", "builtin:reviews", f"sha256:{'ab' * 32}", 2592, "train")
    tracker.tags({"spec": "abc"})
    for step in steps:
        tracker.metrics({"train/loss": 1 / (step + 1), "train/grad_norm": float(step)}, step)
        tracker.flush()
        time.sleep(pause)


def the_run(server: Faulty, folder: Path) -> Any:
    """The one run of this name, and nothing beside it."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("exp")
    assert experiment
    [run] = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{folder.name}'")
    return run


def assert_complete(server: Faulty, folder: Path, status: str = "FINISHED") -> Any:
    """Everything that `record` records is there once."""
    from mlflow import MlflowClient

    run = the_run(server, folder)
    for key in ("train/loss", "train/grad_norm"):
        history = MlflowClient(server.uri).get_metric_history(run.info.run_id, key)
        assert sorted(metric.step for metric in history) == list(range(STEPS))
        assert all(m.value == (1 / (m.step + 1) if key == "train/loss" else float(m.step)) for m in history)
    assert (run.data.params, run.data.tags["spec"]) == ({"rank": "8", "empty": ""}, "abc")
    assert [used.dataset.name for used in run.inputs.dataset_inputs] == ["reviews"]
    assert run.info.status == status
    assert not list((folder / "spool").glob("*"))
    return run


def test_the_server_gets_its_port_back_while_other_processes_begin(module_server: Faulty) -> None:
    """Between fork and exec each of them holds a copy of the socket that is listened on."""
    enough = threading.Event()

    def begin_processes() -> None:
        while not enough.is_set():
            subprocess.run(["true"], check=True)

    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(begin_processes)
        try:
            for _ in range(10):
                module_server.stop()
                module_server.start()
        finally:
            enough.set()
        begun.result()


@pytest.mark.parametrize("fault", ["refuse", "swallow", "busy"])
def test_requests_that_fail_now_and_then_cost_nothing(server: Faulty, tmp_path: Path, fault: str) -> None:
    """F27, F28: "swallow" applies the request and answers 500, so that nobody can know what arrived."""
    tracker = begin(server, tmp_path)
    assert tracker.wait_open(30)
    calls = iter(range(10_000))
    server.fault = lambda path: fault if next(calls) % 3 == 0 and path.endswith(("log-batch", "log-inputs")) else None
    record(tracker, pause=0.02)
    server.fault = lambda path: None
    tracker.finish()
    assert tracker.problem == ""
    assert_complete(server, tmp_path)


def test_a_run_whose_creation_was_not_answered_is_created_once(
    server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F28: once with the HTTP client asking again by itself, once with our own second attempt."""
    for retries in ("0", "1"):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
        server.fault = first_of("runs/create", "swallow")
        folder = tmp_path / f"retries{retries}"
        tracker = begin(server, folder)
        record(tracker)
        tracker.finish()
        assert tracker.problem == ""
        assert_complete(server, folder)


def test_a_server_that_is_down_at_start_gets_everything_at_the_end(
    server: Faulty, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F25."""
    server.stop()
    before = time.time_ns() // 1_000_000
    tracker = begin(server, tmp_path, tags={"team": "blue"})
    begun = time.time_ns() // 1_000_000
    assert tracker.wait_open(5) is None
    record(tracker)
    server.start()
    tracker.finish("KILLED")
    run = assert_complete(server, tmp_path, "KILLED")
    assert before <= run.info.start_time <= begun
    assert run.data.tags["team"] == "blue"
    assert tracker.problem == ""
    error = capsys.readouterr().err
    assert error.count("warning") == 1
    assert f"harness sync --output {tmp_path}" in error


def test_a_server_that_dies_in_the_middle_and_comes_back(server: Faulty, tmp_path: Path) -> None:
    """F26: what came in between is sent at the end."""
    tracker = begin(server, tmp_path)
    assert tracker.wait_open(30)
    record(tracker, range(10), pause=0.02)
    server.stop()
    record(tracker, range(10, 20), pause=0.02)
    server.start()
    record(tracker, range(20, STEPS), pause=0.02)
    tracker.finish()
    assert_complete(server, tmp_path)


def test_replaying_does_not_bring_back_older_tags(server: Faulty, tmp_path: Path) -> None:
    """F28: the first note was kept while the server was down, the second one was sent."""
    server.stop()
    tracker = begin(server, tmp_path)
    assert tracker.wait_open(5) is None
    record(tracker)
    tracker.tags({"note": "old", "only": "x"})
    spool = tmp_path / "spool" / f"{tmp_path.name}.jsonl"
    while '"old"' not in (spool.read_text() if spool.exists() else ""):
        time.sleep(0.01)
    server.start()
    time.sleep(0.2)
    tracker.tags({"note": "new"})
    tracker.finish()
    run = assert_complete(server, tmp_path)
    assert (run.data.tags["note"], run.data.tags["only"]) == ("new", "x")


def test_sync_sends_what_a_dead_server_did_not_take(server: Faulty, tmp_path: Path) -> None:
    """F26, F28: the run ends without its server; `harness sync` is tried too early, then again, then once more."""
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.txt").write_text("a")
    tracker = begin(server, tmp_path)
    assert tracker.wait_open(30)
    record(tracker, range(10), pause=0.02)
    server.stop()
    record(tracker, range(10, STEPS), pause=0.02)
    tracker.artifacts(tmp_path / "plots", within="plots")
    tracker.finish("FAILED")
    assert "nothing answers" in tracker.problem
    assert f"send it with: harness sync --output {tmp_path}" in tracker.problem
    [told] = sync(tmp_path)
    assert (told.name, told.is_sent, told.is_left_alone) == (tmp_path.name, False, False)
    assert "nothing answers" in told.what
    server.start()
    [told] = sync(tmp_path)
    assert told.is_sent
    run = assert_complete(server, tmp_path, "FAILED")
    assert (Path(run.info.artifact_uri) / "plots" / "a.txt").read_text() == "a"
    assert list(sync(tmp_path)) == []


def test_a_replay_that_fails_half_way_goes_on_where_it_stopped(server: Faulty, tmp_path: Path) -> None:
    """F28: of the requests for metrics, params and tags the second fails although it was applied, then the third."""
    server.stop()
    tracker = begin(server, tmp_path)
    record(tracker)
    tracker.finish()
    server.start()
    for faults in ([None, "swallow"], ["refuse"]):
        server.fault = first_of("log-batch", *faults)
        [told] = sync(tmp_path)
        assert not told.is_sent
    [told] = sync(tmp_path)
    assert told.is_sent
    assert_complete(server, tmp_path)


def test_a_slow_server_is_not_waited_for_and_memory_is_bounded(
    server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F27: what is too much for memory, and what is left at the end, goes into the spool."""
    monkeypatch.setattr(waiting, "_MAX_WAITING", 20)
    monkeypatch.setattr(worker, "_FINISH_SECONDS", 0.5)
    tracker: Any = begin(server, tmp_path)
    assert tracker.wait_open(30)
    server.fault = lambda path: 3.0
    record(tracker)
    assert tracker._queue._waiting <= 20 + 2
    spooled = [
        message for message in read(tmp_path / "spool" / f"{tmp_path.name}.jsonl") if message["kind"] == "metrics"
    ]
    assert spooled
    tracker.finish()
    assert tracker.problem
    error = capsys.readouterr().err
    assert "is slow" in error
    assert "too slow to be waited for" in error
    assert error.count(f"harness sync --output {tmp_path}") == 2
    server.fault = lambda path: None
    [told] = sync(tmp_path)
    assert told.is_sent, told
    assert_complete(server, tmp_path)


def test_ctrl_c_while_waiting_for_a_slow_server_keeps_the_rest(
    server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F27."""
    tracker: Any = begin(server, tmp_path)
    assert tracker.wait_open(30)
    server.fault = lambda path: 2.0
    record(tracker)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracker._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracker.finish("KILLED")
    assert "harness sync" in tracker.problem
    server.fault = lambda path: None
    [told] = sync(tmp_path)
    assert told.is_sent, told
    assert_complete(server, tmp_path, "KILLED")


def test_a_resumed_run_records_everything_again_and_has_it_once(server: Faulty, tmp_path: Path) -> None:
    """F28, F36: the first attempt was killed with some of it in MLflow and some in its spool."""
    first: Any = begin(server, tmp_path, tags={"spec": "abc"})
    identity = first.wait_open(30)
    record(first, range(8))
    server.stop()
    record(first, range(8, 16), pause=0.02)
    first._is_given_up = True  # as if killed: no end, nothing sent any more
    first._thread.join(0.5)
    first._spool.close()
    server.start()
    again = begin(server, tmp_path, resume=True)
    record(again, range(12))
    assert again.wait_open(30) == identity
    assert the_run(server, tmp_path).info.status == "RUNNING"
    record(again)
    again.finish()
    assert again.problem == ""
    assert_complete(server, tmp_path)


def test_many_long_params_fit_into_requests(server: Faulty, tmp_path: Path) -> None:
    """F36: a hundred values of 6000 characters that JSON escapes are more than the server's million bytes."""
    tracker = begin(server, tmp_path)
    tracker.params({f"a.b{i}": "ü" * 6000 for i in range(100)} | {"long": "x" * 7000})
    tracker.tags({f"t{i}": "y" * 9000 for i in range(60)})
    tracker.finish()
    data = the_run(server, tmp_path).data
    assert all(data.params[f"a.b{i}"] == "ü" * 6000 for i in range(100))
    assert data.params["long"].startswith("sha256:")
    assert data.tags["t59"] == "y" * 8000
    assert tracker.problem == ""


def test_two_syncs_at_once_do_no_harm(server: Faulty, tmp_path: Path) -> None:
    """F28: the second finds the spool held and leaves it alone."""
    server.stop()
    tracker = begin(server, tmp_path)
    record(tracker)
    tracker.finish()
    server.start()
    others: list[Told] = []

    def look(path: str) -> None:
        if path.endswith("log-batch") and not others:
            others.extend(sync(tmp_path))

    server.fault = look
    [told] = sync(tmp_path)
    assert told.is_sent
    assert [other.is_left_alone for other in others] == [True]
    assert_complete(server, tmp_path)
