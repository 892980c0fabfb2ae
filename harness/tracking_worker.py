"""Recording in MLflow beside training: a queue, the thread that empties it, and a spool for what could not be sent.

Recording costs the training thread microseconds, and a store that fails, or is slow, never stops or slows a run.
"""

from __future__ import annotations

import shlex
import time
from collections import deque
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Any

from harness.errors import UserError
from harness.spool import Spool
from harness.storage import PROJECT
from harness.tracker import Message, Tracker, first_line, warn
from harness.tracking_mlflow import METRICS_PER_BATCH, is_server, probe, safe_part, without_password
from harness.tracking_sync import describe, is_down, replay
from harness.tracking_writer import Point, RunWriter, Target, files, open_run, points_of

_STEPS_PER_BATCH, _BATCH_SECONDS = 50, 5.0
_PAUSE_SECONDS = 60.0
"""How long a store that failed is left alone."""
_MAX_WAITING = 50_000
"""How many points may wait in memory; what is more goes into the spool."""
_FINISH_SECONDS, _BYTES_PER_SECOND = 60.0, 1 << 20
"""How long the end of a run waits for a slow store: a minute, and a second more for every MiB of artifacts."""


class MLflowTracker(Tracker):
    """Queues what is recorded; a daemon thread, begun by `open`, sends it in batches or keeps it in a spool file.

    Metrics go out when 50 steps, 1000 values or five seconds of them have gathered. After a failure the store is left
    alone for a minute. What could not be sent lies in `spool/<name>.jsonl`; it is sent at the end of the run if the
    store works again, or by `harness sync`.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._thread = Thread(target=self._work, name="tracking", daemon=True)
        self._opened = Event()
        self._writer: RunWriter | None = None
        self._handing = Condition()
        """Held while messages change hands, never while something is sent."""
        self._queue: deque[Message] = deque()
        self._points: list[Point] = []
        self._steps, self._oldest = 0, 0.0
        self._outbox: deque[Message] = deque()
        """What is due, in order; the first message may be on its way."""
        self._waiting = 0
        self._is_finished = self._is_given_up = self._has_warned = False
        self._failure: Exception | None = None
        self._closed_until, self._allowance = 0.0, _FINISH_SECONDS
        self._spool = Spool(target.folder / "spool", safe_part(target.name))
        self._why = self._lost = self._problem = ""

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, once the store is open."""
        return self._writer.run_id if self._writer else None

    @property
    def url(self) -> str | None:
        """The run's page, if the store is a server and open."""
        if self._writer is None or not is_server(self._target.uri):
            return None
        server = without_password(self._target.uri).rstrip("/")
        return f"{server}/#/experiments/{self._writer.experiment_id}/runs/{self._writer.run_id}"

    @property
    def problem(self) -> str:
        """What is missing in MLflow after `finish`, where it lies and how to send it; empty if nothing is."""
        return self._problem

    def record(self, message: Message) -> None:
        """Queue a message, or keep it in the spool if too many wait already."""
        if self._is_given_up:
            return
        with self._handing:
            has_room = self._waiting < _MAX_WAITING or message["kind"] in ("flush", "finish")
            if has_room:
                self._waiting += _count(message)
                self._queue.append(message)
                self._handing.notify()
        if not has_room:
            self._warn("the tracking store is slow")
            self._keep(message)

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
        """Queue the end, and wait until the thread has handled everything, or has had its time.

        Ctrl-C ends the waiting as well; what was not sent by then is kept in the spool.
        """
        if self._is_finished:
            return
        self._is_finished = True
        super().finish(status)
        self.open()
        begun = time.monotonic()
        try:
            while self._thread.is_alive() and time.monotonic() < begun + self._allowance:
                self._thread.join(0.2)
        finally:
            if self._thread.is_alive():
                self._give_up()
            self._problem = self._judge()

    def _give_up(self) -> None:
        """Keep what the thread has not sent. What is on its way may arrive all the same: replaying compares."""
        with self._handing:
            self._is_given_up = True
            self._gather_all()
            rest = list(self._outbox)
            self._handing.notify()
        for message in rest:
            self._keep(message)
        self._spool.close()
        self._has_warned = False
        self._warn("the tracking store is too slow to be waited for")

    def _judge(self) -> str:
        if self._lost:
            return f"records of this run are lost: {self._lost}"
        if not self._spool.kinds:
            return ""
        why = f" ({self._why})" if self._why else ""
        kept = ", ".join(sorted(self._spool.kinds - {"damaged"}))
        return f"not everything is in MLflow{why}: {kept} kept in {self._spool.path}; send it with: {self._command()}"

    def _command(self) -> str:
        """How a person sends the spool."""
        folder = self._target.folder
        return "harness sync" if folder == PROJECT / "mlruns" else f"harness sync --output {shlex.quote(str(folder))}"

    def _warn(self, what: str) -> None:
        """Once, say what happens to the records and how they are sent."""
        if not self._has_warned:
            self._has_warned = True
            when = "later" if self._is_given_up else "at the end of the run, or later"
            warn(f"{what}; what could not be sent is kept in {self._spool.path} and sent {when} by: {self._command()}")

    def _work(self) -> None:
        """The thread: open the store, then send messages in order until `finish`."""
        try:
            self._claim()
            self._deliver({"kind": "open"})
            self._opened.set()
            while self._collect() and self._send_outbox():
                pass
        except Exception as error:  # a mistake of ours costs the record, not the run
            self._lose(error)
        finally:
            self._opened.set()
            self._spool.close()

    def _claim(self) -> None:
        try:
            self._spool.claim()
        except OSError as error:
            self._lose(error)

    def _collect(self) -> bool:
        """Wait until something is due and put it into the outbox; False if nobody waits for that any more."""
        with self._handing:
            while not self._outbox and not self._is_given_up:
                if self._queue:
                    self._gather(self._queue.popleft())
                    continue
                wait = self._oldest + _BATCH_SECONDS - time.monotonic() if self._points else None
                if wait is not None and (wait <= 0 or self._steps >= _STEPS_PER_BATCH):
                    self._flush()
                else:
                    self._handing.wait(wait)
            return not self._is_given_up

    def _gather_all(self) -> None:
        while self._queue:
            self._gather(self._queue.popleft())
        self._flush()

    def _gather(self, message: Message) -> None:
        """Add metrics to those that wait for a batch; anything else goes out behind them."""
        if message["kind"] != "metrics":
            self._flush()
            self._outbox.extend([message] if message["kind"] != "flush" else [])
            return
        if not self._points:
            self._oldest = time.monotonic()
        try:
            self._points += points_of(message)
        except (TypeError, ValueError) as error:
            self._lose(error)
        self._steps += 1
        if len(self._points) >= METRICS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        points, self._points, self._steps = self._points, [], 0
        for start in range(0, len(points), METRICS_PER_BATCH):
            self._outbox.append({"kind": "metrics", "points": points[start : start + METRICS_PER_BATCH]})

    def _send_outbox(self) -> bool:
        """Handle what is due; False after the end of the run."""
        is_over = False
        while True:
            with self._handing:
                if self._is_given_up or not self._outbox:
                    return not (self._is_given_up or is_over)
                message = self._outbox[0]
            if message["kind"] == "finish":
                self._end(message)
                is_over = True
            else:
                self._deliver(message)
            with self._handing:
                if not self._is_given_up:
                    self._outbox.popleft()
                    self._waiting -= _count(message)

    def _end(self, message: Message) -> None:
        """End the run in the store; if something was kept, send that first, and remove the spool if it all arrived."""
        self._closed_until = 0.0  # a last attempt
        if not self._spool.kinds:
            self._deliver(message)
        else:
            self._keep(message)
        if self._spool.kinds and time.monotonic() >= self._closed_until:
            self._replay()
        with self._handing:
            if not self._spool.kinds and not self._is_given_up:
                self._spool.remove()

    def _replay(self) -> None:
        try:
            writer = self._ready()
            self._why = "; ".join(replay(writer, self._spool.path))
            with self._handing:
                if not (self._why or self._is_given_up):
                    self._spool.retire()
        except Exception as error:  # the spool stays
            self._why = first_line(error)

    def _deliver(self, message: Message) -> None:
        """Send a message, or else keep it. Never raises."""
        try:
            if time.monotonic() >= self._closed_until:
                self._send(**message)
                if message["kind"] == "tags" and self._spool.kinds:
                    self._keep(message)  # replaying must not bring back older ones
                return
        except Exception as error:  # whatever a store does, the run goes on
            self._why = first_line(error)
            self._warn(f"tracking failed ({self._why})")
            if is_down(error) or self._writer is None:
                self._closed_until = time.monotonic() + _PAUSE_SECONDS
            self._failure = error
        if not self._is_given_up and message["kind"] != "open":
            self._keep(message)

    def _send(self, kind: str, **values: Any) -> None:
        writer = self._ready()
        if kind == "artifacts":
            folder = Path(values["folder"])
            size = sum((folder / name).stat().st_size for name in files(folder, values["ignore"]))
            self._allowance += size / _BYTES_PER_SECOND
        if kind != "open":
            getattr(writer, kind)(**values)

    def _ready(self) -> RunWriter:
        """The open run. Raises what `open_run` raises."""
        if self._failure is not None:
            probe(self._target.uri)
        if self._writer is None:
            writer = open_run(self._target, again=self._failure is not None)
            if self._target.resume:
                writer.reopen(self._target.tags)
            self._writer = writer
        return self._writer

    def _keep(self, message: Message) -> None:
        """Append a message to the spool. Never raises."""
        try:
            if "values" in message and message["kind"] == "metrics":
                message = {"kind": "metrics", "points": points_of(message)}
            self._spool.write(describe(self._target, self.run_id), message)
        except Exception as error:  # a full disk, mostly
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        if not self._lost:
            warn(f"records of this run are lost, neither sent nor kept in {self._spool.path}: {first_line(error)}")
        self._lost = first_line(error)


def _count(message: Message) -> int:
    if message["kind"] == "metrics":
        return len(message["points"] if "points" in message else message["values"])
    return int(message["kind"] != "flush")
