"""What a run tells whoever records it, and trackers that need no store: nobody, memory (tests), several at once."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]
"""One thing recorded: its `kind` and what belongs to it, in values that JSON can hold."""


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

    @property
    def problem(self) -> str:
        """Once `finish` has returned: what is missing in the store, and what to do; empty if nothing is."""
        return ""

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
        self.record({"kind": "metrics", "values": dict(values), "step": step, "time": now()})

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

    def register(self, model: str, alias: str, within: str, about: str) -> None:
        """Make the files `within` the run a version of a registered model, described by `about`; after `artifacts`.

        `alias`: a name that points to this version from now on; "": none.
        """
        self.record({"kind": "register", "model": model, "alias": alias, "within": within, "about": about})

    def flush(self) -> None:
        """Send soon what is buffered; does not wait."""
        self.record({"kind": "flush"})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED, once everything recorded was sent or kept. May be repeated."""
        self.record({"kind": "finish", "status": status, "time": now()})


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

    @property
    def problem(self) -> str:
        """Every tracker's problem."""
        return "; ".join(tracker.problem for tracker in self._all if tracker.problem)

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


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def warn(message: str) -> None:
    """Tell the person at the terminal; nothing stops."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
