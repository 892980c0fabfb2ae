from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from harness import checkpoint, faults
from harness.checkpoint import Checkpoints, Snapshot
from harness.errors import StorageError
from harness.models import surgery
from harness.signing import provenance
from harness.signing.keys import Key
from harness.storage import PROJECT
from tests.toys import classifier


class Counter(nn.Module):
    """A frozen weight, a trainable one, and a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.trained = nn.Parameter(torch.zeros(2))
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("derived", torch.zeros(1), persistent=False)


def test_what_trains_and_persistent_buffers_are_kept() -> None:
    assert set(checkpoint.trained_state(Counter())) == {"trained", "kept"}


def test_a_state_is_a_copy() -> None:
    model = Counter()
    state = checkpoint.trained_state(model)
    with torch.no_grad():
        model.trained.add_(1)
    assert state["trained"].tolist() == [0, 0]
    checkpoint.restore(model, state)
    assert model.trained.tolist() == [0, 0]


def test_files_follow_the_umask_and_nothing_temporary_stays(tmp_path: Path) -> None:
    path = checkpoint.save(checkpoint.trained_state(Counter()), tmp_path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def current_umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model = classifier()
    surgery.freeze_except(model, {"classifier.bias"})
    with pytest.raises(StorageError, match=r"belong to another model or other methods\n  why: differing: "):
        checkpoint.restore(model, checkpoint.trained_state(Counter()))


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
def test_a_broken_file_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / checkpoint.WEIGHTS).write_bytes(content)
    with pytest.raises(StorageError, match=checkpoint.WEIGHTS):
        checkpoint.load(tmp_path)
    with pytest.raises(StorageError, match="cannot read"):
        checkpoint.load(tmp_path / "absent")


# Checkpoints to go on from

KEY, OTHER = Key(bytes(range(32))), Key(bytes(range(1, 33)))
FILES = ["trained.safetensors", "optimizer.safetensors", "best.safetensors", "progress.json"]


class Signer:
    """Seals with a key, and remembers the chain."""

    def __init__(self, key: Key | None = KEY) -> None:
        self.key, self.prev = key, "start"

    def checkpoint(self, folder: Path, step: int) -> str:
        claim = {"runId": folder.parent.parent.name, "step": step, "attempt": 1, "prev": self.prev}
        return provenance.seal(folder, "checkpoint", claim, self.key)

    def follow(self, statement: str, attempt: int | None = None) -> None:
        self.prev = statement


def snapshot(step: int) -> Snapshot:
    tensors = {name: torch.full((50,), float(step + i)) for i, name in enumerate("ab")}
    return Snapshot(step, tensors, {"exp_avg/a": tensors["a"]}, {"a": tensors["b"]}, {"step": step})


def checkpoints(run: Path, notices: list[str] | None = None, key: Key | None = KEY, **more: object) -> Checkpoints:
    told = [] if notices is None else notices
    keys = more.pop("keys", [KEY])
    return Checkpoints(run, 2, Signer(key), keys, notice=told.append, **more)  # type: ignore[arg-type]


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(snapshot(3))
    found = checkpoints(tmp_path).newest()
    assert found is not None
    assert (found.step, found.progress, found.attempt) == (3, {"step": 3}, 1)
    assert found.statement.startswith("harness1:")
    expected = snapshot(3)
    for name in ("trained", "optimizer", "best"):
        kept, given = getattr(found, name), getattr(expected, name)
        assert kept.keys() == given.keys()
        assert all(torch.equal(kept[key], given[key]) for key in given)


def test_before_the_first_there_is_none(tmp_path: Path) -> None:
    assert checkpoints(tmp_path).newest() is None


def test_two_stay_and_the_statements_of_all(tmp_path: Path) -> None:
    """F14."""
    made = checkpoints(tmp_path)
    for step in (2, 4, 6, 8):
        made.save(snapshot(step))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000006", "step-0000008"]
    chain = [provenance.open_envelope(path, [KEY], "checkpoint") for path in sorted((tmp_path / "chain").iterdir())]
    assert [envelope.predicate["step"] for envelope in chain if envelope.predicate] == [2, 4, 6, 8]
    links = ["start", *(envelope.attestation_id for envelope in chain)]
    assert [envelope.predicate["prev"] for envelope in chain if envelope.predicate] == links[:-1]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: len(content) * int(how) // 100])


@pytest.mark.parametrize("how", ["0", "50", "99", "flipped", "missing"])
@pytest.mark.parametrize("name", [*FILES, checkpoint.ENVELOPE])
def test_a_damaged_one_is_set_aside_and_the_one_before_it_is_taken(name: str, how: str, tmp_path: Path) -> None:
    """F19, F20: nothing of it is parsed before its digest fits."""
    made = checkpoints(tmp_path)
    made.save(snapshot(2))
    made.save(snapshot(4))
    damage(tmp_path / "checkpoints" / "step-0000004" / name, how)
    notices: list[str] = []
    found = checkpoints(tmp_path, notices).newest()
    assert found is not None
    assert found.step == 2
    assert len(notices) == 1
    assert name in notices[0]
    assert {path.name[:15] for path in (tmp_path / "checkpoints").iterdir()} == {"corrupt-0000004", "step-0000002"}


def test_when_none_can_be_used_the_reasons_are_told(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(snapshot(2))
    damage(tmp_path / "checkpoints" / "step-0000002" / FILES[0], "missing")
    with pytest.raises(
        StorageError, match=r"no checkpoint in .* can be used\n  why: step-0000002/trained\.safetensors"
    ):
        checkpoints(tmp_path).newest()


def test_a_file_that_does_not_belong_there_is_not_accepted(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(snapshot(2))
    (tmp_path / "checkpoints" / "step-0000002" / "extra.bin").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"extra\.bin: missing, or not part of the checkpoint"):
        checkpoints(tmp_path).newest()


@pytest.mark.parametrize("signed_by", [None, OTHER], ids=["nobody", "somebody else"])
def test_what_was_not_signed_with_a_known_key_is_refused(signed_by: Key | None, tmp_path: Path) -> None:
    """F21: weights exchanged, digests made anew, everything consistent, but for the key."""
    checkpoints(tmp_path, key=signed_by).save(snapshot(2))
    with pytest.raises(StorageError, match=r"--insecure|keyring"):
        checkpoints(tmp_path).newest()
    with pytest.raises(StorageError):  # nothing was set aside: with the right key it can still be read
        checkpoints(tmp_path).newest()
    found = checkpoints(tmp_path, keys=[signed_by] if signed_by else []).newest()
    assert found is not None
    assert found.step == 2


@pytest.mark.parametrize("change", ["renamed", "of another run"])
def test_a_checkpoint_in_the_place_of_another_one_is_not_taken(change: str, tmp_path: Path) -> None:
    for run_name in ("mine", "other"):
        checkpoints(tmp_path / run_name).save(snapshot(2))
        checkpoints(tmp_path / run_name).save(snapshot(4))
    folder = tmp_path / "mine" / "checkpoints"
    if change == "renamed":
        (folder / "step-0000004").rename(folder / "step-0000008")
    else:
        shutil.rmtree(folder / "step-0000004")
        (tmp_path / "other" / "checkpoints" / "step-0000004").rename(folder / "step-0000004")
    told: list[str] = []
    found = checkpoints(tmp_path / "mine", told).newest()
    assert found is not None
    assert found.step == 2
    assert "the statement is about step-0000004 of" in told[0]


def test_checkpoints_that_are_gone_are_not_taken_for_a_run_that_never_had_any(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(snapshot(2))
    damage(tmp_path / "checkpoints" / "step-0000002" / FILES[0], "missing")
    for _ in range(2):
        with pytest.raises(StorageError, match="can be used"):
            checkpoints(tmp_path).newest()


def test_a_statement_that_a_full_disk_kept_from_the_chain_is_there_after_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkpoints(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr(made, "_remember", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        made.save(snapshot(2))
    made.save(snapshot(4))
    assert sorted(path.name for path in (tmp_path / "chain").iterdir()) == ["step-0000002.json", "step-0000004.json"]


def test_unsigned_checkpoints_are_accepted_without_a_key_or_when_asked_for(tmp_path: Path) -> None:
    checkpoints(tmp_path, key=None).save(snapshot(2))
    for found in (checkpoints(tmp_path, keys=[]).newest(), checkpoints(tmp_path, insecure=True).newest()):
        assert found is not None
        assert found.step == 2


def test_a_made_again_checkpoint_keeps_both_statements(tmp_path: Path) -> None:
    made = checkpoints(tmp_path)
    made.save(snapshot(2))
    made.save(snapshot(4))
    damage(tmp_path / "checkpoints" / "step-0000004" / FILES[0], "0")
    again = checkpoints(tmp_path)
    found = again.newest()
    assert found is not None
    again.save(dataclasses.replace(snapshot(5), step=4))
    names = sorted(path.name for path in (tmp_path / "chain").iterdir())
    assert names == ["step-0000002.json", "step-0000004-2.json", "step-0000004.json"]


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F15."""
    made = checkpoints(tmp_path)
    made.save(snapshot(2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StorageError, match=r"disk full: the checkpoint of step 4 needs [\d,]+ bytes, 1 are free"):
        made.save(snapshot(4))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]


POINTS = [name for name in faults.POINTS if name.startswith("checkpoint.")]


@pytest.mark.parametrize("point", POINTS)
def test_a_save_that_fails_leaves_the_last_checkpoint_and_no_rubbish(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: the disk is full at any moment of the save."""
    made = checkpoints(tmp_path)
    made.save(snapshot(2))
    monkeypatch.setenv(faults.VARIABLE, f"{point}:enospc")
    try:
        made.save(snapshot(4))
    except (StorageError, OSError) as error:
        assert "No space left on device" in str(error)
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    found = checkpoints(tmp_path).newest()
    assert found is not None
    assert found.step == (4 if point in ("checkpoint.after_rename", "checkpoint.before_prune") else 2)


SAVER = """
import sys
from pathlib import Path
import torch
from tests.test_checkpoint import checkpoints, snapshot
made = checkpoints(Path(sys.argv[1]))
for step in (2, 4, 6):
    made.save(snapshot(step))
print("saved")
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_any_point_of_a_save_leaves_the_newest_that_was_committed(point: str, tmp_path: Path) -> None:
    """F13, F14: the third save is killed. Two checkpoints are there before, and at least two that can be read after."""
    for step in (2, 4):
        checkpoints(tmp_path).save(snapshot(step))
    script = SAVER.replace("(2, 4, 6)", "(6,)")
    done = run(script, str(tmp_path), **{faults.VARIABLE: f"{point}:kill"})
    assert done.returncode == -9
    found = checkpoints(tmp_path).newest()
    assert found is not None
    assert found.step == (6 if point in ("checkpoint.after_rename", "checkpoint.before_prune") else 4)
    assert json.dumps(found.progress) == json.dumps({"step": found.step})
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert not [name for name in names if name.startswith(".tmp")]
    assert len(names) >= 2
    assert (tmp_path / "chain" / f"step-{found.step:07d}.json").exists()


def run(script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_a_sentence_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """F15: a real error of the system, through safetensors' native code."""
    checkpoints(tmp_path).save(snapshot(2))
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
    done = run(SAVER.replace("made = ", limit + "made = ").replace("(2, 4, 6)", "(4,)"), str(tmp_path))
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_modes_follow_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    """F18."""
    before = os.umask(mask)
    try:
        checkpoints(tmp_path).save(snapshot(2))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_nothing_that_could_execute_is_ever_read(tmp_path: Path) -> None:
    """F53: a pickle in the place of every file, sealed with the right key, is refused by its parser."""
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(canary),)

    import pickle

    for number, name in enumerate(FILES):
        run_folder = tmp_path / str(number)
        made = checkpoints(run_folder)
        made.save(snapshot(2))
        folder = run_folder / "checkpoints" / "step-0000002"
        (folder / name).write_bytes(pickle.dumps(Payload()))
        (folder / checkpoint.ENVELOPE).unlink()
        Signer().checkpoint(folder, 2)
        with pytest.raises(StorageError, match="of another format"):
            checkpoints(run_folder).newest()
    assert not canary.exists()
