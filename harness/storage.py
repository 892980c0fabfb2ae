"""Files: the cache outside the repository, atomic writing, locks, names that are safe in paths."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import notes
from harness.errors import RunInUse, StorageError, UserError

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def cache_folder() -> Path:
    """Where downloads are kept: `$HARNESS_CACHE`, else `$XDG_CACHE_HOME/harness`, else `~/.cache/harness`."""
    base = os.environ.get("HARNESS_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def safe_name(name: str) -> str:
    """The name itself, if it may stand in a path. Raises StorageError otherwise (allow-list, never a deny-list)."""
    if not _NAME.fullmatch(name):
        raise StorageError(f"{name!r} cannot be a file name", fix="use letters, digits, '.', '_' and '-', at most 64")
    return name


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all (temporary file, fsync, rename), mode per umask. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            apply_umask(Path(temporary))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        fix = "free some disk space, then resume the run" if error.errno == errno.ENOSPC else ""
        raise StorageError(f"cannot write {path}", why=str(error), fix=fix) from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text whole or not at all. Raises StorageError."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, NaN refused. Raises StorageError, and ValueError for NaN or infinity."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity: null in their place, lists in that of tuples."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all, mode per umask. Raises StorageError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(content, temporary, metadata={"format": "pt", **(metadata or {})})
        apply_umask(temporary)
        sync(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}", why=str(error), fix="free some disk space") from error


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk (fsync). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the files that a killed process was writing: they alone have hidden names."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def writable(folder: Path) -> Path:
    """The folder, made if need be. Raises StorageError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        fix = "name a folder of yours: output=<folder>"
        raise StorageError(f"cannot write into {folder}", where="output", why=str(error), fix=fix) from error
    return folder


def folder_of_runs(output: Path) -> Path:
    """Where the runs are that a command was asked about: in `mlruns`, there or not yet, or in a folder that is there.

    Raises:
        UserError: another folder was named, and it is not there.
    """
    place = PROJECT / output
    try:
        why = "" if place == PROJECT / "mlruns" or place.is_dir() else "there is no such folder"
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL character
        why = str(error)
    if why:
        where = str(place) if str(place).isprintable() else ascii(str(place))
        fix = "name the one the runs were written to: --output"
        raise UserError("no folder of runs", where=where, why=why, fix=fix)
    return place


def apply_umask(path: Path) -> None:
    """Give a file made by a library with mode 0600 the mode the umask asks for (safetensors/safetensors#782)."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


class RunLock:
    """Says that a living process works on a run: `<output>/locks/<run>.lock`, locked by flock, naming its owner.

    The system frees it when the process dies, however it dies. Where a network file system keeps flock to one machine,
    or has none, the file's age tells: a thread touches it every minute.
    """

    STALE_SECONDS = 600.0
    _BEAT_SECONDS = 60.0

    def __init__(self, output: Path, run: str) -> None:
        self.path = output / "locks" / f"{safe_name(run)}.lock"
        self._run = run
        self._descriptor: int | None = None
        self._released = threading.Event()

    def acquire(self, attempts: int = 5, *, is_gone: bool = False) -> None:
        """Take the lock.

        Args:
            attempts: somebody who only looks whether it is free has it for a moment; 1 where nobody does.
            is_gone: whoever calls knows that no process of another machine works on it: the file's age says nothing.

        Raises:
            RunInUse: another process has it; names that.
            StorageError: it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = self._open(attempts, is_gone)
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except OSError as error:
            raise StorageError(f"cannot lock {self._run}", where=str(self.path), why=str(error)) from error
        self._descriptor = descriptor
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def _beat(self) -> None:
        while not self._released.wait(self._BEAT_SECONDS):
            self.touch()

    def refuse_owned(self) -> None:
        """Raise RunInUse, as `acquire` does, if another process has the lock; takes nothing."""
        if self.path.exists():
            os.close(self._open())

    def _open(self, attempts: int = 5, is_gone: bool = False) -> int:
        """The lock's file, locked. Raises RunInUse, OSError."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                has_flock = self._flock(descriptor)
                if self.path.exists() and os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    if not (is_gone and has_flock):
                        self._refuse_living(here_too=not has_flock)
                    return descriptor
            except BlockingIOError:  # locked
                attempts -= 1
                if attempts == 0:
                    os.close(descriptor)
                    raise self._owned(self.owner()) from None
                time.sleep(0.05)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # released, and so removed, between our two calls

    def _flock(self, descriptor: int) -> bool:
        """Whether the lock was taken; False where the file system has no locks. Raises BlockingIOError, OSError."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            notes.note(f"no file locks in {self.path.parent}: a run that is started twice is told by its clock alone")
            return False
        return True

    def owner(self) -> dict[str, Any]:
        """What the lock's file says of who took it last."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def touch(self) -> None:
        """Show that the owner lives."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.utime(self._descriptor)

    def release(self) -> None:
        """Give the lock back; may be repeated."""
        self._released.set()
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _refuse_living(self, *, here_too: bool) -> None:
        """Raise RunInUse if the file names a process of another machine, or any, that touched it lately."""
        owner = self.owner()
        is_here = owner.get("host", socket.gethostname()) == socket.gethostname()
        age = time.time() - self.path.stat().st_mtime
        if owner and (here_too or not is_here) and owner.get("pid") != os.getpid() and age < self.STALE_SECONDS:
            raise self._owned(owner)

    def _owned(self, owner: dict[str, Any]) -> RunInUse:
        who = ", ".join(f"{key} {value}" for key, value in owner.items()) or "unknown"
        return RunInUse(f"another process works on {self._run}", why=who, fix="wait for it, or stop it first")
