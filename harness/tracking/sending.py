"""Sending spools: at the end of a run whose store works again, or later by `harness sync`. Everything arrives once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.storage import PROJECT
from harness.tracking import spool
from harness.tracking.mlflow_store import METRICS_PER_BATCH, probe, sqlite_path, tracking_uri, without_password
from harness.tracking.tracker import Message, first_line
from harness.tracking.writer import Point, RunWriter, Target, open_run, points_of


@dataclass(frozen=True)
class Told:
    """What became of one spool."""

    name: str
    is_sent: bool
    is_left_alone: bool
    what: str


def describe(target: Target, run_id: str | None) -> Message:
    """The line that a spool's messages stand below: what is needed to find or create the run later."""
    head: Message = {"kind": "run", "run_id": run_id, "experiment": target.experiment, "name": target.name}
    head |= {"uri": without_password(target.uri), "tags": target.tags, "time": target.time, "resume": target.resume}
    return head


def replay(writer: RunWriter, path: Path) -> list[str]:
    """Send what a spool holds and the run does not have: metrics first, then tags, then how the run ended.

    Returns:
        What was refused and why; the rest was sent all the same.

    Raises:
        Exception: the store does not answer.
    """
    writer.compare()
    refused: list[str] = []
    tags: dict[str, str] = {}
    finish: Message = {}

    def send(kind: str, **values: Any) -> None:
        try:
            getattr(writer, kind)(**values)
        except Exception as error:
            if is_down(error):
                raise
            refused.append(f"{kind}: {first_line(error)}")

    points = (point for message in spool.read(path) if message["kind"] == "metrics" for point in _points(message))
    while batch := list(islice(points, METRICS_PER_BATCH)):
        send("metrics", points=batch)
    for message in spool.read(path):
        kind, values = message["kind"], {key: value for key, value in message.items() if key != "kind"}
        if kind == "tags":
            tags |= values["values"]
        elif kind == "finish":
            finish = values
        elif kind in ("params", "dataset", "artifacts", "register"):
            send(kind, **values)
    send("tags", **{"values": tags})
    if finish:
        send("finish", **finish)
    return refused


def _points(message: Message) -> list[Point]:
    return [tuple(point) for point in message["points"]] if "points" in message else points_of(message)


def is_down(error: Exception) -> bool:
    """True if the next request would fail as well, so that the store should be left alone for a while."""
    code = getattr(error, "error_code", None)
    lost = type(error).__module__.startswith(("requests", "urllib3")) or isinstance(
        error, (ConnectionError, TimeoutError)
    )
    return lost or code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def sync(folder: Path, uri: str | None = None, tags: dict[str, str] | None = None) -> Iterator[Told]:
    """Send every spool of a runs folder, oldest run first; those that were sent are removed.

    Args:
        folder: the runs folder.
        uri: the store to send to; None: the one that the run was started with.
        tags: send those of the runs alone that were begun with these.
    """
    for path in waiting(folder, tags or {}):
        name = str(spool.first_head(path).get("name") or path.stem)
        try:
            with spool.holding(path) as is_held:
                if is_held:
                    yield _sync_one(path, folder, uri, name)
                else:
                    yield Told(name, False, True, "left alone: a process that lives writes or sends it")
        except Exception as error:  # one store that fails must not keep the others waiting
            yield Told(name, False, False, f"kept in {path}: {first_line(error)}")


def waiting(folder: Path, tags: dict[str, str]) -> list[Path]:
    """The spools of the runs that were begun with these tags, oldest run first."""
    heads = [(spool.first_head(path), path) for path in (folder / "spool").glob("*.jsonl")]
    found = [(head.get("time", 0), path) for head, path in heads if tags.items() <= head.get("tags", {}).items()]
    return [path for _, path in sorted(found)]


def sync_command(folder: Path) -> str:
    """How a person sends what waits in a runs folder."""
    return "harness sync" if folder == PROJECT / "mlruns" else f"harness sync --output {shlex.quote(str(folder))}"


def _sync_one(path: Path, folder: Path, uri: str | None, name: str) -> Told:
    heads, kinds = _survey(path)
    if not heads:
        path.rename(path.with_name(f"{path.name}.damaged"))
        return Told(name, False, False, f"no line says which run it is; moved to {path}.damaged")
    target = _target(heads, folder, uri)
    probe(target.uri)
    writer = open_run(target, again=True)
    if refused := replay(writer, path):
        return Told(name, False, False, f"kept in {path}: {'; '.join(refused)}")
    told = [f"sent to run {writer.run_id}"]
    if kinds.get("cut"):
        told.append("its last line was cut off when the process was killed")
    if damaged := spool.retire(path):
        told.append(f"{kinds['damaged']} lines could not be read and lie in {damaged}")
    if not kinds.get("finish"):
        told.append("it has no end: `harness runs reap` marks killed runs")
    return Told(name, True, False, "; ".join(told))


def _survey(path: Path) -> tuple[list[Message], dict[str, int]]:
    """The descriptions of the run, and how many messages of each kind there are."""
    heads: list[Message] = []
    kinds: dict[str, int] = {}
    for message in spool.read(path):
        kinds[message["kind"]] = kinds.get(message["kind"], 0) + 1
        if message["kind"] == "run":
            heads.append(message)
    return heads, kinds


def _target(heads: list[Message], folder: Path, uri: str | None) -> Target:
    """The run that a spool belongs to. Raises HarnessError."""
    head = heads[-1]
    uri = tracking_uri(uri, folder) if uri else _with_password(head["uri"])
    database = sqlite_path(uri)
    if database and not database.parent.is_dir():
        raise HarnessError(f"no folder {database.parent}; name the store with --uri")
    known = [h["run_id"] for h in heads if h["run_id"] and h["uri"] == without_password(uri)]
    resume = any(h.get("resume") for h in heads)
    run_id = known[-1] if known else None
    return Target(uri, folder, head["experiment"], head["name"], head["tags"], head["time"], resume, run_id)


def _with_password(uri: str) -> str:
    """The URI that was masked in the spool, if the environment has it. Raises HarnessError."""
    if "***@" not in uri and "password=***" not in uri:
        return uri
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if without_password(given) != uri:
        raise HarnessError(f"the password of {uri} is not kept; set MLFLOW_TRACKING_URI or give --uri")
    return given
