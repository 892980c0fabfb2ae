"""Recording in MLflow beside training: a queue, the thread that empties it, and a spool for what could not be sent.

Recording costs the training thread microseconds, and a store that fails never stops or slows a run.
"""

from __future__ import annotations

import json
import math
import time
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, SupportsFloat

from harness.errors import UserError
from harness.tracker import Message, Tracker, first_line, warn
from harness.tracking_mlflow import (
    METRICS_PER_BATCH,
    Point,
    RunWriter,
    Target,
    is_server,
    probe,
    safe_part,
    without_password,
)

_STEPS_PER_BATCH, _BATCH_SECONDS = 50, 5.0
_PAUSE_SECONDS = 60.0
"""How long a store that failed is left alone."""


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
                warn(f"tracking failed ({first_line(error)}); what could not be sent is kept in {self._spool}")
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
            warn(f"cannot write {self._spool}, so records of this run are lost: {first_line(error)}")


def _is_down(error: Exception) -> bool:
    """True if the next request would fail as well, so that the store should be left alone for a while."""
    code = getattr(error, "error_code", None)
    lost = type(error).__module__.startswith(("requests", "urllib3")) or isinstance(
        error, (ConnectionError, TimeoutError)
    )
    return lost or code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def _is_finite(value: object) -> bool:
    return isinstance(value, SupportsFloat) and math.isfinite(value)
