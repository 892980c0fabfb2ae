"""Who may end a trial early, and what of it a pruner sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from harness.errors import LostProcess, Stopped
from harness.machine import processes
from harness.sweeps.study import Claim
from harness.sweeps.worker import Worker
from tests.sweeps.test_study import MAXIMIZE, NUMBERS, _plan

CLAIM = cast(Claim, SimpleNamespace(stage="search", seconds=0.0))


class Pruner:
    """Takes down what it is told, and ends a trial at some number."""

    def __init__(self, ends_at: int = 99) -> None:
        self.told: list[tuple[float, int]] = []
        self._ends_at = ends_at

    def report(self, claim: Claim, value: float, number: int) -> str:
        self.told.append((value, number))
        return "pruned" if number >= self._ends_at else ""


def worker(study: Pruner, **settings: Any) -> Worker:
    session: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1))
    return Worker(_plan(NUMBERS, **settings), session, cast(Any, study), None, cast(Any, Mock()))


def scores(value: float, seconds: float = 0.0) -> dict[str, float]:
    return {MAXIMIZE["metric"]: value, "time/total_s": seconds}


def test_of_one_seed_every_evaluation_is_told() -> None:
    pruner = Pruner(ends_at=2)
    look = worker(pruner, pruner="median")._oversight(1, CLAIM)
    assert [look.report(scores(0.25 * number), number) for number in (1, 2)] == ["", "pruned"]
    assert pruner.told == [(0.25, 1), (0.5, 2)]


@pytest.mark.parametrize(("name", "told"), [("median", [(0.5, 1), (0.75, 2)]), ("wilcoxon", [(0.5, 1), (1.0, 2)])])
def test_of_several_seeds_the_pruner_sees_each_once(name: str, told: list[tuple[float, int]]) -> None:
    """Means so far, so that trials are compared after equally many seeds; Wilcoxon's test pairs the seeds itself."""
    pruner = Pruner(ends_at=2)
    look = worker(pruner, pruner=name)._oversight(3, CLAIM)
    assert look.report(scores(0.9), 1) == "", "nothing within a seed"
    look.of_seed(1, [scores(0.5)])
    with pytest.raises(Stopped, match="pruned after 2 of 3 seeds"):
        look.of_seed(2, [scores(0.5), scores(1.0)])
    assert pruner.told == told


def test_the_clock_counts_what_earlier_processes_took() -> None:
    look = worker(Pruner(), trial_minutes=2)._oversight(3, CLAIM)
    assert look.seconds == 120.0
    later = look.of_seed(2, [scores(0.5, 40.0), scores(0.5, 50.0)])
    assert later is not None and later.seconds == 30.0


def test_a_process_that_is_lost_before_the_trial_begins_leaves_it_to_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """F5: the launch is gone, and its trial waits."""

    def lose(accelerator: Any, value: Any) -> Any:
        raise LostProcess("lost another process")

    study = Mock()
    study.records.return_value = []
    study.claim.return_value = SimpleNamespace(stage="search", given={}, chosen={}, number=0, attempt=1)
    monkeypatch.setattr(processes, "from_first", lose)
    with pytest.raises(LostProcess):
        worker(study).work(("search",))
    study.put_back.assert_called_once()
    assert study.put_back.call_args.kwargs == {"is_asked": False}
