"""Storages and engines that a study refuses, before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.cli.launching import main
from harness.errors import StorageError, UserError
from harness.sweeps import crew
from harness.sweeps.study import Study
from tests.stores import closed_port
from tests.sweeps import crews


def refused(folder: Path, *own: str) -> str:
    """What a person is told; nothing is written."""
    with pytest.raises(UserError) as caught:
        Study(crews.plan(*own), folder)
    assert caught.value.exit_code == 2
    assert not [path for path in folder.rglob("*") if path.name != "claim.lock"]
    return str(caught.value)


@pytest.mark.parametrize("several", ["workers=2", "executor=ray"])
def test_sqlite_is_for_one_worker(several: str, tmp_path: Path) -> None:
    """F34."""
    assert "SQLite is for one worker" in refused(tmp_path, f"storage=sqlite:///{tmp_path / 'study.db'}", several)


def test_sqlite_serves_one_worker(tmp_path: Path) -> None:
    study = Study(crews.plan(f"storage=sqlite:///{tmp_path / 'study.db'}", "trials=1"), tmp_path)
    claim = study.claim("search")
    assert claim
    study.finish(claim, "complete", run="r", seconds=1.0, values=[0.5])
    assert [(one.number, one.state) for one in study.records("search")] == [(0, "complete")]
    study.store.close()


def test_other_databases_are_named_as_what_they_are(tmp_path: Path) -> None:
    told = refused(tmp_path, "storage='mysql://me:secret@host/db'")
    assert "'mysql' is no storage for studies" in told
    assert "secret" not in told


def test_a_driver_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    told = refused(tmp_path, "storage='postgresql+psycopg://me@host/db'")
    assert "the driver of the storage is not installed: psycopg" in told
    assert "pip install -e '.[cluster]'" in told


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    asked = crews.plan("executor=ray").space
    with pytest.raises(UserError, match="ray is not installed"), crew.ray_crew(asked, [], tmp_path):
        pass


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("postgresql+psycopg://me:s3cr@127.0.0.1:{port}/db", "postgresql+psycopg://me@127.0.0.1:"),
        ("postgresql+psycopg://me:s3cr:s3cr%40x@127.0.0.1:{port}/db", "postgresql+psycopg://me@127.0.0.1:"),
        ("postgresql+psycopg://me@/db?host=127.0.0.1&password=s3cr&port={port}", "me@/db?host=127.0.0.1&port="),
    ],
)
def test_the_password_of_a_database_that_is_down_is_not_shown(storage: str, shown: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the study's storage cannot be reached") as caught:
        Study(crews.plan(f"storage='{storage.format(port=closed_port())}'"), tmp_path)
    assert shown in str(caught.value)
    assert "s3cr" not in str(caught.value)


def test_a_password_that_the_driver_would_tell_is_refused(tmp_path: Path) -> None:
    told = refused(tmp_path, "storage='postgresql+psycopg://me:s3@cr@host/db'")
    assert "write it as %40" in told
    assert "cr@" not in told


@pytest.mark.slow
def test_a_database_that_is_down_ends_the_command_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = f"storage='postgresql+psycopg://me@127.0.0.1:{closed_port()}/db'"
    assert main(["exp=lora", "sweep=lora_rank", f"output={tmp_path}", storage, "workers=2"]) == 5
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: postgresql+psycopg://me@127.0.0.1:")
    assert "Traceback" not in said.err
    assert not list(tmp_path.rglob("*.db"))
