"""What a run records and where it goes: MLflow, TensorBoard, memory (tests), or nowhere.

With `tracking_mlflow.py` the only door to mlflow and tensorboard. Recording costs the training thread microseconds:
one daemon thread imports MLflow, opens the store and sends, and a store that fails never stops or slows a run.
"""

from __future__ import annotations

import getpass
import json
import math
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, SupportsFloat

from harness.errors import StorageError, UserError
from harness.settings import Settings
from harness.storage import PROJECT
from harness.tracking_mlflow import (
    METRICS_PER_BATCH,
    FoundRun,
    Point,
    RunWriter,
    Target,
    is_server,
    probe,
    refuse_deleted,
    safe_part,
    search,
    sqlite_path,
    tracking_uri,
    without_password,
)

Message = dict[str, Any]
"""One thing recorded: its `kind` and what belongs to it, in values that JSON can hold."""

_STEPS_PER_BATCH, _BATCH_SECONDS = 50, 5.0
_PAUSE_SECONDS = 60.0
"""How long a store that failed is left alone."""


class Tracking(Settings):
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow's store: `sqlite:////path/x.db` or a server. None: `$MLFLOW_TRACKING_URI`, else SQLite in `mlruns/`."""
    experiment: str | None = None
    """MLflow's experiment. None: the name of the spec."""
    tensorboard: bool = False
    """Write TensorBoard event files as well."""


class Tracker:
    """What a run tells its tracker; every method makes one message of its arguments. This one records nothing."""

    @property
    def run_id(self) -> str | None:
        """The run's id in the store, once it is known."""
        return None

    @property
    def url(self) -> str | None:
        """The run's page on a tracking server, if there is one."""
        return None

    def record(self, message: Message) -> None:
        """Take one message: what a subclass overrides."""

    def open(self) -> None:
        """Begin sending. Call it after the first training step, which importing MLflow would delay by seconds."""

    def wait_open(self, timeout: float) -> str | None:
        """Open, and wait at most `timeout` seconds for the run's id; None if there is none.

        Raises:
            UserError: the experiment was deleted.
        """
        return self.run_id

    def params(self, values: Mapping[str, object]) -> None:
        """Settings of the run, under the dotted keys one types."""
        self.record({"kind": "params", "values": dict(values)})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at a step, named `split/name`. They lie on the host: a tensor on a device would be waited for."""
        self.record({"kind": "metrics", "values": dict(values), "step": step, "time": _now()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts to search by; a later value replaces an earlier one."""
        self.record({"kind": "tags", "values": dict(values)})

    def dataset(self, name: str, source: str, digest: str, rows: int, context: str) -> None:
        """A data set the run used: sha256 `digest`, number of `rows`, `context` such as "train"."""
        values = {"name": name, "source": source, "digest": digest, "rows": rows, "context": context}
        self.record({"kind": "dataset"} | values)

    def artifacts(self, folder: Path, within: str = "", ignore: Sequence[str] = ()) -> None:
        """Copy a folder's files into the run, below `within`, but for those that match a pattern of `ignore`.

        Patterns (fnmatch) are matched against the path below `folder`. The files must stay as they are until `finish`.
        """
        values = {"folder": str(folder.absolute()), "within": within, "ignore": list(ignore)}
        self.record({"kind": "artifacts"} | values)

    def flush(self) -> None:
        """Send soon what is buffered; does not wait."""
        self.record({"kind": "flush"})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED, once everything recorded was sent or kept. May be repeated."""
        self.record({"kind": "finish", "status": status, "time": _now()})


class MemoryTracker(Tracker):
    """Keeps everything, for tests to look at."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.all_params: dict[str, object] = {}
        self.all_tags: dict[str, str] = {}
        self.history: dict[str, list[tuple[int, float]]] = defaultdict(list)
        """Metric -> (step, value), in the order of recording."""
        self.status: str | None = None

    def record(self, message: Message) -> None:
        """Append the message, and sort it where a test looks for it."""
        self.messages.append(message)
        if message["kind"] == "params":
            self.all_params |= message["values"]
        elif message["kind"] == "tags":
            self.all_tags |= message["values"]
        elif message["kind"] == "finish":
            self.status = message["status"]
        elif message["kind"] == "metrics":
            for key, value in message["values"].items():
                self.history[key].append((message["step"], value))


class TensorBoardTracker(Tracker):
    """Scalars, and the params as text, in TensorBoard's event files; the rest is not recorded.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("tensorboard is not installed", where="tracking.tensorboard", fix="pip install tensorboard")
        self._folder, self._has_failed = folder, False
        self._writer: Any = None

    def record(self, message: Message) -> None:
        """Write a message at once. A full disk costs one warning, not the run."""
        try:
            self._write(message["kind"], message)
        except OSError as error:
            if not self._has_failed:
                _warn(f"TensorBoard's files in {self._folder} are incomplete: {_first_line(error)}")
            self._has_failed = True

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


class Trackers(Tracker):
    """Tells several trackers everything; run id and URL are those of the first that has one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._all = list(trackers)

    @property
    def run_id(self) -> str | None:
        """The first run id."""
        return next((tracker.run_id for tracker in self._all if tracker.run_id), None)

    @property
    def url(self) -> str | None:
        """The first URL."""
        return next((tracker.url for tracker in self._all if tracker.url), None)

    def record(self, message: Message) -> None:
        """Pass a message to all."""
        for tracker in self._all:
            tracker.record(message)

    def open(self) -> None:
        """Open all."""
        for tracker in self._all:
            tracker.open()

    def wait_open(self, timeout: float) -> str | None:
        """Wait for each in turn. Raises UserError as they do."""
        return next(filter(None, [tracker.wait_open(timeout) for tracker in self._all]), None)

    def finish(self, status: str = "FINISHED") -> None:
        """Finish all."""
        for tracker in self._all:
            tracker.finish(status)


class MLflowTracker(Tracker):
    """Queues what is recorded; a daemon thread, begun by `open`, sends it in batches or keeps it in a spool file.

    Metrics go out when 50 steps, 1000 values or five seconds of them have gathered. After a failure the store is left
    alone for a minute. What could not be sent lies in `spool/<name>.jsonl`: a line that describes the run, then one
    message a line.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._queue: SimpleQueue[Message] = SimpleQueue()
        self._thread = Thread(target=self._work, name="tracking", daemon=True)
        self._opened = Event()
        self._writer: RunWriter | None = None
        self._points: list[Point] = []
        self._steps, self._oldest = 0, 0.0
        self._nonfinite: set[str] = set()
        self._failure: Exception | None = None
        self._closed_until = 0.0
        self._spool = target.folder / "spool" / f"{safe_part(target.name)}.jsonl"
        self._described = ""
        """The run id that the spool's latest description holds, or "unknown"; empty: no spool yet."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, once the store is open."""
        return self._writer.run_id if self._writer else self._target.resume

    @property
    def url(self) -> str | None:
        """The run's page, if the store is a server and open."""
        if self._writer is None or not is_server(self._target.uri):
            return None
        server = without_password(self._target.uri).rstrip("/")
        return f"{server}/#/experiments/{self._writer.experiment_id}/runs/{self._writer.run_id}"

    def record(self, message: Message) -> None:
        """Queue a message."""
        self._queue.put(message)

    def open(self) -> None:
        """Start the thread, once."""
        if self._thread.ident is None:
            self._thread.start()

    def wait_open(self, timeout: float) -> str | None:
        """The run's id, or None if the store failed or takes longer. Raises UserError: deleted experiment."""
        self.open()
        self._opened.wait(timeout)
        if isinstance(self._failure, UserError):
            raise self._failure
        return self.run_id

    def finish(self, status: str = "FINISHED") -> None:
        """Queue the end, and wait until the thread has handled everything."""
        super().finish(status)
        self.open()
        try:
            self._thread.join()
        except KeyboardInterrupt:  # what is queued gets a last chance, then the person is obeyed
            self._thread.join(10)
            raise

    def _work(self) -> None:
        """The thread: open the store, then handle messages in order until `finish`."""
        self._deliver({"kind": "open"})
        self._opened.set()
        while True:
            message = self._next()
            if message["kind"] == "metrics":
                self._gather(message)
                continue
            if message["kind"] == "finish":
                self._closed_until = 0.0  # a last attempt
            self._send_points()
            if message["kind"] != "flush":
                self._deliver(message)
            if message["kind"] == "finish":
                return

    def _next(self) -> Message:
        """The next message, or a flush when enough metrics have gathered or have waited long enough."""
        if len(self._points) >= METRICS_PER_BATCH:
            return {"kind": "flush"}
        wait = max(0.0, self._oldest + _BATCH_SECONDS - time.monotonic()) if self._points else None
        try:
            return self._queue.get(timeout=0.0 if self._steps >= _STEPS_PER_BATCH else wait)
        except Empty:
            return {"kind": "flush"}

    def _gather(self, message: Message) -> None:
        """Buffer one step's metrics. MLflow alters infinity and cannot show NaN: their names become a tag instead."""
        finite = {key: value for key, value in message["values"].items() if _is_finite(value)}
        if found := message["values"].keys() - finite.keys() - self._nonfinite:
            self._nonfinite |= found
            self._deliver({"kind": "tags", "values": {"nonfinite_metrics": ", ".join(sorted(self._nonfinite))}})
        if not self._points:
            self._oldest = time.monotonic()
        self._points += [(key, float(value), message["time"], int(message["step"])) for key, value in finite.items()]
        self._steps += 1

    def _send_points(self) -> None:
        points, self._points, self._steps = self._points, [], 0
        for start in range(0, len(points), METRICS_PER_BATCH):
            self._deliver({"kind": "metrics", "points": points[start : start + METRICS_PER_BATCH]})

    def _deliver(self, message: Message) -> None:
        """Send a message, or else keep it. Never raises."""
        try:
            if time.monotonic() >= self._closed_until:
                self._send(**message)
                return
        except Exception as error:  # whatever a store does, the run goes on
            if self._failure is None:
                _warn(f"tracking failed ({_first_line(error)}); what could not be sent is kept in {self._spool}")
            if _is_down(error) or self._writer is None:
                self._closed_until = time.monotonic() + _PAUSE_SECONDS
            self._failure = error
        self._keep(message)

    def _send(self, kind: str, **values: Any) -> None:
        if self._failure is not None:
            probe(self._target.uri)
        if self._writer is None:
            self._writer = RunWriter(self._target)
            if self._described:
                self._keep(None)
        if kind != "open":
            getattr(self._writer, kind)(**values)

    def _keep(self, message: Message | None) -> None:
        """Append a message to the spool, below a line that describes the run as far as it is known."""
        run, described = self._target, self.run_id or "unknown"
        head: Message = {"kind": "run", "run_id": self.run_id, "experiment": run.experiment, "name": run.name}
        head |= {"uri": without_password(run.uri), "tags": run.tags, "time": run.time}
        lines = [] if self._described == described else [head]
        lines += [message] if message and message["kind"] != "open" else []
        try:
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            with self._spool.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
            self._described = described
        except OSError as error:
            _warn(f"cannot write {self._spool}, so records of this run are lost: {_first_line(error)}")


def start(
    settings: Tracking,
    folder: Path,
    experiment: str,
    name: str,
    *,
    parent: str | None = None,
    tags: dict[str, str] | None = None,
    note: str = "",
    resume: str | None = None,
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
        resume: run id of an MLflow run to go on with, instead of a new one.

    Raises:
        UserError: no such kind of store, a deleted experiment, tensorboard not installed.
    """
    folder, experiment = folder.absolute(), settings.experiment or experiment
    uri = tracking_uri(settings.uri, folder)
    refuse_deleted(uri, experiment)
    known = {"mlflow.note.content": note, "mlflow.parentRunId": parent, "mlflow.source.git.commit": _commit()}
    known |= {"mlflow.user": _user(), "mlflow.source.name": "launch.py", "mlflow.source.type": "LOCAL"}
    named = {key: value for key, value in known.items() if value} | (tags or {})
    mlflow = MLflowTracker(Target(uri, folder, experiment, name, named, _now(), resume))
    return Trackers([mlflow, TensorBoardTracker(folder / "tensorboard" / name)]) if settings.tensorboard else mlflow


def ui_command(uri: str | None, folder: Path) -> str:
    """What a person pastes to see the runs: a command line, or a server's URL. Passwords are masked."""
    folder = folder.absolute()
    uri = without_password(tracking_uri(uri, folder))
    if is_server(uri):
        return uri
    words = ["mlflow", "ui", "--backend-store-uri", uri, "--default-artifact-root", str(folder / "artifacts")]
    return shlex.join([*words, "--host", "127.0.0.1", "--port", "5000"])


def find_run(uri: str | None, folder: Path, run: str) -> FoundRun | None:
    """The MLflow run with this id or name, or None.

    Raises:
        UserError: several runs have this name.
        StorageError: the store cannot be read.
    """
    folder = folder.absolute()
    uri = tracking_uri(uri, folder)
    database = sqlite_path(uri)
    if database and not database.is_file():
        return None
    try:
        found = search(uri, folder, run)
    except Exception as error:
        raise StorageError(f"cannot read {without_password(uri)}", why=_first_line(error)) from error
    if len(found) > 1:
        raise UserError(
            f"{len(found)} runs are called '{run}'", fix=f"name one by its id: {', '.join(r.run_id for r in found)}"
        )
    return found[0] if found else None


def _is_down(error: Exception) -> bool:
    """True if the next request would fail as well, so that the store should be left alone for a while."""
    code = getattr(error, "error_code", None)
    lost = type(error).__module__.startswith(("requests", "urllib3")) or isinstance(
        error, (ConnectionError, TimeoutError)
    )
    return lost or code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def _is_finite(value: object) -> bool:
    return isinstance(value, SupportsFloat) and math.isfinite(value)


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
