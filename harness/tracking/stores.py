"""Where runs are recorded, MLflow and TensorBoard: start a tracker, find a run again, show them all.

With `worker.py` and `mlflow_store.py` the only door to mlflow and tensorboard.
"""

from __future__ import annotations

import getpass
import re
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import field_serializer, field_validator

from harness.errors import HarnessError, StorageError, UserError
from harness.settings import Settings
from harness.storage import PROJECT
from harness.tracking.mlflow_store import (
    FoundRun,
    is_server,
    num_experiments,
    refuse_deleted,
    safe_part,
    search,
    search_filter,
    sqlite_path,
    tracking_uri,
    without_password,
)
from harness.tracking.spool import first_head
from harness.tracking.tracker import Message, Tracker, Trackers, first_line, now, warn
from harness.tracking.worker import MLflowTracker
from harness.tracking.writer import Target

Answer = TypeVar("Answer")
REHEARSALS = "smoke"
"""MLflow's experiment of runs with --smoke: compared only where they are named."""
_MODEL = re.compile(r"[^/:@]+")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")


class Tracking(Settings):
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow's store: `sqlite:////path/x.db` or a server. None: `$MLFLOW_TRACKING_URI`, else SQLite in `mlruns/`."""
    experiment: str | None = None
    """MLflow's experiment. None: the name of the spec."""
    tensorboard: bool = False
    """Write TensorBoard event files as well."""
    register_as: str | None = None
    """Make the weights of every finished run a version of this model in MLflow's registry: `name` or `name@alias`."""

    @field_validator("register_as")
    @classmethod
    def _can_be_registered(cls, name: str | None) -> str | None:
        model, _, alias = (name or "").partition("@")
        if name is not None and not (_MODEL.fullmatch(model) and (alias or "@" not in name)):
            raise ValueError("a model's name, or name@alias; without '/', ':' and a second '@'")
        if alias and (not _ALIAS.fullmatch(alias) or alias == "latest" or re.fullmatch(r"[vV]\d+", alias)):
            raise ValueError("an alias has letters, digits, '_' and '-', and is neither 'latest' nor like 'v1'")
        return name

    @field_serializer("uri")
    def _hide_password(self, uri: str | None) -> str | None:
        return without_password(uri) if uri else uri


class TensorBoardTracker(Tracker):
    """Scalars, and the params as text, in TensorBoard's event files; the rest is not recorded.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("tensorboard is not installed", where="tracking.tensorboard", fix="pip install tensorboard")
        self._folder, self._problem = folder, ""
        self._writer: Any = None

    @property
    def problem(self) -> str:
        """Why the files are incomplete, if they are."""
        return self._problem

    def record(self, message: Message) -> None:
        """Write a message at once. A full disk, or whatever else fails, costs one warning, not the run."""
        try:
            self._write(message["kind"], message)
        except Exception as error:
            if not self._problem:
                self._problem = f"TensorBoard's files in {self._folder} are incomplete: {first_line(error)}"
                warn(self._problem)

    def _write(self, kind: str, message: Message) -> None:
        if kind == "metrics":
            for key, value in message["values"].items():
                self._open().add_scalar(key, value, message["step"], message["time"] / 1000)
        elif kind == "params":
            rows = "".join(f"| {key} | {value} |\n" for key, value in message["values"].items())
            self._open().add_text("params", f"| param | value |\n|---|---|\n{rows}", 0)
        elif kind == "flush" and self._writer:
            self._writer.flush()
        elif kind == "finish" and self._writer:
            self._writer.close()

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            make: Callable[[Path], Any] = SummaryWriter
            self._writer = make(self._folder)
        return self._writer


def start(
    settings: Tracking,
    folder: Path,
    experiment: str,
    name: str,
    *,
    parent: str | None = None,
    tags: dict[str, str] | None = None,
    note: str = "",
    resume: bool = False,
) -> Tracker:
    """A tracker for one run. Takes milliseconds: nothing is sent or imported before `open`.

    Args:
        settings: where to record.
        folder: the runs folder; database, artifacts, spool and event files lie there unless settings say otherwise.
        experiment: the name of the spec.
        name: the run's name for people.
        parent: run id of the run this one is a replicate or trial of.
        tags: facts to search by.
        note: what the run's page says about it.
        resume: go on with the run of this name, if there is one. What it has already may be recorded again: each
            param, data set and step of a metric arrives once.

    Raises:
        UserError: no such kind of store, a deleted experiment, tensorboard not installed.
    """
    folder, experiment = folder.absolute(), settings.experiment or experiment
    uri = tracking_uri(settings.uri, folder)
    refuse_deleted(uri, experiment)
    known = {"mlflow.note.content": note, "mlflow.parentRunId": parent, "mlflow.source.git.commit": _commit()}
    known |= {"mlflow.user": _user(), "mlflow.source.name": "launch.py", "mlflow.source.type": "LOCAL"}
    named = {key: value for key, value in known.items() if value} | (tags or {})
    began = first_head(folder / "spool" / f"{safe_part(name)}.jsonl").get("time") if resume else None
    mlflow = MLflowTracker(Target(uri, folder, experiment, name, named, began or now(), resume))
    return Trackers([mlflow, TensorBoardTracker(folder / "tensorboard" / name)]) if settings.tensorboard else mlflow


def ui_command(uri: str | None, folder: Path) -> str:
    """What a person pastes to see the runs: a command line, or a server's URL. Passwords are masked."""
    folder = folder.absolute()
    uri = without_password(tracking_uri(uri, folder))
    if is_server(uri):
        return uri
    words = ["mlflow", "ui", "--backend-store-uri", uri, "--default-artifact-root", str(folder / "artifacts")]
    return shlex.join([*words, "--host", "127.0.0.1", "--port", "5000"])


def shown_uri(uri: str | None, folder: Path) -> str:
    """The store in use, as it may be shown."""
    return without_password(tracking_uri(uri, folder.absolute()))


def count_experiments(uri: str | None, folder: Path) -> int | None:
    """How many experiments the store has; None: it is a database that nobody has made yet. Raises StorageError."""
    return _ask(num_experiments, uri, folder)


def find_run(uri: str | None, folder: Path, run: str) -> FoundRun | None:
    """The MLflow run with this id or name, or of this registered model (`models:/name@alias`, `…/1`); or None.

    Raises:
        UserError: several runs have this name.
        StorageError: the store cannot be read.
    """
    found = _ask(partial(search, run=run), uri, folder) or []
    if len(found) > 1:
        raise UserError(
            f"{len(found)} runs are called '{run}'", fix=f"name one by its id: {', '.join(r.run_id for r in found)}"
        )
    return found[0] if found else None


def find_runs(uri: str | None, folder: Path, filter_string: str) -> list[FoundRun]:
    """The MLflow runs of all experiments that a filter in its language selects, newest first.

    Raises:
        SpecError: the filter cannot be read.
        StorageError: the store cannot be read.
    """
    return _ask(partial(search_filter, filter_string=filter_string), uri, folder) or []


def _ask(ask: Callable[[str, Path], Answer], uri: str | None, folder: Path) -> Answer | None:
    """Ask a store that may be away; None: it is a database that nobody has made yet. Raises StorageError."""
    folder = folder.absolute()
    uri = tracking_uri(uri, folder)
    database = sqlite_path(uri)
    if database and not database.is_file():
        return None
    try:
        return ask(uri, folder)
    except HarnessError:
        raise
    except Exception as error:
        raise StorageError(f"cannot read {without_password(uri)}", why=first_line(error)) from error


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry in the password file
        return None
