"""Recording in MLflow beside training: a queue, the thread that empties it, and a spool for what could not be sent.

Recording costs the training thread microseconds, and a store that fails, or is slow, never stops or slows a run.
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from harness.errors import UserError
from harness.tracking.mlflow_store import is_server, probe, safe_part, without_password
from harness.tracking.sending import describe, is_down, replay, sync_command
from harness.tracking.spool import Spool
from harness.tracking.tracker import Message, Tracker, first_line, warn
from harness.tracking.waiting import Queue
from harness.tracking.writer import RunWriter, Target, files, open_run, points_of

_PAUSE_SECONDS = 60.0
"""How long a store that failed is left alone."""
_FINISH_SECONDS, _BYTES_PER_SECOND = 60.0, 1 << 20
"""How long the end of a run waits for a slow store: a minute, and a second more for every MiB of artifacts."""
_STOPPED_SECONDS = 10.0
"""The same for a run that was stopped: launchers kill what has not ended after 30 seconds."""
_CLAIM_SECONDS = 60.0
"""How long a run that goes on waits for whoever sends the spool of its earlier attempt."""


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
        self._queue, self._ending = Queue(), Lock()
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
        if not self._queue.put(message):
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
        patience = _STOPPED_SECONDS if status == "KILLED" else None
        try:
            while self._thread.is_alive() and time.monotonic() < begun + (patience or self._allowance):
                self._thread.join(0.2)
        finally:
            if self._thread.is_alive():
                self._give_up()
            self._problem = self._judge()

    def _give_up(self) -> None:
        """Keep what the thread has not sent. What is on its way may arrive all the same: replaying compares.

        The thread begins nothing more: whoever sends the spool may have ended the run by then.
        """
        with self._ending:
            self._is_given_up = True
        for message in self._queue.close():
            self._keep(message)
        self._spool.close()
        self._has_warned = False
        self._warn("the tracking store is too slow to be waited for")

    def _judge(self) -> str:
        lost = f"records of this run are lost ({self._lost})" if self._lost else ""
        if not self._spool.kinds:
            return lost
        why = f" ({self._why})" if self._why else ""
        kept = ", ".join(sorted(self._spool.kinds - {"damaged"}))
        rest = f"not everything is in MLflow{why}: {kept} kept in {self._spool.path}; send it with: {self._command}"
        return f"{lost}; {rest}" if lost else rest

    @property
    def _command(self) -> str:
        return sync_command(self._target.folder)

    def _warn(self, what: str) -> None:
        """Once, say what happens to the records and how they are sent."""
        if not self._has_warned:
            self._has_warned = True
            when = "later" if self._is_given_up else "at the end of the run, or later"
            warn(f"{what}; what could not be sent is kept in {self._spool.path} and sent {when} by: {self._command}")

    def _work(self) -> None:
        """The thread: open the store, then send messages in order until `finish`."""
        try:
            self._claim()
            self._deliver({"kind": "open"})
            self._opened.set()
            while (message := self._next()) and message["kind"] != "finish":
                self._deliver(message)
                self._queue.done()
            if message:
                self._end(message)
        except Exception as error:  # a mistake of ours costs the record, not the run
            self._lose(error)
        finally:
            self._opened.set()
            self._spool.close()

    def _claim(self) -> None:
        """Take over what an earlier attempt kept. Who sends it now may finish: its points are then seen as recorded."""
        deadline = time.monotonic() + _CLAIM_SECONDS
        try:
            while self._spool.is_held_elsewhere() and time.monotonic() < deadline and not self._is_given_up:
                time.sleep(0.1)
            self._spool.claim()
        except OSError as error:
            self._lose(error)

    def _next(self) -> Message | None:
        while True:
            try:
                return self._queue.next()
            except (TypeError, ValueError, KeyError) as error:  # a message that cannot be read
                self._lose(error)

    def _end(self, message: Message) -> None:
        """End the run in the store; if something was kept, send that first, and remove the spool if it all arrived."""
        self._closed_until = 0.0  # a last attempt
        if not self._spool.kinds:
            self._deliver(message)
        else:
            self._keep(message)
        if self._spool.kinds and time.monotonic() >= self._closed_until:
            self._replay()
        with self._ending:
            if not self._spool.kinds and not self._is_given_up:
                self._spool.remove()

    def _replay(self) -> None:
        try:
            writer = self._ready()
            self._why = "; ".join(replay(writer, self._spool.path))
            with self._ending:
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
            if self._target.resume and not self._is_given_up:
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
