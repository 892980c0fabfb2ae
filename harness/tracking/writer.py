"""Writing one MLflow run so that the same thing may be sent twice: what the run has already is not added again.

A request that failed may have been applied, and a resumed run records again what it did before it was killed. MLflow
itself keeps a step that is logged a second time as a second point.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from harness.tracking.mlflow_store import (
    PARAMS_PER_BATCH,
    TAG_LENGTH,
    allowed_name,
    connect,
    is_server,
    open_experiment,
    param_value,
    runs_named,
    short_digest,
)
from harness.tracking.tracker import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Param, Run, RunTag

    Item = TypeVar("Item", Param, RunTag)

Point = tuple[str, float, int, int]
"""A metric: name, value, milliseconds since 1970, step."""

_BATCH_CHARACTERS = 400_000
"""MLflow's server refuses bodies over 1e6 bytes."""
_NONFINITE = "nonfinite_metrics"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ALREADY_THERE = ("UNIQUE constraint", "duplicate key", "Duplicate entry", "IntegrityError")


@dataclass(frozen=True)
class Target:
    """Where a run is written, and what it is called."""

    uri: str
    folder: Path
    experiment: str
    name: str
    tags: dict[str, str]
    time: int
    """When the run began, in milliseconds since 1970."""
    resume: bool = False
    """Go on with the run of this name, if the experiment has one."""
    run_id: str | None = None
    """The run to write to, if it is known."""


def open_run(target: Target, again: bool = False) -> RunWriter:
    """The run of a target, created if need be.

    Args:
        target: with an id, that run; with `resume`, the run of its name, whenever that began.
        again: an earlier attempt may have created the run: look for one that began at the same millisecond.

    Raises:
        UserError: the experiment was deleted.
        Exception: what `connect` and MLflow raise.
    """
    client = connect(target.uri, target.folder)
    if target.run_id:
        return RunWriter(client, client.get_run(target.run_id), is_new=False)
    experiment = open_experiment(client, target.uri, target.folder, target.experiment)
    found = _existing(client, experiment, target) if again or target.resume else None
    if found:
        return RunWriter(client, found, is_new=False)
    tags = {allowed_name(key): value[:TAG_LENGTH] for key, value in target.tags.items()}
    run = client.create_run(experiment, start_time=target.time, tags=tags, run_name=target.name)
    if is_server(target.uri):  # the HTTP client repeats a request whose answer was lost: there may be a twin
        run = _existing(client, experiment, target) or run
    return RunWriter(client, run, is_new=True)


def _existing(client: MlflowClient, experiment: str, target: Target) -> Run | None:
    """The target's run; empty twins that began at the same millisecond are deleted."""
    named = runs_named(client, [experiment], target.name)
    found = [run for run in named if run.info.start_time == target.time or (target.resume and _is_ours(run, target))]
    found.sort(key=lambda run: (_has_same(run, target, "folder"), _size(run)), reverse=True)
    for twin in found[1:]:
        if twin.info.start_time == found[0].info.start_time and not _size(twin):
            client.delete_run(twin.info.run_id)
    return client.get_run(found[0].info.run_id) if found else None


def _is_ours(run: Run, target: Target) -> bool:
    """False for a run of the same name that another person made in another folder: servers are shared."""
    return _has_same(run, target, "folder") or _has_same(run, target, "mlflow.user")


def _has_same(run: Run, target: Target, tag: str) -> bool:
    return tag not in target.tags or run.data.tags.get(tag, target.tags[tag]) == target.tags[tag]


def _size(run: Run) -> int:
    return len(run.data.metrics) + len(run.data.params)


class RunWriter:
    """One open MLflow run. Methods raise what MLflow raises; their arguments are plain values that JSON can hold.

    A param keeps its first value, a metric the first value of a step, a data set is an input once, files are replaced.
    """

    def __init__(self, client: MlflowClient, run: Run, is_new: bool) -> None:
        self._client, self._run = client, run
        self.run_id, self.experiment_id = str(run.info.run_id), str(run.info.experiment_id)
        self._params: dict[str, str] = {}
        self._inputs: set[tuple[str, str]] = set()
        self._nonfinite: set[str] = set()
        self._seen: dict[str, set[int]] | None = None
        """The steps that the store has of each metric; None: everything sent is new."""
        if not is_new:
            self._look(run)

    def compare(self) -> None:
        """Read what the run has by now, because a request may have been applied although it failed."""
        self._look(self._client.get_run(self.run_id))

    def _look(self, run: Run) -> None:
        self._params = dict(run.data.params)
        used = run.inputs.dataset_inputs if run.inputs else []
        self._inputs = {(given.dataset.name, given.dataset.digest) for given in used}
        self._nonfinite |= set(filter(None, run.data.tags.get(_NONFINITE, "").split(", ")))
        histories = ((key, self._client.get_metric_history(self.run_id, key)) for key in run.data.metrics)
        self._seen = {key: {metric.step for metric in history} for key, history in histories}

    def reopen(self, tags: dict[str, str]) -> None:
        """Say that the run goes on, and add the tags it does not have yet."""
        self._client.update_run(self.run_id, status="RUNNING")
        self.tags({key: value for key, value in tags.items() if allowed_name(key) not in self._run.data.tags})

    def params(self, values: dict[str, object]) -> None:
        """Log settings. MLflow never changes a param: another value is told, and left out."""
        from mlflow.entities import Param

        new: dict[str, str] = {}
        for key, value in ((allowed_name(key), param_value(value)) for key, value in values.items()):
            known = self._params.get(key, new.get(key, value))
            if known != value:
                warn(f"the run's {key} stays {_short(known)} in MLflow; now it is {_short(value)}")
            elif key not in self._params:
                new[key] = value
        for chunk in _chunks(Param(key, value) for key, value in new.items()):
            self._client.log_batch(self.run_id, params=chunk)
            self._params |= {param.key: param.value for param in chunk}

    def metrics(self, points: Iterable[Point]) -> None:
        """Log at most 1000 metrics in one request, each step of each once.

        MLflow alters infinity and cannot show NaN: what has such values is named in a tag instead.
        """
        from mlflow.entities import Metric, RunTag

        batch, told = [], set(self._nonfinite)
        fresh: set[tuple[str, int]] = set()
        for name, value, time, step in points:
            key = allowed_name(name)
            if not math.isfinite(value):
                told.add(key)
            elif self._seen is None or not (step in self._seen.get(key, ()) or (key, step) in fresh):
                batch.append(Metric(key, value, time, step))
                fresh.add((key, step))
        tags = [RunTag(_NONFINITE, ", ".join(sorted(told))[:TAG_LENGTH])] if told != self._nonfinite else []
        if batch or tags:
            self._client.log_batch(self.run_id, metrics=batch, tags=tags)
        self._nonfinite = told
        if self._seen is not None:
            for key, step in fresh:
                self._seen.setdefault(key, set()).add(step)

    def tags(self, values: dict[str, str]) -> None:
        """Set tags, over earlier values."""
        from mlflow.entities import RunTag

        for chunk in _chunks(RunTag(allowed_name(key), str(value)[:TAG_LENGTH]) for key, value in values.items()):
            self._client.log_batch(self.run_id, tags=chunk)

    def dataset(self, name: str, source: str, digest: str, rows: int, context: str) -> None:
        """Name one split the run used; `context` is the split."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        key, profile = (name, short_digest(digest)), json.dumps({"num_rows": rows})
        if key in self._inputs:
            return
        dataset = Dataset(*key, "code", json.dumps({"source": source}), profile=profile)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        try:
            self._client.log_inputs(self.run_id, inputs)
        except Exception as error:  # another run added the same data set in the same moment: now it is found
            if not any(sign in str(error) for sign in _ALREADY_THERE):
                raise
            self._client.log_inputs(self.run_id, inputs)
        self._inputs.add(key)

    def artifacts(self, folder: str, within: str, ignore: list[str]) -> None:
        """Copy the files below `folder` to `within`, as many as can be; raises the first error of the others."""
        failure: OSError | None = None
        for name in files(Path(folder), ignore):
            target = Path(within) / Path(name).parent
            try:
                self._client.log_artifact(self.run_id, str(Path(folder) / name), str(target) if target.parts else None)
            except OSError as error:
                failure = failure or error
                if error.errno in _DISK_FULL:
                    self._remove_half(target / Path(name).name)
        if failure:
            raise failure

    def register(self, model: str, alias: str, within: str, about: str) -> None:
        """Make the files `within` the run a version of a registered model, once; an alias moves to it."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"run_id = '{self.run_id}'")
        found = next((one for one in versions if one.name == model), None)
        source = f"{self._run.info.artifact_uri.rstrip('/')}/{within}"
        found = found or self._client.create_model_version(
            model, source, self.run_id, description=about, await_creation_for=0
        )
        if alias:
            self._client.set_registered_model_alias(model, alias, str(found.version))

    def finish(self, status: str, time: int) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status, end_time=time)

    def _remove_half(self, name: Path) -> None:
        """Delete what a full disk left of a file that lies in a local folder."""
        root = urlsplit(self._run.info.artifact_uri)
        if root.scheme in ("", "file"):
            (Path(unquote(root.path)) / name).unlink(missing_ok=True)


def files(folder: Path, ignore: list[str]) -> Iterator[str]:
    """The names of the files below a folder that match no pattern. Raises NotADirectoryError."""
    if not folder.is_dir():
        raise NotADirectoryError(f"no folder {folder}")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return (name for name in names if not any(fnmatch(name, pattern) for pattern in ignore))


def points_of(message: dict[str, Any]) -> list[Point]:
    """The points of a recorded message; what is no number becomes NaN."""
    time, step = message["time"], int(message["step"])
    return [(key, _number(value), time, step) for key, value in message["values"].items()]


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """At most a hundred at a time, and not more text than a request may hold."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        length = len(json.dumps([item.key, item.value]))
        if chunk and (len(chunk) >= PARAMS_PER_BATCH or size + length > _BATCH_CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += length
    if chunk:
        yield chunk


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}..."
