"""Where a study is kept, a journal file or PostgreSQL, and who may do what with it: one takes a trial, one leads.

Locks on one machine are the system's, which frees them when their process dies; among machines they are PostgreSQL's
advisory locks, which end with their connection, and heartbeats.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend

from harness.errors import RunInUse, StorageError, UserError
from harness.storage import RunLock
from harness.sweeps.space import SearchSpace

_MISSED_BEATS = 3
"""A trial whose process was not seen for so long is taken up by another one."""
_ALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""Seconds, seconds, times: so soon PostgreSQL notices that a machine with a lock is gone."""
_PATIENCE = (1, 2, 4, 8, 15, 30)
"""Seconds between attempts to reach a storage that does not answer."""
_Method = TypeVar("_Method", bound=Callable[..., Any])


class Lease:
    """Shows that this process works on a trial, until it is released or the process dies."""

    def __init__(self, lock: RunLock, beat: Callable[[], None] | None, seconds: int) -> None:
        """`beat` shows it to other machines."""
        self._lock, self._released = lock, threading.Event()
        if beat:
            threading.Thread(target=self._beat, args=(beat, seconds), name="heartbeat", daemon=True).start()

    def _beat(self, beat: Callable[[], None], seconds: int) -> None:
        while not self._released.wait(seconds):
            with suppress(Exception):  # the database may be away for a while
                beat()

    def release(self) -> None:
        """Give it back; may be repeated."""
        self._released.set()
        self._lock.release()


def patient(method: _Method) -> _Method:
    """A storage that does not answer is asked again, for a minute."""

    @functools.wraps(method)
    def asking(*args: Any, **kwargs: Any) -> Any:
        for pause in _PATIENCE:
            with suppress(StorageError):
                return method(*args, **kwargs)
            time.sleep(pause)
        return method(*args, **kwargs)

    return cast(_Method, asking)


class Store:
    """Optuna's storage of one study, and the locks around it."""

    def __init__(self, space: SearchSpace, study: str, folder: Path) -> None:
        """Nothing is opened yet.

        Args:
            space: says which storage.
            study: its name; that of the locks.
            folder: of the study; the journal and the locks of this machine lie there.

        Raises:
            UserError: no such kind of storage, SQLite for several workers, an @ in the password.
        """
        self.url, self.folder, self._study = space.storage, folder, study
        check(space)
        self.has_machines = (self.url or "").startswith("postgresql")
        """Whether processes of other machines may work on the study."""
        self._seconds = space.heartbeat_seconds
        self.backend: Any = None
        """Optuna's, once it is open."""

    @property
    def shown(self) -> str:
        """Where it is, as `optuna-dashboard` is told; without a password."""
        if self.url is None:
            return str(self.folder / "journal.log")
        return re.sub(r"(?<=[?&])password=[^&]*&?", "", re.sub(r"(://[^:/@]*):.*@", r"\1@", self.url))

    def open(self) -> None:
        """Open it, or make it. Raises what `reaching` explains."""
        if self.url is None:
            self.backend = optuna.storages.JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))
            return
        seconds = self._seconds if self.has_machines else None
        found = optuna.storages.RDBStorage(
            self.url,
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=seconds,
            grace_period=seconds and _MISSED_BEATS * seconds,
        )
        self.backend = optuna.storages.get_storage(found)  # once: it remembers finished trials

    def close(self) -> None:
        """Hang up."""
        if self.url is not None:
            self.backend._backend.engine.dispose()

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Around what needs the storage. Raises StorageError if it cannot be reached."""
        what = "the study's storage cannot be reached"
        try:
            yield
        except ModuleNotFoundError as error:
            fix = "pip install -e '.[cluster]'"
            raise UserError(
                f"the driver of the storage is not installed: {error.name}", where="storage", fix=fix
            ) from None
        except optuna.exceptions.StorageInternalError as error:
            raise StorageError(what, where=self.shown, why=_first_line(error)) from error
        except Exception as error:
            if isinstance(error, OSError) or type(error).__module__.startswith(("sqlalchemy", "psycopg")):
                raise StorageError(what, where=self.shown, why=_first_line(error)) from error
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process takes a trial of this study."""
        with ExitStack() as stack:
            stack.enter_context(FileLock(self.folder / "claim.lock"))
            if self.has_machines:
                stack.enter_context(self._advisory_lock("claim", waits=True))
            yield

    @contextmanager
    def leading(self, output: Path) -> Iterator[bool]:
        """Whether this process leads, as one of all may; its death, however it comes, makes room.

        `output`: the runs folder; the lock of the study's own run lies there.
        """
        lock = RunLock(output, self._study)
        with ExitStack() as stack:
            try:
                lock.acquire(is_gone=self.has_machines)
            except RunInUse:
                yield False
                return
            stack.callback(lock.release)
            with self.reaching():
                leads = not self.has_machines or stack.enter_context(self._advisory_lock("lead", waits=False))
            yield leads

    @contextmanager
    def _advisory_lock(self, of: str, *, waits: bool) -> Iterator[bool]:
        """Whether this process has one of PostgreSQL's locks; its connection's end, however it comes, frees it."""
        import sqlalchemy

        how = "pg_advisory_lock" if waits else "pg_try_advisory_lock"
        key = int.from_bytes(hashlib.sha256(f"harness {self._study} {of}".encode()).digest()[:8], "big", signed=True)
        engine = sqlalchemy.create_engine(str(self.url), poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name, value in _ALIVE.items():
                connection.execute(sqlalchemy.text(f"SET {name} = {value}"))
            got = connection.execute(sqlalchemy.text(f"SELECT {how}(:key)"), {"key": key}).scalar()
            yield waits or bool(got)

    def lock(self, trial: str) -> RunLock | None:
        """That of a trial on this machine; None: another process has it."""
        lock = RunLock(self.folder, trial)
        try:
            lock.acquire(attempts=1, is_gone=self.has_machines)
        except RunInUse:
            return None
        return lock

    def silent(self, study: str) -> set[int]:
        """Optuna's ids of the trials of one of its studies whose heartbeats stopped."""
        return set(self.backend._get_stale_trial_ids(self.backend.get_study_id_from_name(study)))

    def heartbeat(self, trial_id: int) -> Callable[[], None] | None:
        """What shows other machines that a trial is worked on; None: there are none."""
        return functools.partial(self.backend.record_heartbeat, trial_id) if self.has_machines else None


def check(space: SearchSpace) -> None:
    """Raise UserError for a storage that does not suit; nothing is opened."""
    url = space.storage
    if url is None:
        return
    if url.startswith("sqlite:"):
        if space.workers > 1 or space.executor != "local":
            why = "of several workers that begin on SQLite at once some crash"
            raise UserError(
                "SQLite is for one worker", where="storage", why=why, fix="leave storage out, or name PostgreSQL"
            )
    elif not url.startswith("postgresql"):
        raise UserError(
            f"'{url.partition(':')[0]}' is no storage for studies", where="storage",
            fix="leave it out (a journal file), or postgresql+psycopg://user@host/database",
        )  # fmt: skip
    elif url.partition("?")[0].count("@") > 1:
        why = "the driver would take the rest of the password for the host, and name it"
        raise UserError("the password holds an @", where="storage", why=why, fix="write it as %40")


def _first_line(error: BaseException) -> str:
    told = error.__cause__ or error
    return (str(told).splitlines() or [type(told).__name__])[0]
