"""Files that keep what a store did not take: JSON lines below a line that describes the run, one writer at a time.

A spool is locked (`flock`) while its run lives and while it is being sent, so that nobody sends what is still written.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from harness.notes import note
from harness.tracking.tracker import Message

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What `flock` says on a file system without locks, as some clusters have."""


class Spool:
    """The spool of one run: `<stem>.jsonl` in a folder, or `<stem>~2.jsonl` if another process holds that one.

    Nothing is created before `write`. Threads may write at the same time. Methods raise OSError.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.path = folder / f"{stem}.jsonl"
        self.kinds: set[str] = set()
        """The kinds of messages in it; empty: nothing is to be sent."""
        self._stem, self._lock = stem, Lock()
        self._descriptor: int | None = None
        self._described: Message | None = None

    def claim(self) -> None:
        """Hold the file that an earlier attempt at the run left, if there is one."""
        with self._lock:
            if self._descriptor is None and self.path.is_file():
                self._hold()
                self.kinds = {message["kind"] for message in read(self.path)} - {"run"}

    def is_held_elsewhere(self) -> bool:
        """Whether somebody else writes or sends the file that an earlier attempt left."""
        with self._lock:
            if self._descriptor is not None or not self.path.is_file():
                return False
            with holding(self.path) as is_held:
                return not is_held and self.path.is_file()

    def write(self, head: Message, message: Message) -> None:
        """Append a message, whole or not at all, below the line that describes the run as it is known now."""
        lines = [message] if head == self._described else [head, message]
        content = b"".join(json.dumps(line, default=str).encode() + b"\n" for line in lines)
        with self._lock:
            _append(self._descriptor if self._descriptor is not None else self._hold(), content)
            self._described = head
            self.kinds.add(message["kind"])

    def retire(self) -> None:
        """Put the file away: everything that can be read was sent."""
        retire(self.path)
        self.kinds.clear()

    def remove(self) -> None:
        """Delete the file, which says nothing, if there is one."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; others may send it."""
        with self._lock:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also for forked children that hold the descriptor
                os.close(self._descriptor)
            self._descriptor = self._described = None

    def _hold(self) -> int:
        folder, number = self.path.parent, 1
        folder.mkdir(parents=True, exist_ok=True)
        while (descriptor := _locked(self.path, os.O_CREAT)) is None:
            number += 1
            self.path = folder / f"{self._stem}~{number}.jsonl"
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # the last writer was killed within a line
            _append(descriptor, b"\n")
        self._descriptor = descriptor
        return descriptor


@contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Hold a spool while sending it; False if another process writes or sends it, or if it is gone."""
    try:
        descriptor = _locked(path)
    except FileNotFoundError:
        descriptor = None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def read(path: Path) -> Iterator[Message]:
    """The messages of a spool.

    A line that is no message becomes `{"kind": "damaged"}`, a last one without its end `{"kind": "cut"}`.
    """
    with path.open("rb") as file:
        for line in file:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if not line.endswith(b"\n"):
                yield {"kind": "cut"}
            elif isinstance(message, dict) and isinstance(message.get("kind"), str):
                yield message
            else:
                yield {"kind": "damaged"}


def retire(path: Path) -> Path | None:
    """Delete a spool, or if lines of it are damaged move it to the path returned."""
    if not any(message["kind"] == "damaged" for message in read(path)):
        path.unlink()
        return None
    return path.rename(path.with_name(f"{path.name}.damaged"))


def first_head(path: Path) -> Message:
    """The description of the run that a spool begins with; empty if there is none or it cannot be read."""
    try:
        message = next(read(path), {"kind": ""})
    except OSError:
        return {}
    return message if message["kind"] == "run" else {}


def _locked(path: Path, more: int = 0) -> int | None:
    """An open, locked descriptor of the file that is at this path now; None if somebody else holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | more, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            note(f"no file locks in {path.parent} ({error.strerror}): run `harness sync` while no run lives")
            return descriptor  # better unlocked than lost
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # removed between the two calls


def _append(descriptor: int, content: bytes) -> None:
    size, rest = os.fstat(descriptor).st_size, memoryview(content)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        os.ftruncate(descriptor, size)  # half a line would spoil the next one
        raise
