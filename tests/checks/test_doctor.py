from __future__ import annotations

import importlib.metadata
import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.catalogue import hub
from harness.checks import doctor
from harness.cli.commands import app
from harness.signing import keys
from harness.signing.provenance import Check
from harness.storage import RunLock
from tests.stores import QUIET, begin, closed_port

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (keys.VARIABLE, keys.FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_unreachable", lambda url: "")


def found(output: Path, uri: str | None = None) -> dict[str, Check]:
    return {check.name: check for check in doctor.examine(output, uri)}


def test_a_machine_that_can_train_has_no_no(tmp_path: Path) -> None:
    checks = found(tmp_path)
    assert [check for check in checks.values() if check.ok is False] == []
    assert "torch 2" in checks["packages"].detail and "cores" in checks["device"].detail
    assert checks["tracking"].detail == f"sqlite:///{tmp_path / 'mlflow.db'} (default): not made yet"
    assert "GiB free" in checks["disk"].detail
    assert checks["key"].ok is None and "harness keygen" in checks["key"].detail
    keys.keygen()
    assert found(tmp_path)["key"].ok


def test_a_store_that_is_away_is_told_with_where_its_name_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://me:secret@127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check = found(tmp_path)["tracking"]
    assert check.ok is False and "nothing answers" in check.detail and "secret" not in check.detail
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert found(tmp_path, uri)["tracking"].ok is False


def test_runs_that_are_gone_and_records_that_wait(tmp_path: Path) -> None:
    tracker = begin(tmp_path, "gone")
    assert tracker.wait_open(60)
    lock = RunLock(tmp_path, "gone")
    lock.acquire()
    checks = found(tmp_path)
    assert checks["tracking"].detail.endswith("(default): 2 experiments") and "stale runs" not in checks
    lock.release()
    lock.path.write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))  # as a killed process leaves it
    assert "gone: gone: harness runs reap" in found(tmp_path)["stale runs"].detail
    tracker.finish()
    (tmp_path / "spool").mkdir(exist_ok=True)
    (tmp_path / "spool" / "kept.jsonl").write_text("{}")
    assert "1 runs wait to be sent: harness sync" in found(tmp_path)["spool"].detail


def test_which_file_accelerate_reads_and_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.config import config_args

    file = tmp_path / "default_config.yaml"
    monkeypatch.setattr(config_args, "default_config_file", str(file))
    assert f"no file {file}" in found(tmp_path)["accelerate"].detail
    plain = "compute_environment: LOCAL_MACHINE\nnum_processes: 2\nmixed_precision: bf16\nuse_cpu: true\n"
    file.write_text(f"{plain}distributed_type: MULTI_CPU\n")
    check = found(tmp_path)["accelerate"]
    assert check.ok and check.detail.startswith(f"{file}: MULTI_CPU, 2 processes, precision bf16")
    file.write_text(f"{plain}distributed_type: FSDP\n")
    assert found(tmp_path)["accelerate"].ok is False
    file.write_text("compute_environment: [")
    assert "cannot be read" in found(tmp_path)["accelerate"].detail


def test_versions_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch<1", "no_such_package", "not_asked_for; extra == 'some'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    check = found(tmp_path)["packages"]
    assert check.ok is False
    assert "torch 2" in check.detail and "<1 is needed" in check.detail and "no_such_package is not" in check.detail


def test_the_hub_is_asked_before_it_is_called_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert found(tmp_path)["Hub"].ok and found(tmp_path)["Hub"].detail.startswith(f"{constants.ENDPOINT} answers; ")
    monkeypatch.setattr(hub, "_unreachable", lambda url: f"{url}: no network")
    check = found(tmp_path)["Hub"]
    assert check.ok is None and "cannot be reached" in check.detail and "no network" in check.detail
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check = found(tmp_path)["Hub"]
    assert check.ok and check.detail.startswith("offline (HF_HUB_OFFLINE)")


def test_the_command_has_an_exit_code_and_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--output", str(tmp_path), "--json"])
    assert done.exit_code == 0 and {one["name"] for one in json.loads(done.stdout)} >= {"python", "disk", "tracking"}
    uri = f"http://127.0.0.1:{closed_port()}"
    done = CliRunner().invoke(app, ["doctor", "--output", str(tmp_path), "--uri", uri])
    assert done.exit_code == 1 and "NO  tracking: " in done.stdout
    file = tmp_path / "file"
    file.touch()
    done = CliRunner().invoke(app, ["doctor", "--output", str(file)])
    assert done.exit_code == 1 and "NO  disk: " in done.stdout
