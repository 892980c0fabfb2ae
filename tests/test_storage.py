from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import notes
from harness.errors import RunInUse, UserError
from harness.storage import PROJECT, RunLock

HOLDER = """
import sys, time
from pathlib import Path
from harness.storage import RunLock
RunLock(Path(sys.argv[1]), "run").acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_who_works_on_the_run_and_a_dead_one_frees_it(tmp_path: Path) -> None:
    """F22."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for attempt in (RunLock(tmp_path, "run").acquire, RunLock(tmp_path, "run").refuse_owned):
            with pytest.raises(
                UserError, match=rf"another process works on run\n  why: pid {holder.pid}, host .*since"
            ):
                attempt()
        holder.kill()
    lock = RunLock(tmp_path, "run")
    lock.acquire()
    assert lock.owner()["pid"] == os.getpid()
    lock.release()
    assert not lock.path.exists()
    RunLock(tmp_path, "run").refuse_owned()
    assert not lock.path.exists()


@pytest.mark.parametrize(("age", "is_free"), [(10, False), (3600, True)])
def test_a_lock_of_another_machine_counts_as_long_as_it_is_touched(age: int, is_free: bool, tmp_path: Path) -> None:
    """F22: where a network file system keeps flock to one machine."""
    lock = RunLock(tmp_path, "run")
    lock.path.parent.mkdir()
    lock.path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    os.utime(lock.path, (time.time() - age,) * 2)
    if is_free:
        lock.acquire()
        lock.release()
    else:
        with pytest.raises(UserError, match="host elsewhere"):
            lock.acquire()


def test_a_lock_of_a_machine_that_is_known_to_be_gone_is_taken_over(tmp_path: Path) -> None:
    """F34: its heartbeats stopped. A living process of this machine keeps its own."""
    lock = RunLock(tmp_path, "run")
    lock.path.parent.mkdir()
    lock.path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    lock.acquire(is_gone=True)
    with pytest.raises(RunInUse):
        RunLock(tmp_path, "run").acquire(is_gone=True)
    lock.release()


def test_without_flock_the_age_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F22: some network file systems have none."""
    monkeypatch.setattr(notes, "_told", set())

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = RunLock(tmp_path, "run"), RunLock(tmp_path, "run")
    first.acquire()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(UserError, match="another process works on run"):
        second.acquire()
    os.utime(first.path, (0, 0))
    second.acquire()
    second.release()
    assert capsys.readouterr().err.count("NOTE no file locks in") == 1


def test_touching_shows_that_the_owner_lives(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, "run")
    lock.acquire()
    os.utime(lock.path, (0, 0))
    lock.touch()
    assert time.time() - lock.path.stat().st_mtime < 60
    lock.release()


UNWRITABLE = """
import sys
from harness.cli.launching import main
code = main(["exp=lora", f"output={sys.argv[1]}"])
print(code, "torch" in sys.modules)
"""


def test_a_place_that_cannot_be_written_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """F17."""
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-c", UNWRITABLE, str(tmp_path / "file" / "runs")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "5 False\n"
    assert "output: cannot write into" in done.stderr
