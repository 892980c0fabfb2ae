"""What reaches the trackers that need no store."""

from __future__ import annotations

from pathlib import Path

from harness.tracking.tracker import MemoryTracker, Tracker, Trackers


def test_memory_tracker_and_fan_out() -> None:
    first, second = MemoryTracker(), MemoryTracker()
    both = Trackers([Tracker(), first, second])
    both.params({"rank": 8})
    both.metrics({"train/loss": 1.0}, 3)
    both.tags({"a": "b"})
    both.dataset("reviews", "builtin", "ab", 3, "test")
    both.artifacts(Path("/x"), "y", ("*.z",))
    both.open()
    assert both.run_id is both.url is both.wait_open(0) is None
    both.finish("KILLED")
    assert first.messages == second.messages
    assert (first.all_params, first.all_tags, first.status) == ({"rank": 8}, {"a": "b"}, "KILLED")
    assert first.history == {"train/loss": [(3, 1.0)]}
    assert both.problem == ""
    assert {"kind": "artifacts", "folder": "/x", "within": "y", "ignore": ["*.z"]} in first.messages


def test_problems_of_all_trackers_are_told() -> None:
    class Full(Tracker):
        @property
        def problem(self) -> str:
            return "the disk is full"

    assert Trackers([Tracker(), Full(), Full()]).problem == "the disk is full; the disk is full"
