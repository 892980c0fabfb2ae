"""The door to MLflow, with `writer.py`: naming its limits, opening its store, finding runs again.

Nothing here keeps MLflow's global state (no `set_tracking_uri`, no active run): every call goes through one
`MlflowClient`. Limits and behaviour are those of MLflow 3.17.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness.errors import SpecError, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS_PER_BATCH, PARAMS_PER_BATCH, TAG_LENGTH = 1000, 100, 8000
_REGISTERED = re.compile(r"models:/(?P<name>[^/:@]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")
_PARAM_LENGTH, _NAME_LENGTH, _DIGEST_LENGTH = 6000, 250, 32
_LOCK_SECONDS = 60.0
_PROBE_SECONDS = 2.0
ENVIRONMENT = {  # a dead server costs 245 s a call with its own defaults
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
"""Variables that MLflow reads when it is imported."""


def tracking_uri(uri: str | None, folder: Path) -> str:
    """The store to use: `uri`, else `$MLFLOW_TRACKING_URI`, else SQLite in `folder`; SQLite paths made absolute.

    Raises:
        UserError: a folder of files, which MLflow no longer writes.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    if urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks"):
        raise UserError(
            f"runs cannot be tracked in the plain folder {uri!r}",
            why="MLflow only reads its old file store",
            fix="use 'sqlite:////absolute/path/mlflow.db' or the URL of a server",
        )
    database = sqlite_path(uri)
    return f"sqlite:///{database.absolute()}" if database else uri


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite URI, otherwise None."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    """True for a tracking server, which then decides where artifacts lie."""
    return urlsplit(uri).scheme in ("http", "https")


def without_password(uri: str) -> str:
    """The URI as it may be shown and kept; up to the last `@`, for those who did not encode the others."""
    return re.sub(r"(?<=[?&]password=)[^&]+", "***", re.sub(r"(://[^:/@]*):[^?]*@", r"\1:***@", uri))


def safe_part(name: str) -> str:
    """A name as one part of a path: letters, digits, `_`, `.` and `-`; never hidden, never a parent."""
    return re.sub(r"^\.+|[^A-Za-z0-9_.-]", "_", name)


def probe(uri: str) -> None:
    """Connect to a server's port and hang up. Raises ConnectionError within two seconds if nobody listens."""
    parts = urlsplit(uri)
    host = parts.hostname or ""
    behind_proxy = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    if is_server(uri) and not behind_proxy:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"nothing answers at {host}:{port}: {error}") from error


def allowed_name(name: str) -> str:
    """A metric, param or tag name as MLflow takes it: other characters become `_`, at most 250 of them."""
    parts = re.sub(r"[^/\w\-. :]", "_", re.sub(r"^\.\.", "__", name)).split("/")
    allowed = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    return allowed if len(allowed) <= _NAME_LENGTH else allowed[:_NAME_LENGTH].rstrip("/.")


def param_value(value: object) -> str:
    """A param as text. MLflow cuts at 6000 characters without a word: longer ones are logged as their digest."""
    text = str(value)
    if len(text) <= _PARAM_LENGTH:
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()} (see the resolved spec)"


def short_digest(digest: str) -> str:
    """The first 32 hex digits; MLflow refuses more than 36 characters."""
    return digest.removeprefix("sha256:")[:_DIGEST_LENGTH]


def refuse_deleted(uri: str, experiment: str) -> None:
    """Raise UserError if a local database holds this experiment as deleted; costs a millisecond, imports nothing."""
    database = sqlite_path(uri)
    if database is None or not database.is_file():
        return
    query = "SELECT 1 FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'"
    try:
        with closing(sqlite3.connect(database, timeout=1)) as connection:
            found = connection.execute(query, (experiment,)).fetchone()
    except sqlite3.Error:  # the tables are MLflow's own: if they change, `open_experiment` still finds out
        return
    if found:
        raise _deleted(experiment)


def connect(uri: str, folder: Path) -> MlflowClient:
    """A client whose store exists and is up to date; `folder` holds the lock for stores without a file.

    Two processes that create one database at the same time break it for good, hence the lock. Raises
    ConnectionError for a server that does not answer, and whatever MLflow raises.
    """
    probe(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from filelock import FileLock
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # it prints the traceback of what it raises as well
    if is_server(uri):
        return MlflowClient(tracking_uri=uri)
    database = sqlite_path(uri)
    lock = database.with_name(f"{database.name}.lock") if database else folder / "tracking.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=_LOCK_SECONDS):
        if database and not database.exists():
            _create(database)
        return MlflowClient(tracking_uri=uri)  # this runs the migrations of a database that an older MLflow made


def _create(database: Path) -> None:
    """Create a database beside its place, and rename it: a process killed in the middle of it leaves nothing behind.

    MLflow makes its tables in dozens of steps, and what was begun and not ended cannot be opened ever again. The lock
    is ours, so what lies beside the place belongs to a process that is dead.
    """
    from mlflow import MlflowClient
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for old in database.parent.glob(f".{database.name}.new*"):
        old.unlink()
    unfinished = database.with_name(f".{database.name}.new")
    uri = f"sqlite:///{unfinished}"
    MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    with suppress(AttributeError, KeyError):  # MLflow keeps connections by URI; this one is of no more use
        SqlAlchemyStore._engine_map.pop(uri).dispose()
    with closing(sqlite3.connect(unfinished)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    unfinished.rename(database)


def open_experiment(client: MlflowClient, uri: str, folder: Path, name: str) -> str:
    """The id of an experiment, created if need be. Raises UserError if it was deleted."""
    from mlflow.exceptions import MlflowException

    location = None if is_server(uri) else str(folder / "artifacts" / safe_part(name))
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise _deleted(name)
    return str(found.experiment_id)


def _deleted(experiment: str) -> UserError:
    return UserError(
        f"the experiment '{experiment}' was deleted in MLflow",
        why="MLflow keeps the name of a deleted experiment",
        fix="restore it with 'mlflow experiments restore', remove it for good with 'mlflow gc', "
        "or choose another name: tracking.experiment=<name>",
    )


@dataclass(frozen=True)
class FoundRun:
    """A run as the store knows it; `metrics` holds the latest value of each."""

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    time: int = 0
    """When it began, in milliseconds since 1970."""


def search(uri: str, folder: Path, run: str) -> list[FoundRun]:
    """The run with this id or of this registered model, else those of this name, newest first.

    Raises what `connect` raises.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri, folder)
    runs: list[Run] = []
    model = _REGISTERED.fullmatch(run)
    if model or re.fullmatch(r"[0-9a-f]{32}", run):
        try:
            runs = [client.get_run(_run_of(client, **model.groupdict()) if model else run)]
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    else:
        runs = runs_named(client, [experiment.experiment_id for experiment in client.search_experiments()], run)
    return [_found(run) for run in runs]


def _run_of(client: MlflowClient, name: str, alias: str | None, version: str | None) -> str:
    """The id of the run whose weights a version of a registered model is."""
    found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, str(version))
    return str(found.run_id)


def num_experiments(uri: str, folder: Path) -> int:
    """How many experiments the store has. Raises what `connect` raises."""
    return len(connect(uri, folder).search_experiments())


def runs_named(client: MlflowClient, experiments: list[str], name: str) -> list[Run]:
    """At most ten runs with this name, newest first."""
    if re.search(r"[\"'`\\]", name):  # quotes would end the filter's text
        return []
    return list(client.search_runs(experiments, f"attributes.run_name = '{name}'", max_results=10))


def search_filter(uri: str, folder: Path, filter_string: str) -> list[FoundRun]:
    """All runs that a filter selects. Raises SpecError, and what `connect` raises."""
    from mlflow.exceptions import MlflowException

    try:
        return list(every_run(connect(uri, folder), filter_string))
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise SpecError("MLflow cannot read the filter", where=filter_string, why=str(error).splitlines()[0]) from error


def every_run(client: MlflowClient, filter_string: str = "") -> Iterator[FoundRun]:
    """All runs of a store that were not deleted, or those a filter selects, newest first in a page of a thousand."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token: str | None = None
    while experiments:
        page = client.search_runs(experiments, filter_string, max_results=1000, page_token=token)
        yield from map(_found, page)
        token = page.token
        if not token:
            return


def _found(run: Run) -> FoundRun:
    info, data = run.info, run.data
    return FoundRun(info.run_id, info.run_name, info.status, data.tags, data.params, data.metrics, info.start_time)
