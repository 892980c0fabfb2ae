"""Batches in the order of recording, within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from harness.tracking import waiting
from harness.tracking.waiting import Queue


def metrics(step: Any, count: int = 1) -> dict[str, Any]:
    return {"kind": "metrics", "values": {f"m{i}": 1.0 for i in range(count)}, "step": step, "time": 0}


def steps(message: Any) -> list[int]:
    return [point[3] for point in message["points"]]


def test_what_is_recorded_later_goes_out_behind_the_metrics() -> None:
    queue = Queue()
    for message in (metrics(0), metrics(1), {"kind": "tags"}, metrics(2), {"kind": "flush"}):
        assert queue.put(message)
    assert steps(queue.next()) == steps(queue.next()) == [0, 1]
    queue.done()
    assert queue.next() == {"kind": "tags"}
    queue.done()
    assert steps(queue.next()) == [2]


def test_it_is_bounded_and_closing_it_returns_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """F27: what is on its way counts as waiting, and is among what is left."""
    monkeypatch.setattr(waiting, "_MAX_WAITING", 4)
    queue = Queue()
    assert queue.put(metrics(0, 3))
    assert queue.put({"kind": "flush"})
    assert steps(queue.next()) == [0, 0, 0]
    assert queue.put(metrics(1))
    assert not queue.put(metrics(2))
    assert queue.put({"kind": "finish"})
    assert [message["kind"] for message in queue.close()] == ["metrics", "metrics", "finish"]
    assert queue.next() is None
    queue.done()


def test_a_message_that_cannot_be_read_does_not_hold_up_the_next() -> None:
    queue = Queue()
    queue.put(metrics("x"))
    queue.put({"kind": "tags"})
    with pytest.raises(ValueError, match="x"):
        queue.next()
    assert queue.next() == {"kind": "tags"}
