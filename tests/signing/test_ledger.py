"""The ledger: lines removed, edited, moved and torn; several processes; and a head that was kept."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StorageError
from harness.signing import ledger
from harness.signing.ledger import Entry, append, check
from harness.storage import PROJECT


def entry(number: int, kind: str = "start") -> Entry:
    return Entry(f"harness1:{number:064d}", kind, f"lora-s{number}-ab12", f"2026-01-02T03:04:{number:02d}+00:00")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    for number in range(4):
        append(tmp_path, entry(number))
    return tmp_path


def lines(output: Path) -> list[bytes]:
    return (output / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def test_every_line_names_the_one_before_it(output: Path) -> None:
    """Made again with nothing but the standard library."""
    prev = ""
    for number, line in enumerate(lines(output)):
        text = line.removesuffix(b"\n")
        assert json.loads(text) == {**vars(entry(number)), "prev": prev}
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()
        prev = hashlib.sha256(text).hexdigest()
    found = check(output)
    assert found is not None
    assert (found.entries, found.problems, found.head) == ([entry(n) for n in range(4)], [], prev)


def test_where_there_is_none(tmp_path: Path) -> None:
    assert check(tmp_path) is None
    assert check(tmp_path / "absent") is None
    (tmp_path / "ledger.jsonl").touch()
    found = check(tmp_path)
    assert found is not None
    assert (found.entries, found.problems, found.head) == ([], [], "")


def test_a_statement_is_entered_once(output: Path) -> None:
    """A run that was killed between sealing and entering enters it again when it goes on."""
    before = lines(output)
    head = append(output, entry(2))
    found = check(output)
    assert lines(output) == before
    assert found is not None
    assert head == found.head
    assert append(output, entry(4)) != head


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:1] + lines[2:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:3], lines[2], lines[3]],
        lambda lines: [lines[0].replace(b"lora-s0", b"lora-s9"), *lines[1:]],
        lambda lines: [lines[0].replace(b"start", b"end"), *lines[1:]],
        lambda lines: [b"{}\n", *lines[1:]],
        lambda lines: [b"\n", *lines],
        lambda lines: [*lines, b"[" * 10**5 + b"\n"],
        lambda lines: [*lines, b'{"attestation": 7}\n'],
        lambda lines: [*lines, b"half a li"],
    ],
)
def test_what_was_removed_edited_moved_or_torn_shows(output: Path, change: Callable[[list[bytes]], Any]) -> None:
    (output / "ledger.jsonl").write_bytes(b"".join(change(lines(output))))
    found = check(output)
    assert found is not None
    assert len(found.problems) >= 1
    assert found.problems[0].startswith("line ")


def test_every_flipped_bit_shows_to_who_kept_the_head(output: Path) -> None:
    before = check(output)
    assert before is not None
    path = output / "ledger.jsonl"
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        found = check(output)
        assert found is not None
        assert found.problems or found.head != before.head, position


def test_a_line_that_a_dying_process_left_is_removed_by_the_next(output: Path) -> None:
    whole = lines(output)
    (output / "ledger.jsonl").write_bytes(b"".join(whole) + b'{"attest')
    append(output, entry(4))
    found = check(output)
    assert found is not None
    assert (len(found.entries), found.problems, lines(output)[:4]) == (5, [], whole)


def test_a_full_disk_leaves_the_ledger_as_it_was(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lines(output)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"cannot write .*ledger.jsonl\n  why: .*No space left"):
        append(output, entry(4))
    assert lines(output) == before


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.signing.ledger import *\n"
        "for n in range(25): append(Path(sys.argv[1]), Entry(f'{sys.argv[2]}-{n}', 'start', 'run'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen([*command, str(n)], cwd=PROJECT) for n in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    found = check(tmp_path)
    assert found is not None
    assert (len(found.entries), found.problems) == (75, [])


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_mode_follows_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    """F18."""
    old = os.umask(mask)
    try:
        append(tmp_path / "new", entry(0))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new/ledger.jsonl").stat().st_mode) == mode


def test_a_link_or_a_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    """F54."""
    (tmp_path / "elsewhere").touch()
    (tmp_path / ledger.NAME).symlink_to("elsewhere")
    with pytest.raises(StorageError, match="cannot write"):
        append(tmp_path, entry(0))
    with pytest.raises(StorageError, match="not a regular file"):
        check(tmp_path)
    assert (tmp_path / "elsewhere").read_bytes() == b""
    (tmp_path / ledger.NAME).unlink()
    os.mkfifo(tmp_path / ledger.NAME)
    for ask in (lambda: append(tmp_path, entry(0)), lambda: check(tmp_path)):
        with pytest.raises(StorageError, match="not a regular file"):
            ask()
