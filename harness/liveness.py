"""Which runs of the store still live, and ending those that were killed: MLflow alone shows them as RUNNING for ever.

A living run holds an exclusive `flock` on `<output>/locks/<name>.lock`, which says who holds it and is touched every
now and then. The kernel lets go of it whatever kills the process.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.errors import StorageError
from harness.storage import safe_name
from harness.tracking.mlflow_store import (
    FoundRun,
    connect,
    every_run,
    safe_part,
    sqlite_path,
    tracking_uri,
    without_password,
)
from harness.tracking.tracker import first_line, now

_STALE_SECONDS = 600.0
"""How long the lock of a run on another host must not have been touched."""


@dataclass(frozen=True)
class Life:
    """What a run's lock tells."""

    is_alive: bool | None
    """None: there is no lock, nothing can be told."""
    why: str
    last_seen: int | None = None
    """When the lock was touched last, in milliseconds since 1970."""


def look(folder: Path, name: str) -> Life:
    """Does the run of this name in a runs folder live? Raises OSError if its lock cannot be read."""
    try:
        path = folder / "locks" / f"{safe_name(name)}.lock"
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (StorageError, FileNotFoundError):
        return Life(None, "no lock file")
    try:
        owner, touched = _owner(descriptor), os.fstat(descriptor).st_mtime
        pid, host = owner.get("pid", "?"), owner.get("host", "?")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Life(True, f"process {pid} on {host} lives")
        except OSError:  # a file system without locks: only the time of the file can tell
            host = "an unknown host"
        if host != socket.gethostname() and time.time() - touched < _STALE_SECONDS:
            return Life(True, f"process {pid} on {host} was there less than ten minutes ago")
        return Life(False, f"process {pid} on {host} is gone", int(touched * 1000))
    finally:
        os.close(descriptor)


def list_runs(folder: Path, uri: str | None = None) -> Iterator[tuple[FoundRun, bool]]:
    """Every run of the store, with whether its folder exists.

    Raises:
        StorageError: the store cannot be read.
    """
    store = _store(folder, uri)
    if store is None:
        return
    try:
        for run in every_run(connect(store, folder)):
            yield run, Path(run.tags.get("folder") or folder / "runs" / safe_part(run.name)).is_dir()
    except Exception as error:
        raise StorageError(f"cannot read {without_password(store)}", why=first_line(error)) from error


@dataclass(frozen=True)
class Training:
    """A training or a study as the store knows it; `depth`: below how many others it stands."""

    run: FoundRun
    has_folder: bool
    depth: int
    parent: str | None
    """The name of the one right above it."""

    @property
    def metric(self) -> str:
        """The score that selects its checkpoints."""
        return self.run.params.get("early_stopping.metric", "")

    @property
    def score(self) -> str:
        """Name and value of it; empty where the run has none yet."""
        best, spread = self._best(""), self._best("_sd")
        told = "" if best is None else f"{self.metric} {best:.4f}"
        return told if spread is None else f"{told} ± {spread:.4f}"

    def values(self) -> dict[str, object]:
        """For programs."""
        began = datetime.fromtimestamp(self.run.time / 1000, UTC).isoformat(timespec="seconds")
        return {
            "name": self.run.name, "id": self.run.run_id, "parent": self.parent, "status": self.run.status,
            "began": began, "metric": self.metric or None, "score": self._best(""), "score_sd": self._best("_sd"),
            "folder": self.run.tags.get("folder"), "has_folder": self.has_folder,
        }  # fmt: skip

    def _best(self, suffix: str) -> float | None:
        value = self.run.metrics.get(f"best/{self.metric.replace('/', '_')}{suffix}")
        return value if value is not None and math.isfinite(value) else None


def trainings(found: list[tuple[FoundRun, bool]]) -> list[Training]:
    """The trainings and studies of `list_runs`: newest first, each before its replicates or trials, oldest first."""
    chosen = [one for one in found if "spec" in one[0].tags or one[0].tags.get("kind") == "study"]
    known = {run.run_id for run, _ in chosen}
    below: dict[str, list[tuple[FoundRun, bool]]] = {}
    for one in sorted(chosen, key=lambda one: one[0].time):
        parent = one[0].tags.get("mlflow.parentRunId", "")
        below.setdefault(parent if parent in known else "", []).append(one)

    def walk(ones: list[tuple[FoundRun, bool]], depth: int, parent: str | None) -> Iterator[Training]:
        for run, is_there in ones:
            yield Training(run, is_there, depth, parent)
            yield from walk(below.get(run.run_id, []), depth + 1, run.name)

    return list(walk(below.get("", [])[::-1], 0, None))


def reap(
    folder: Path, uri: str | None = None, *, force: bool = False, only: set[str] | None = None
) -> Iterator[tuple[str, str]]:
    """End every RUNNING run whose process is gone as KILLED; yields each run's name and what was done.

    Args:
        folder: the runs folder, where the locks are.
        uri: the store; None: `$MLFLOW_TRACKING_URI`, else SQLite in the folder.
        force: end runs without a lock file, too.
        only: the runs of these names, not every one.

    Raises:
        StorageError: the store cannot be read or written.
    """
    for run in _running(folder, uri):
        if only is None or run.name in only:
            life = look(folder, run.name)
            reason = _left_alone(folder, uri, run, life, force=force)
            told = reason or f"{_end(folder, uri, run, life.last_seen)}: {life.why}"
            yield run.name, told


def stale(folder: Path, uri: str | None = None) -> list[str]:
    """Names of the runs that `reap` would end. Raises StorageError as it does."""
    running = _running(folder, uri)
    return [run.name for run in running if not _left_alone(folder, uri, run, look(folder, run.name), force=False)]


def _running(folder: Path, uri: str | None) -> list[FoundRun]:
    return [run for run, _ in list_runs(folder, uri) if run.status == "RUNNING"]


def _left_alone(folder: Path, uri: str | None, run: FoundRun, life: Life, *, force: bool) -> str:
    """Why a run must not be ended; "": it may."""
    if (folder / "spool" / f"{safe_part(run.name)}.jsonl").exists():
        return "left alone: records of it wait for `harness sync`"
    if not _is_from(folder, run, _store(folder, uri) or ""):
        return f"left alone: it belongs to {run.tags['folder']}"
    if life.is_alive or (life.is_alive is None and not force):
        return f"left alone: {life.why}" + (" (--force ends it)" if life.is_alive is None else "")
    return ""


def _is_from(folder: Path, run: FoundRun, store: str) -> bool:
    """False for a run on a shared server that says it lies in another runs folder, whatever is called the same here."""
    place = run.tags.get("folder")
    return sqlite_path(store) is not None or not place or Path(place).resolve().is_relative_to(folder.resolve())


def _end(folder: Path, uri: str | None, run: FoundRun, last_seen: int | None) -> str:
    """KILLED, or how the run ended by itself since it was listed."""
    store = _store(folder, uri) or ""
    try:
        client = connect(store, folder)
        status = str(client.get_run(run.run_id).info.status)
        if status != "RUNNING":
            return status
        client.set_terminated(run.run_id, "KILLED", end_time=last_seen or now())
    except Exception as error:
        raise StorageError(f"cannot write {without_password(store)}", why=first_line(error)) from error
    return "KILLED"


def _store(folder: Path, uri: str | None) -> str | None:
    """The store's URI; None if it is a database that nobody has made."""
    store = tracking_uri(uri, folder)
    database = sqlite_path(store)
    return None if database and not database.is_file() else store


def _owner(descriptor: int) -> dict[str, object]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
