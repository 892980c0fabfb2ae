"""A spool keeps whole lines, for one writer at a time, whatever kills it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import notes
from harness.tracking.spool import Spool, first_head, holding, read, retire

HEAD = {"kind": "run", "name": "a", "run_id": None}


def kinds(path: Path) -> list[str]:
    return [message["kind"] for message in read(path)]


def test_messages_stand_below_the_run_as_it_was_known(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "a")
    assert not (tmp_path / "spool").exists()
    spool.write(HEAD, {"kind": "tags", "values": {"\ud800": "é\n"}})
    spool.write(HEAD, {"kind": "params", "values": {"path": Path("x"), "nan": float("nan")}})
    spool.write(HEAD | {"run_id": "1"}, {"kind": "finish"})
    assert kinds(spool.path) == ["run", "tags", "params", "run", "finish"]
    assert list(read(spool.path))[1] == {"kind": "tags", "values": {"\ud800": "é\n"}}
    assert first_head(spool.path) == HEAD
    assert spool.kinds == {"tags", "params", "finish"}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, "a"), Spool(tmp_path, "a")
    first.write(HEAD, {"kind": "tags"})
    second.write(HEAD, {"kind": "params"})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.jsonl", "a~2.jsonl"]
    with holding(first.path) as is_held:
        assert not is_held
    first.close()
    with holding(first.path) as is_held:
        assert is_held
        with holding(first.path) as is_held_twice:
            assert not is_held_twice
    with holding(tmp_path / "never") as is_held:
        assert not is_held


def test_a_spool_that_was_sent_while_waiting_for_it_is_begun_anew(tmp_path: Path, monkeypatch: Any) -> None:
    """Between opening and locking, the file may be removed: what is written must lie at the path."""
    Spool(tmp_path, "a").write(HEAD, {"kind": "tags"})
    opened = os.open

    def opened_and_removed(path: Path, *more: int) -> int:
        descriptor = opened(path, *more)
        monkeypatch.setattr(os, "open", opened)
        Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", opened_and_removed)
    spool = Spool(tmp_path, "b")
    spool.write(HEAD, {"kind": "params"})
    assert kinds(tmp_path / "b.jsonl") == ["run", "params"]


def test_a_process_killed_while_appending_leaves_what_can_be_read(tmp_path: Path) -> None:
    """F28: kill -9; the lock is free, and the half line spoils nothing."""
    code = f"""
import os, signal
from pathlib import Path
from harness.tracking.spool import Spool
spool = Spool(Path({str(tmp_path)!r}), "a")
spool.write({{"kind": "run"}}, {{"kind": "tags"}})
os.write(spool._descriptor, b'{{"kind": "met')
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    path = tmp_path / "a.jsonl"
    assert kinds(path) == ["run", "tags", "cut"]
    again = Spool(tmp_path, "a")
    again.claim()
    assert again.kinds == {"tags", "damaged"}
    again.write(HEAD, {"kind": "params"})
    assert kinds(path) == ["run", "tags", "damaged", "run", "params"]


def test_a_damaged_spool_is_put_aside_and_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"kind": "run"}\n[1]\n\xff\n{"kind": 3}\n')
    assert kinds(path) == ["run", "damaged", "damaged", "damaged"]
    assert retire(path) == tmp_path / "a.jsonl.damaged"
    assert not path.exists()
    path.write_bytes(b'{"kind": "tags"}\n{"ki')
    assert first_head(path) == first_head(tmp_path / "never") == {}
    assert retire(path) is None
    assert not path.exists()


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F16: the message is lost and said so; what comes once there is room again can be read."""
    spool = Spool(tmp_path, "a")
    spool.write(HEAD, {"kind": "tags"})
    write, calls = os.write, iter([5])

    def full(descriptor: int, content: bytes) -> int:
        if room := next(calls, 0):
            return write(descriptor, content[:room])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            spool.write(HEAD, {"kind": "params"})
    spool.write(HEAD, {"kind": "finish"})
    assert kinds(spool.path) == ["run", "tags", "finish"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_once_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: _fail(number))
    monkeypatch.setattr(notes, "_told", set())
    spool = Spool(tmp_path, "a")
    spool.write(HEAD, {"kind": "tags"})
    assert kinds(spool.path) == ["run", "tags"]
    with holding(spool.path) as is_held:
        assert is_held
    assert capsys.readouterr().err.count(f"NOTE no file locks in {tmp_path} ({os.strerror(number)})") == 1


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is, it does not say that nobody holds the file."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: _fail(errno.EIO))
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(OSError, match="Input/output error"):
        Spool(tmp_path, "a").write(HEAD, {"kind": "tags"})
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def _fail(number: int) -> None:
    raise OSError(number, os.strerror(number))
