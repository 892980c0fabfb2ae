"""Several processes on one study: no trial is lost or done twice, whoever dies."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from harness.errors import StorageError
from harness.sweeps import store
from harness.sweeps.study import Study
from tests.sweeps import crews
from tests.sweeps.crews import Labour

SEEDS = "confirm={top: 2, seeds: [100, 101]}"


@pytest.mark.slow
def test_four_processes_share_a_study_and_one_is_killed_in_each_stage(tmp_path: Path) -> None:
    """F32, F34: the total is exact, and what the dead left is taken up under its number."""
    plan = crews.plan("trials=10", SEEDS)
    labour = Labour(plan, tmp_path, frozenset({("search", 3), ("confirm", 2)}))
    assert crews.work(labour, labour, labour, labour) == [-9, -9, 0, 0]

    study = Study(plan, tmp_path)
    for stage, total in (("search", 10), ("baseline", 10), ("confirm", 8)):
        records = study.records(stage)
        assert [one.number for one in records] == [*range(total)]
        assert {one.state for one in records} == {"complete"}
        assert [one.run for one in records] == [f"{stage}-{number}" for number in range(total)]
        twice = {number for number, count in crews.times(tmp_path, stage).items() if count > 1}
        assert twice == {"search": {3}, "baseline": set(), "confirm": {2}}[stage]
    again = [one for one in crews.taken(tmp_path) if one["attempt"] > 1]
    assert [one["attempt"] for one in again] == [2, 2]
    for one in again:
        first = next(o for o in crews.taken(tmp_path) if (o["stage"], o["number"]) == (one["stage"], one["number"]))
        assert first["pid"] != one["pid"]
        assert first["chosen"] == one["chosen"]
    assert len({json.dumps(one.params, sort_keys=True) for one in study.records("confirm")}) == 8
    assert not study.is_open("confirm")


@pytest.mark.slow
def test_a_budget_of_minutes_ends_the_study_for_all_processes(tmp_path: Path) -> None:
    """Whoever began a trial within the budget finishes it: at most one too many for each other process."""
    plan = crews.plan("trials=null", "minutes=1")
    labour = Labour(plan, tmp_path, frozenset({("search", 1)}), seconds=10.0)
    assert crews.work(labour, labour, labour, labour) == [-9, 0, 0, 0]
    study = Study(plan, tmp_path)
    for stage in crews.STAGES:
        records = study.records(stage)
        assert [one.number for one in records] == [*range(len(records))]
        assert 6 <= len(records) <= 9
        assert {one.state for one in records} == {"complete"}
        assert not study.is_open(stage)


@pytest.mark.slow
def test_each_cell_of_a_grid_is_tried_once(tmp_path: Path) -> None:
    """F34: also the cell of the process that was killed."""
    rates = "space.train.learning_rate={uniform: [0.001, 0.002], step: 0.0005}"
    of_baseline = "baseline.space.train.learning_rate={choice: [1.0e-5, 1.0e-4, 1.0e-3]}"
    plan = crews.plan("sampler=grid", "trials=null", rates, of_baseline)
    labour = Labour(plan, tmp_path, frozenset({("search", 5), ("baseline", 0)}))
    assert crews.work(labour, labour, labour, labour) == [-9, -9, 0, 0]
    study = Study(plan, tmp_path)
    tried = [(one.params["methods.lora.rank"], one.params["train.learning_rate"]) for one in study.records("search")]
    assert sorted(tried) == [(rank, rate) for rank in (1, 2, 4, 8, 16, 32, 64) for rate in (0.001, 0.0015, 0.002)]
    assert sorted(one.params["train.learning_rate"] for one in study.records("baseline")) == [1e-5, 1e-4, 1e-3]
    assert {one.state for stage in crews.STAGES for one in study.records(stage)} == {"complete"}


def test_a_trial_whose_process_is_killed_three_times_is_given_up(tmp_path: Path) -> None:
    """F32: one that was asked to stop is not counted."""
    study = Study(crews.plan("trials=2"), tmp_path)
    chosen = []
    for attempt, ends in enumerate(("stop", "death", "stop", "death", "death"), start=1):
        claim = study.claim("search")
        assert claim
        assert (claim.number, claim.attempt) == (0, attempt)
        chosen.append(claim.chosen)
        if ends == "stop":
            study.put_back(claim, 1.0)
        claim.lease.release()
    assert all(one == chosen[0] for one in chosen)
    claim = study.claim("search")
    assert claim
    assert claim.number == 1
    first, second = study.records("search")
    assert (first.state, first.reason, second.state) == ("failed", "its process ended 3 times while it ran", "running")


def test_a_claim_that_fails_halfway_leaves_the_trial_to_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(crews.plan("trials=1"), tmp_path)
    monkeypatch.setattr(store, "_PATIENCE", ())
    with monkeypatch.context() as broken, pytest.raises(StorageError, match="No space left"):
        broken.setattr(study.store.backend, "set_trial_param", _full)
        study.claim("search")
    claim = study.claim("search")
    assert claim
    assert (claim.number, claim.attempt) == (0, 2)
    assert [one.state for one in study.records("search")] == ["running"]


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_one_process_of_a_machine_leads(tmp_path: Path) -> None:
    study = Study(crews.plan("trials=1"), tmp_path)
    with study.store.leading(tmp_path) as first, Study(study.plan, tmp_path).store.leading(tmp_path) as second:
        assert (first, second) == (True, False)
    with study.store.leading(tmp_path) as again:
        assert again
