"""What waits to be sent: messages in the order of recording, metrics gathered into batches, all of it bounded."""

from __future__ import annotations

import time
from collections import deque
from threading import Condition

from harness.tracking.mlflow_store import METRICS_PER_BATCH
from harness.tracking.tracker import Message
from harness.tracking.writer import Point, points_of

_STEPS_PER_BATCH, _BATCH_SECONDS = 50, 5.0
_MAX_WAITING = 50_000
"""How many points may wait."""


class Queue:
    """Between the thread that records and the one that sends, neither of which waits for the other."""

    def __init__(self) -> None:
        self._changed = Condition()
        """Held while messages change hands, never while something is sent."""
        self._incoming: deque[Message] = deque()
        self._points: list[Point] = []
        self._steps, self._oldest = 0, 0.0
        self._outbox: deque[Message] = deque()
        """What is due, in order; the first message may be on its way."""
        self._waiting = 0
        self._is_closed = False

    def put(self, message: Message) -> bool:
        """Take a message; False if too much waits already. A `flush` or the end of the run is always taken."""
        with self._changed:
            if self._waiting >= _MAX_WAITING and message["kind"] not in ("flush", "finish"):
                return False
            self._waiting += _count(message)
            self._incoming.append(message)
            self._changed.notify()
            return True

    def next(self) -> Message | None:
        """Wait for the next message that is due; it stays the next until `done`. None: the queue was closed."""
        with self._changed:
            while not self._outbox and not self._is_closed:
                if self._incoming:
                    self._gather(self._incoming.popleft())
                    continue
                wait = self._oldest + _BATCH_SECONDS - time.monotonic() if self._points else None
                if wait is not None and (wait <= 0 or self._steps >= _STEPS_PER_BATCH):
                    self._flush()
                else:
                    self._changed.wait(wait)
            return None if self._is_closed else self._outbox[0]

    def done(self) -> None:
        """The message that `next` returned is sent or kept."""
        with self._changed:
            if not self._is_closed:
                self._waiting -= _count(self._outbox.popleft())

    def close(self) -> list[Message]:
        """Everything that is not done; the sender gets nothing any more."""
        with self._changed:
            self._is_closed = True
            while self._incoming:
                self._gather(self._incoming.popleft())
            self._flush()
            self._changed.notify()
            return list(self._outbox)

    def _gather(self, message: Message) -> None:
        """Add metrics to those that wait for a batch; anything else goes out behind them."""
        if message["kind"] != "metrics":
            self._flush()
            self._outbox.extend([message] if message["kind"] != "flush" else [])
            return
        if not self._points:
            self._oldest = time.monotonic()
        self._points += points_of(message)
        self._steps += 1
        if len(self._points) >= METRICS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        points, self._points, self._steps = self._points, [], 0
        for start in range(0, len(points), METRICS_PER_BATCH):
            self._outbox.append({"kind": "metrics", "points": points[start : start + METRICS_PER_BATCH]})


def _count(message: Message) -> int:
    if message["kind"] == "metrics":
        return len(message["points"] if "points" in message else message["values"])
    return int(message["kind"] != "flush")
