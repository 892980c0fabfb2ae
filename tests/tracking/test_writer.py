"""The same thing sent twice is in MLflow once."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from harness.tracking.sending import sync
from harness.tracking.stores import find_run
from harness.tracking.writer import points_of
from tests.stores import QUIET, begin, client, run_id

pytestmark = QUIET


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_resumed_run_may_record_again_what_it_has(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """F28, F36: the first param and the first value of a step stay, tags and files are replaced."""
    place = tmp_path / "card.md"
    place.write_text("first")
    for attempt, resume in ((1, False), (2, True)):
        tracker = begin(folder, "again", resume=resume, note=f"attempt {attempt}", tags={f"new{attempt}": "x"})
        tracker.params({"rank": 8, "machine": f"m{attempt}", "long": "x" * 7000})
        tracker.dataset("reviews", "builtin:reviews", f"sha256:{'cd' * 32}", 2592, "train")
        tracker.metrics({"train/loss": float("nan") if attempt == 1 else 0.5}, 9)
        for step in range(3 * attempt):
            tracker.metrics({"train/loss": 1.0 + attempt}, step)
        tracker.tags({"attempt": str(attempt)})
        tracker.artifacts(tmp_path)
        place.write_text("second")
        tracker.finish("KILLED" if attempt == 1 else "FINISHED")
        assert tracker.problem == ""
    run = client(folder).get_run(run_id(tracker))
    history = client(folder).get_metric_history(run.info.run_id, "train/loss")
    assert {m.step: m.value for m in history} == {0: 2.0, 1: 2.0, 2: 2.0, 3: 3.0, 4: 3.0, 5: 3.0, 9: 0.5}
    assert len(history) == 7
    assert (run.data.params["machine"], run.info.status) == ("m1", "FINISHED")
    expected = {"mlflow.note.content": "attempt 1", "attempt": "2", "new1": "x", "new2": "x"}
    assert (expected | {"nonfinite_metrics": "train/loss"}).items() <= run.data.tags.items()
    assert len(run.inputs.dataset_inputs) == 1
    assert (Path(run.info.artifact_uri) / "card.md").read_text() == "second"
    assert capsys.readouterr().err == "warning: the run's machine stays m1 in MLflow; now it is m2\n"


def test_resuming_a_run_that_mlflow_does_not_have_begins_it(folder: Path) -> None:
    tracker = begin(folder, "fresh", resume=True)
    tracker.metrics({"train/loss": 1.0}, 0)
    tracker.finish()
    assert client(folder).get_run(run_id(tracker)).data.metrics == {"train/loss": 1.0}


def test_a_run_of_the_same_name_that_somebody_else_made_is_not_continued(folder: Path) -> None:
    """A server is shared; a moved folder of one's own is no reason to begin anew."""
    theirs = begin(folder, "shared", tags={"folder": "/a", "mlflow.user": "them"})
    theirs.finish()
    for place, user, is_continued in (("/b", "me", False), ("/a", "me", True), ("/b", "them", True)):
        mine = begin(folder, "shared", tags={"folder": place, "mlflow.user": user}, resume=True)
        mine.finish()
        assert (run_id(mine) == run_id(theirs)) == is_continued
        if not is_continued:
            client(folder).delete_run(run_id(mine))


def test_a_killed_run_that_mlflow_never_saw_keeps_its_start(folder: Path) -> None:
    """F28: its spool and the resumed attempt become one run, which began when the first attempt did."""
    head: dict[str, Any] = {
        "kind": "run",
        "run_id": None,
        "experiment": "exp",
        "name": "late",
        "tags": {},
        "time": 1000,
    }
    head |= {"uri": f"sqlite:///{folder / 'mlflow.db'}", "resume": False}
    lines = [
        head,
        {"kind": "metrics", "points": [["train/loss", 0.5, 1001, 0]]},
        {"kind": "finish", "status": "KILLED"},
    ]
    (folder / "spool").mkdir(exist_ok=True)
    (folder / "spool" / "late.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tracker = begin(folder, "late", resume=True)
    tracker.metrics({"train/loss": 0.25}, 1)
    tracker.finish()
    assert tracker.problem == ""
    run = client(folder).get_run(run_id(tracker))
    assert (run.info.start_time, run.info.status) == (1000, "FINISHED")
    history = client(folder).get_metric_history(run.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.5), (1, 0.25)]
    assert not list((folder / "spool").iterdir())


def test_a_data_set_that_another_run_adds_at_the_same_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F29: MLflow looks for the data set, then adds it; two runs that do so at once collide in its table."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    original, errors = (
        MlflowClient.log_inputs,
        iter(["(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name"]),
    )

    def collide(self: Any, run_id: str, *more: Any) -> None:
        if error := next(errors, None):
            raise MlflowException(error)
        original(self, run_id, *more)

    monkeypatch.setattr(MlflowClient, "log_inputs", collide)
    tracker = begin(folder, "collides")
    tracker.dataset("reviews", "builtin:reviews", "ab" * 32, 3, "train")
    tracker.finish()
    assert tracker.problem == ""
    assert len(client(folder).get_run(run_id(tracker)).inputs.dataset_inputs) == 1


def test_a_full_disk_in_the_artifacts_is_told_once_and_synced_later(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F16: what fits is copied, what does not leaves no half file, and the run ends as it ended."""
    from mlflow import MlflowClient

    for name in ("a.txt", "big.bin", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    original = MlflowClient.log_artifact

    def full(self: Any, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        original(self, run_id, local_path, artifact_path)
        if local_path.endswith(".bin"):
            raise OSError(errno.ENOSPC, "No space left on device", local_path)

    tracker = begin(folder, "full disk")
    root = Path(client(folder).get_run(run_id(tracker)).info.artifact_uri) / "all"
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", full)
        tracker.artifacts(tmp_path, within="all")
        tracker.artifacts(tmp_path, within="all")
        tracker.finish()
    assert sorted(path.name for path in root.rglob("*.*")) == ["a.txt", "c.txt"]
    assert capsys.readouterr().err.count("warning") == 1
    assert "No space left on device" in tracker.problem
    assert "artifacts" in tracker.problem
    assert client(folder).get_run(run_id(tracker)).info.status == "FINISHED"
    [told] = sync(folder)
    assert told.is_sent
    assert (root / "big.bin").read_text() == "big.bin"


def test_points_are_numbers_whatever_was_recorded() -> None:
    import torch

    given = {"a": 1, "b": None, "c": "x", "d": torch.tensor(0.5), "e": torch.ones(2), "f": 10**400, "g": float("inf")}
    points = points_of({"kind": "metrics", "values": given, "step": 3, "time": 7})
    values = {key: value for key, value, time, step in points if (time, step) == (7, 3)}
    assert (values["a"], values["d"], values["g"]) == (1.0, 0.5, float("inf"))
    assert all(values[key] != values[key] for key in "bcef")


def test_a_run_registered_twice_is_one_version_and_the_alias_moves_to_the_newest(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "trained.safetensors").write_text("w")
    trackers = {}
    for name in ("first", "second"):
        for resume in (False, True):  # killed after it was registered
            trackers[name] = begin(folder, name, resume=resume)
            trackers[name].artifacts(tmp_path)
            trackers[name].register("reviews", "champion", "weights", f"about {name}")
            trackers[name].finish()
            assert trackers[name].problem == ""
    versions = {one.run_id: one for one in client(folder).search_model_versions("name = 'reviews'")}
    assert set(versions) == {run_id(tracker) for tracker in trackers.values()} and len(versions) == 2
    latest = client(folder).get_model_version_by_alias("reviews", "champion")
    assert (latest.run_id, latest.description) == (run_id(trackers["second"]), "about second")
    assert (Path(latest.source) / "trained.safetensors").read_text() == "w"
    for name in ("models:/reviews@champion", f"models:/reviews/{latest.version}"):
        found = find_run(None, folder, name)
        assert found is not None and found.name == "second"
    assert find_run(None, folder, "models:/reviews@nobody") is None
    assert find_run(None, folder, "models:/nothing/1") is None


def test_what_was_kept_is_registered_when_it_is_sent(folder: Path, tmp_path: Path) -> None:
    """The run's files come before its version, in whatever order they were kept."""
    (tmp_path / "weights").mkdir()
    kept = begin(folder, "late")
    kept.finish()
    spool = folder / "spool" / "late.jsonl"
    spool.parent.mkdir(exist_ok=True)
    head = {"kind": "run", "run_id": run_id(kept), "experiment": "exp", "name": "late", "tags": {}, "time": 1}
    head |= {"uri": f"sqlite:///{folder / 'mlflow.db'}", "resume": True}
    told = {"kind": "register", "model": "kept", "alias": "", "within": "weights", "about": "later"}
    spool.write_text("".join(json.dumps(line) + "\n" for line in (head, told)))
    [sent] = sync(folder)
    assert sent.is_sent, sent
    (version,) = client(folder).search_model_versions("name = 'kept'")
    assert (version.run_id, version.description) == (run_id(kept), "later")
