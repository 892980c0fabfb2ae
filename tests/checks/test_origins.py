"""What a run was made from, changed afterwards: weights, data, spec, code, checkpoints, MLflow's copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.checks import origins
from harness.checks.verification import Verified
from harness.data import dataset
from harness.data.dataset import Data
from harness.data.labelling import Classes
from harness.fingerprint import code_state
from harness.signing import chain, digests
from harness.signing.keys import Key
from harness.signing.provenance import Check, seal
from tests import sealed

KEY = Key(b"k" * 32)


def make(place: Path, **claims: Any) -> Verified:
    """A finished run over a file of its own and a model folder of its own, whose copies MLflow has."""
    rows = "\n".join(f"text {n},{'good' if n % 2 else 'bad'}" for n in range(40))
    (place / "rows.csv").write_text(f"text,label\n{rows}\n")
    (place / "model").mkdir()
    (place / "model/model.safetensors").write_bytes(b"weights")
    chosen = {"name": str(place / "rows.csv"), "text": "text", "label": "label"}
    splits = dataset.load(Data.model_validate(chosen), Classes())
    found = (splits.train, splits.validation, splits.test)
    start = {
        "runId": "lora", "code": code_state(),
        "data": [{"split": s.name, "sha256": s.digest, "rows": len(s.examples)} for s in found],
        "baseModel": {"id": str(place / "model"), "sha256": digests.file_digest(place / "model/model.safetensors")},
    }  # fmt: skip
    folder = place / "runs/lora"
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump({"task": {"sequence_classification": {}}, "data": chosen}))
    begun = seal(folder, "start", {**start, **claims}, KEY, subjects=["spec.yaml"])
    (folder / "card.md").write_text("# lora\n")
    seal(folder, "end", {**start, **claims, "prev": begun, "metrics": {}}, KEY, exclude=["checkpoints"])
    shutil.copytree(folder, place / "artifacts/lora/0123/artifacts")
    return again(place)


def again(place: Path) -> Verified:
    return Verified(**vars(chain.verify(place / "runs/lora", [KEY])), output=place, mlflow_id="0123")


def told(checks: list[Check]) -> dict[str, tuple[bool | None, str]]:
    return {check.name: (check.ok, check.detail) for check in checks}


def test_everything_is_as_it_was(tmp_path: Path) -> None:
    found = told(origins.check(make(tmp_path), [KEY]))
    assert [name for name, (ok, _) in found.items() if ok] == [
        "base model", "data train", "data validation", "data test", "code", "artifacts in MLflow",
    ]  # fmt: skip
    assert found["artifacts in MLflow"][1] == "2 as signed"
    assert found["code"][1] == "the source files here are those that made the run"


def _link_artifact(place: Path) -> None:
    path = place / "artifacts/lora/0123/artifacts/card.md"
    path.unlink()
    path.symlink_to(place / "runs/lora/card.md")


CHANGES: dict[str, tuple[Callable[[Path], object], str, bool | None, str]] = {
    "weights": (
        lambda place: (place / "model/model.safetensors").write_bytes(b"others"),
        "base model", False, "changed: sha256",
    ),
    "no weights": (lambda place: (place / "model/model.safetensors").unlink(), "base model", None, "no file on this"),
    "no model": (lambda place: shutil.rmtree(place / "model"), "base model", None, "there is no folder"),
    "data": (
        lambda place: (place / "rows.csv").write_text((place / "rows.csv").read_text().replace("text 7,", "text 77,")),
        "data train", False, "changed: sha256",
    ),
    "no data": (lambda place: (place / "rows.csv").unlink(), "data", None, "rows.csv"),
    "spec": (
        lambda place: (place / "runs/lora/spec.yaml").write_text("data: {name: /etc/passwd}"),
        "data", None, "spec.yaml is not as it was signed, and is not followed",
    ),
    "artifact": (
        lambda place: (place / "artifacts/lora/0123/artifacts/card.md").write_text("better"),
        "artifacts in MLflow: card.md", False, "changed: sha256",
    ),
    "no artifact": (
        lambda place: (place / "artifacts/lora/0123/artifacts/card.md").unlink(),
        "artifacts in MLflow", None, "1 of 2 files are not there: card.md",
    ),
    "linked artifact": (
        _link_artifact,
        "artifacts in MLflow: card.md", None, "cannot read",
    ),
    "no artifacts": (
        lambda place: shutil.rmtree(place / "artifacts"), "artifacts in MLflow", None, "none on this machine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_named(tmp_path: Path, change: str) -> None:
    make(tmp_path)
    act, name, ok, detail = CHANGES[change]
    act(tmp_path)
    found = told(origins.check(again(tmp_path), [KEY]))
    assert found[name][0] is ok
    assert detail in found[name][1]


def test_random_weights_are_no_file(tmp_path: Path) -> None:
    run = make(tmp_path, baseModel={"id": "builtin:transformer", "revision": ""})
    assert told(origins.check(run, [KEY]))["base model"] == (
        None, "it began with random weights, which follow from the seed and nothing else"
    )  # fmt: skip


def test_other_code_is_a_note_and_no_tampering(tmp_path: Path) -> None:
    run = make(tmp_path, code={"treeSha256": "0" * 64, "commit": "0123456789abcdef"})
    checks = origins.check(run, [KEY])
    assert told(checks)["code"] == (None, "the source files here are not those that made the run, commit 0123456789ab")
    assert next(check.exit_code for check in checks if check.name == "code") == 0


@pytest.mark.parametrize("claim", [None, 7, [], {}, {"id": 7}, [{"split": "test"}], [7], "x"])
def test_statements_that_do_not_say_enough_are_no_traceback(tmp_path: Path, claim: Any) -> None:
    run = make(tmp_path, code=claim, data=claim, baseModel=claim)
    found = told(origins.check(run, [KEY]))
    assert found["base model"][0] is found["code"][0] is None
    assert not any(ok for name, (ok, _) in found.items() if name.startswith("data"))


def test_checkpoints_that_are_still_there_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "runs/lora"
    sealed.interrupted(folder, KEY)
    (folder / "checkpoints/step-0000010").rename(folder / "checkpoints/corrupt-0000010-ab12")
    (folder / "checkpoints/.tmp-0000030").mkdir()
    found = told(origins.check(again(tmp_path), [KEY]))
    assert found["checkpoints/step-0000020"] == (True, "as signed, and in its place in the chain")
    assert found["checkpoints/corrupt-0000010-ab12"] == (True, "note: set aside by the run, which did not use it")
    assert not any(".tmp" in name for name in found)
    (folder / "checkpoints/step-0000020/progress.json").write_text("{}")
    found = told(origins.check(again(tmp_path), [KEY]))
    assert found["checkpoints/step-0000020/progress.json"][0] is False


def test_a_folder_without_a_start_statement_has_no_origins(tmp_path: Path) -> None:
    (tmp_path / "runs/lora").mkdir(parents=True)
    assert [check.ok for check in origins.check(again(tmp_path), [KEY])] == [None]
