"""F54: names that lead elsewhere, wherever a name comes from outside. Archives are read, never unpacked."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness import storage
from harness.checks import verification
from harness.cli.commands import app
from harness.errors import HarnessError, StorageError, UserError
from harness.signing import digests
from harness.signing.keys import Key
from harness.signing.provenance import seal
from harness.storage import PROJECT
from harness.tracking.mlflow_store import FoundRun, safe_part
from tests.stores import QUIET

pytestmark = QUIET
KEY = Key(b"k" * 32)
EVIL = [
    "", ".", "..", "...", "../x", "../../etc/passwd", "a/../../x", "a/..", "a/.", "./a", "/etc/passwd", "//etc", "~",
    "~root", "a//b", "a/", "..\\x", "..\\..\\x", "C:\\x", "C:x", "\\\\host\\share", "..%2f..%2fx", "%2e%2e/x", "..;/x",
    "a\0b", "\0", "a\n", "\na", "a\r\n", "\t", "\x1b[2J", "a\x7f", "\u2025/x", "\uff0e\uff0e/x", "\u2024\u2024",
    "a\u202eb", "\ud800", "a b", " a", "a ", "-rf", "--output=/", ".hidden", "a:b", "a*b", "a?b", "$HOME", "`id`",
    "$(id)", "a;id", "a|b", "<a>", "'a'", '"a"', "ü", "a" * 65, "a" * 300,
]  # fmt: skip
PLAIN = ["CON", "NUL", "a..b", "a.", "lora-s1-ab12", "0", "a" * 64]
"""Odd elsewhere, and only letters here."""


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HARNESS_SIGNING_KEY", KEY.text)
    for name in ("XDG_CONFIG_HOME", "HARNESS_SIGNING_KEY_FILE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", EVIL, ids=ascii)
def test_no_path_is_made_of_an_evil_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot be a file name") as caught:
        storage.safe_name(name)
    assert str(caught.value).isprintable() or "\n  fix" in str(caught.value)
    with pytest.raises(StorageError):
        storage.RunLock(tmp_path, name)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    assert (tmp_path / storage.safe_name(name)).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize("name", EVIL, ids=ascii)
def test_names_in_a_statement_stay_in_its_folder(tmp_path: Path, name: str) -> None:
    """A name that is accepted is relative, and leads to a place below the folder whatever the rest of it is."""
    if digests.is_safe(name):
        assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())
        assert (tmp_path / name).resolve() != tmp_path.resolve()
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises((StorageError, ValueError)):
        seal(folder, "start", {}, KEY, subjects=[name])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", EVIL, ids=ascii)
def test_a_run_of_an_evil_name_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A folder beside the folder of runs holds a run that verifies: no name reaches it but its own path."""
    for place in (tmp_path / "x", tmp_path / "a", tmp_path / "runs/x"):
        place.mkdir(parents=True)
        seal(place, "end", {"prev": seal(place, "start", {}, KEY)}, KEY)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if name and verification._is_dir(Path(name)):
        return  # a folder of the machine that was named as such: verifying reads it and nothing else
    with pytest.raises(UserError, match="no run is called") as caught:
        verification.verify_run(name, tmp_path)
    assert "\x1b" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "a\0b"])
def test_a_run_of_an_evil_name_in_mlflow_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "runs").mkdir()
    found = FoundRun("0" * 32, name, "FINISHED", {}, {}, {})
    with pytest.raises(UserError, match="is not there"):
        verification._folder("0" * 32, tmp_path, found, None)


@pytest.mark.parametrize("name", EVIL, ids=ascii)
def test_mlflow_folders_of_evil_experiments_stay_inside(tmp_path: Path, name: str) -> None:
    assert "/" not in safe_part(name)
    assert safe_part(name) not in (".", "..")


@pytest.mark.parametrize("name", [name for name in EVIL if "\ud800" not in name], ids=ascii)
def test_output_folders_of_any_name_end_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(verification, "PROJECT", tmp_path)
    done = CliRunner().invoke(app, ["verify", "absent", f"--output={name}"])
    assert isinstance(done.exception, HarnessError | SystemExit), done.exception
    assert list(tmp_path.iterdir()) == []


def test_archives_are_read_and_never_unpacked() -> None:
    """No member's name becomes a path: files are taken by exact names and checked by digest."""
    for path in (PROJECT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert called(node) not in {"extractall", "extract", "unpack_archive"}, f"{path.name}:{node.lineno}"


# F53: nothing executes what it reads

PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def keywords(node: ast.Call) -> dict[str | None, Any]:
    return {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}


@pytest.mark.parametrize("path", sorted((PROJECT / "harness").rglob("*.py")), ids=lambda path: str(path.name))
def test_nothing_in_the_package_reads_a_pickle(path: Path) -> None:
    """F53: `torch.load` at most with `weights_only=True`; accelerate's `load_state` executes what it finds."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & PICKLES, where
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLES, where
        elif isinstance(node, ast.Call):
            source = ast.unparse(node.func)
            assert called(node) not in {"register_for_checkpointing", "read_pickle"}, where
            assert source not in {"accelerator.load_state", "self.accelerator.load_state", "np.load"}, where
            if source == "torch.load":
                assert keywords(node).get("weights_only") is True, where
            assert keywords(node).get("trust_remote_code") is not True, where
            assert keywords(node).get("allow_pickle") is not True, where


class Canary:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "name", ["trained.safetensors", "optimizer.safetensors", "best.safetensors", "progress.json", "extra.pkl"]
)
def test_a_pickle_in_a_checkpoint_is_never_executed(tmp_path: Path, name: str) -> None:
    """F53: in the place of each file, and sealed with the right key."""
    import pickle

    import torch

    from harness.checkpoint import Checkpoints, Snapshot

    class Signer:
        def checkpoint(self, folder: Path, step: int) -> str:
            return seal(folder, "checkpoint", {"runId": tmp_path.name, "step": step, "attempt": 1}, KEY)

        def follow(self, statement: str, attempt: int | None = None) -> None:
            pass

    state = {"w": torch.zeros(2)}
    Checkpoints(tmp_path, 2, Signer()).save(Snapshot(3, state, state, state, {}))
    place = tmp_path / "checkpoints/step-0000003"
    assert Checkpoints(tmp_path, 2, Signer(), [KEY]).newest() is not None
    (place / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    seal(place, "checkpoint", {"runId": tmp_path.name, "step": 3, "attempt": 1}, KEY)
    try:
        Checkpoints(tmp_path, 2, Signer(), [KEY], notice=lambda _: None).newest()
    except StorageError:
        assert name != "extra.pkl"
    assert not (tmp_path / "canary").exists()
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
