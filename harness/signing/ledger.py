"""Which runs there were: `<output>/ledger.jsonl`, one line for every start and end statement, only ever appended to.

Each line is canonical JSON and carries the sha256 of the line before it, so that a line that was removed, edited or
moved shows; and whoever kept an earlier head, the sha256 of the last line, sees whether the end was cut off or all of
it written anew. Without such a head it shows nothing about somebody who rewrites the whole file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from harness.errors import StorageError
from harness.signing import digests

NAME = "ledger.jsonl"
_FIELDS = {"attestation", "kind", "run", "time", "prev"}
_MAX_BYTES = 2**28


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Entry:
    """One statement: its attestation id, start or end, the run, and when it was entered."""

    attestation: str
    kind: str
    run: str
    time: str = field(default_factory=_now)


@dataclass(frozen=True)
class Ledger:
    """What a ledger holds; `problems` is empty where it hangs together, `head` is the sha256 of its last line."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    """The sha256 of each line: what was the head once."""

    @property
    def head(self) -> str:
        """The sha256 of the last line; empty if there is none."""
        return self.heads[-1] if self.heads else ""


def append(output: Path, entry: Entry) -> str:
    """Enter a statement, unless it is there already; returns the head. Processes wait for each other (flock).

    A last line that a dying process left unfinished was never reported as entered: it is removed.

    Raises:
        StorageError: the ledger cannot be written; then it is as it was.
    """
    path = output / NAME
    try:
        output.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with closing(FileIO(os.open(path, flags, 0o666), "r+")) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            fcntl.flock(file, fcntl.LOCK_EX)
            return _append(file, entry)
    except OSError as error:
        raise StorageError(f"cannot write {path}", why=str(error), fix="free some disk space") from error


def check(output: Path) -> Ledger | None:
    """Read the whole ledger and see whether it hangs together; None if there is none. Raises StorageError."""
    path = output / NAME
    try:
        content = digests.read(path, _MAX_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}", why=str(error)) from error
    ledger, prev = Ledger(), ""
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry, named = _parse(line)
        except ValueError as error:
            ledger.problems.append(f"line {number}: {error}")
        else:
            ledger.entries.append(entry)
            if not digests.same(named, prev):
                ledger.problems.append(f"line {number} does not follow the line before it: edited, removed or moved")
        prev = hashlib.sha256(line).hexdigest()
        ledger.heads.append(prev)
    if rest:
        ledger.problems.append(f"line {len(lines) + 1} is not finished: the process that wrote it died")
    return ledger


def _append(file: FileIO, entry: Entry) -> str:
    content = file.read() or b""
    end = content.rfind(b"\n") + 1
    lines = content[:end].splitlines()
    known = {entry_id for line in lines if (entry_id := _attestation(line))}
    prev = hashlib.sha256(lines[-1]).hexdigest() if lines else ""
    if entry.attestation in known:
        return prev
    line = digests.canonical({**vars(entry), "prev": prev})
    try:
        os.ftruncate(file.fileno(), end)
        file.seek(end)
        _write_all(file, line + b"\n")
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), end)
        raise
    return hashlib.sha256(line).hexdigest()


def _write_all(file: FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) or 0 :]


def _attestation(line: bytes) -> str:
    try:
        return _parse(line)[0].attestation
    except ValueError:
        return ""


def _parse(line: bytes) -> tuple[Entry, str]:
    """The entry of a line, and the digest of the line before it. Raises ValueError."""
    try:
        found = digests.parse_json(line)
    except RecursionError:
        found = None
    if not isinstance(found, dict) or found.keys() != _FIELDS or not all(isinstance(v, str) for v in found.values()):
        raise ValueError("not an entry")
    prev = found.pop("prev")
    return Entry(**found), prev
