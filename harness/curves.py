"""The curves of a run: every point goes to the tracker once, and stays for checkpoints and pictures."""

from __future__ import annotations

import math
from collections import defaultdict

from harness.checkpoint import Snapshot
from harness.metric import History
from harness.tracking.tracker import Tracker
from harness.train import Step

LOG_STEPS = 50
"""Values of so many steps are handed to the tracker together."""


class Curves:
    """What a run records of its steps and validations, in memory and to its tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.history: History = defaultdict(list)
        self._waiting: list[Step] = []
        self._told = self._told_before = 0

    def add(self, step: Step) -> bool:
        """Keep what was seen in a step; returns whether enough of them wait to be recorded."""
        self._waiting.append(step)
        self.tracker.open()  # not before a step: importing the tracker's library would delay the first by seconds
        return len(self._waiting) >= LOG_STEPS

    def flush(self) -> None:
        """Record the steps that wait."""
        for step in self._waiting:
            self.record(self._values(step), step.number)
        self._waiting.clear()

    def record(self, scores: dict[str, float], step: int) -> None:
        """A point of each of these curves."""
        if step > self._told_before:  # a step that is computed again was told
            self.tracker.metrics(scores, step)
        self._told = max(self._told, step)
        for key, value in scores.items():
            self.history[key].append((step, value))

    def restore(self, snapshot: Snapshot) -> None:
        """Go on with the curves up to a snapshot."""
        self.history = history_of(snapshot)
        self._waiting.clear()

    def compute_again(self) -> None:
        """What was told up to now will be computed again, and not told again."""
        self._told_before = self._told

    def tell(self) -> None:
        """Record every point again: a run that goes on may have been killed before they were sent."""
        tell(self.history, self.tracker)

    def _values(self, step: Step) -> dict[str, float]:
        norm = {} if step.skipped else {"train/grad_norm": step.grad_norm}
        loss = {"train/loss": step.loss} if math.isfinite(step.loss) else {}
        observed = {f"train/{name}": float(value) for name, value in step.observed.items()}
        shape = {
            "train/learning_rate": step.learning_rate,
            "train/micro_batches": float(step.num_micro_batches),
            "train/micro_batch_tokens": float(step.micro_batch_tokens),
        }
        skipped = {"train/skipped_steps": float(self._num_skipped + 1)} if step.skipped else {}
        return loss | norm | observed | shape | skipped

    @property
    def _num_skipped(self) -> int:
        history = self.history["train/skipped_steps"]
        return int(history[-1][1]) if history else 0


def tell(history: History, tracker: Tracker) -> None:
    """Record every point of a run's curves, step by step."""
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    for key, points in history.items():
        for step, value in points:
            steps[step][key] = value
    for step in sorted(steps):
        tracker.metrics(steps[step], step)


def history_of(snapshot: Snapshot) -> History:
    """The curves of a run up to a snapshot."""
    history: History = defaultdict(list)
    for key, points in snapshot.progress["selected"]["history"].items():
        history[key] = [(step, value) for step, value in points]
    return history
