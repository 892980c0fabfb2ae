"""A study without training: what is proposed, to whom, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.sweeps.plan import Plan
from harness.sweeps.space import PRUNERS, SAMPLERS, SearchSpace
from harness.sweeps.study import Claim, Study
from harness.sweeps.trials import State, TrialRecord
from harness.sweeps.worker import best_of

NUMBERS = {"train.learning_rate": {"log_uniform": [1e-5, 1e-2]}, "train.weight_decay": {"uniform": [0.0, 0.1]}}
CONDITIONAL: dict[str, Any] = {
    "train.schedule": {"choice": ["linear", "constant"]},
    "train.warmup_steps": {"uniform": [0.0, 0.5], "when": {"train.schedule": "linear"}},
    "methods.lora.target_modules": {"choice": ["attention", ["query"], ["query", "value"]]},
    "train.learning_rate": [
        {"log_uniform": [1e-5, 1e-3], "when": {"train.schedule": "linear"}},
        {"log_uniform": [1e-4, 1e-2], "when": {"train.schedule": "constant"}},
    ],
}
MAXIMIZE = {"metric": "validation/f1_macro", "direction": "maximize"}
TWO = [MAXIMIZE, {"metric": "parameters/trainable", "direction": "minimize"}]
Value = Callable[[dict[str, Any]], float]


def _plan(of: dict[str, Any], **settings: Any) -> Plan:
    plain = {"name": "mine", "story": "", "objective": MAXIMIZE, "trials": 8, "space": of, "study": "mine"}
    return Plan(SearchSpace.model_validate({**plain, **settings}), "lora", [])


def _claim(study: Study, stage: str = "search") -> Claim:
    claim = study.claim(stage)
    assert claim is not None
    return claim


def _end(
    study: Study, claim: Claim, *values: float, state: State = "complete", metrics: dict[str, float] | None = None
) -> None:
    study.finish(claim, state, run="r", seconds=60.0, values=list(values) or None, metrics=metrics)


def _rate(chosen: dict[str, Any]) -> float:
    return -abs(float(chosen["train.learning_rate"]) - 1e-3)


def _drive(study: Study, value: Value = _rate, trials: int = 100, stage: str = "search") -> list[dict[str, Any]]:
    """What is proposed until the study is over."""
    found: list[dict[str, Any]] = []
    while len(found) < trials and (claim := study.claim(stage)):
        found.append(claim.chosen)
        _end(study, claim, *(value(claim.chosen) for _ in study.space.objective))
    return found


def _records(study: Study) -> list[TrialRecord]:
    return study.records("search")


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "grid"])
def test_proposals_do_not_depend_on_who_asks_or_on_restarts(name: str, tmp_path: Path) -> None:
    settings = {"n_startup_trials": 3} if name in ("tpe", "gp", "cmaes") else {}
    settings = {"population_size": 3} if name == "nsga2" else settings
    plan = _plan(CONDITIONAL if name in ("tpe", "random", "nsga2") else NUMBERS, sampler={name: settings})
    without = _drive(Study(plan, tmp_path / "one"))
    restarted = [_drive(Study(plan, tmp_path / "two"), trials=1)[0] for _ in range(8)]
    both = Study(plan, tmp_path / "three"), Study(plan, tmp_path / "three")
    in_turns = [_drive(both[i % 2], trials=1)[0] for i in range(8)]
    assert without == restarted == in_turns
    assert len({repr(one) for one in without}) == len(without) == 8
    other = _drive(Study(_plan(plan.space.model_dump()["space"], sampler_seed=1), tmp_path / "four"), trials=1)
    assert other[0] != without[0]


def test_the_search_and_its_baseline_are_drawn_apart(tmp_path: Path) -> None:
    study = Study(_plan(NUMBERS, baseline={"exp": "full_finetune", "space": NUMBERS}), tmp_path)
    assert _drive(study, trials=2) != _drive(study, trials=2, stage="baseline")
    assert [one.arm for one in study.records("baseline")] == ["baseline"] * 2


def test_conditions_and_choices_of_any_type_come_back_as_they_are(tmp_path: Path) -> None:
    study = Study(_plan(CONDITIONAL, trials=12, sampler="random"), tmp_path)
    for chosen in _drive(study):
        assert ("train.warmup_steps" in chosen) == (chosen["train.schedule"] == "linear")
        low, high = (1e-5, 1e-3) if chosen["train.schedule"] == "linear" else (1e-4, 1e-2)
        assert low <= chosen["train.learning_rate"] <= high
        assert chosen["methods.lora.target_modules"] in CONDITIONAL["methods.lora.target_modules"]["choice"]
    assert len({repr(one.params["methods.lora.target_modules"]) for one in _records(study)}) == 3
    study.plan.spec("search", _records(study)[0].params)


def test_a_grid_takes_every_cell_once(tmp_path: Path) -> None:
    of = {
        "methods.lora.rank": {"int_uniform": [2, 6], "step": 2},
        "methods.lora.target_modules": {"choice": ["attention", ["query"]]},
        "methods.lora.dropout": {"uniform": [0.0, 0.3], "step": 0.1, "when": {"methods.lora.rank": 4}},
        "train.epochs": {"choice": [2, 3], "when": {"methods.lora.rank": [2]}},
    }
    plan = _plan(of, sampler="grid", trials=None)
    proposed = _drive(Study(plan, tmp_path), lambda chosen: 0.5)
    assert sorted(map(repr, proposed)) == sorted(map(repr, plan.space.grid("search")))
    assert len(proposed) == 2 * (2 + 4 + 1)
    again = Study(plan, tmp_path)
    assert (again.claim("search"), again.is_open("search")) == (None, False)


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_runs(name: str, tmp_path: Path) -> None:
    settings = {"percentile": 50.0} if name == "percentile" else {}
    study = Study(_plan(NUMBERS, pruner={name: settings}), tmp_path)
    for number in range(8):
        claim = _claim(study)
        told = [study.report(claim, number % 3 + step / 10, step) for step in range(1, 5)]
        assert set(told) <= {"", "pruned"}
        if name == "none":
            assert told == [""] * 4
        _end(study, claim, number % 3, state="pruned" if "pruned" in told else "complete")
    assert {one.state for one in _records(study)} <= {"complete", "pruned"}


def test_the_median_pruner_ends_what_is_below_the_median(tmp_path: Path) -> None:
    study = Study(_plan(NUMBERS, pruner={"median": {"n_startup_trials": 3}}), tmp_path)
    for value in (0.5, 0.6, 0.7):
        claim = _claim(study)
        assert [study.report(claim, value, step) for step in (1, 2)] == ["", ""]
        _end(study, claim, value)
    claim = _claim(study)
    assert study.report(claim, 0.65, 1) == ""
    assert study.report(claim, 0.65, 1) == ""  # told again, after it was taken up again
    assert study.report(claim, 0.4, 2) == ""  # its best is what counts
    _end(study, claim, state="pruned")
    claim = _claim(study)
    assert study.report(claim, 0.55, 1) == "pruned"
    _end(study, claim, state="pruned")
    assert [one.state for one in _records(study)] == ["complete"] * 3 + ["pruned"] * 2
    assert _records(study)[4].intermediate == {1: 0.55}


def test_wilcoxon_over_seeds_ends_what_is_worse_on_most_of_them(tmp_path: Path) -> None:
    study = Study(_plan(NUMBERS, pruner={"wilcoxon": {"p_threshold": 0.1}}), tmp_path)
    scores = [0.70, 0.74, 0.65, 0.72, 0.69, 0.71, 0.75, 0.68]
    first = _claim(study)
    assert [study.report(first, score, seed) for seed, score in enumerate(scores)] == [""] * 8
    _end(study, first, 0.705)
    told = {}
    for name, by in (("worse", -0.1), ("mixed", 0.0)):
        claim = _claim(study)
        several = [score + by + (0.01 * seed + 0.005) * (-1) ** seed for seed, score in enumerate(scores)]
        told[name] = [study.report(claim, score, seed) for seed, score in enumerate(several)]
        _end(study, claim, *([0.7] if name == "mixed" else []), state="complete" if name == "mixed" else "pruned")
    assert told["worse"][0] == ""
    assert "pruned" in told["worse"]
    assert told["mixed"] == [""] * 8


def test_several_objectives_are_not_pruned_and_keep_their_order(tmp_path: Path) -> None:
    study = Study(_plan(NUMBERS, objective=TWO), tmp_path)
    claim = _claim(study)
    assert study.report(claim, 0.1, 1) == ""
    _end(study, claim, 0.5, 100.0)
    assert _records(study)[0].values == [0.5, 100.0]


@pytest.mark.parametrize("objective", [MAXIMIZE, TWO], ids=["one objective", "two objectives"])
def test_what_matters_is_what_makes_good_trials(objective: Any, tmp_path: Path) -> None:
    """The learning rate decides which trials are good, the weight decay which are bad."""

    def value(chosen: dict[str, Any]) -> float:
        rate, decay = float(chosen["train.learning_rate"]), float(chosen["train.weight_decay"])
        return (1.0 if rate > 3e-3 else 0.0) - (1.0 if decay < 0.02 and rate < 3e-3 else 0.0) + rate / 100

    study = Study(_plan(NUMBERS, objective=objective, trials=40, sampler="random"), tmp_path)
    assert study.importances() == {}
    _drive(study, value)
    found = study.importances()
    assert found["train.learning_rate"] > found["train.weight_decay"]


def test_few_trials_say_little_and_nothing_is_printed_of_it(tmp_path: Path) -> None:
    study = Study(_plan(CONDITIONAL, trials=3), tmp_path)
    _drive(study)
    assert set(study.importances()) <= {one.name for one in study.space.parameters("search")}


def test_what_breaks_a_constraint_is_infeasible_never_the_best_and_tells_why(tmp_path: Path) -> None:
    study = Study(_plan(NUMBERS, constraints={"latency/p50_ms": 5.0}), tmp_path)
    for latency in (4.0, 6.0):
        _end(study, _claim(study), latency / 10, metrics={"latency/p50_ms": latency})
    _end(study, _claim(study), state="infeasible")
    states = [(one.state, one.reason) for one in _records(study)]
    assert states == [("complete", ""), ("infeasible", "latency/p50_ms is 6, at most 5 is allowed"), ("infeasible", "")]
    assert [one.values for one in best_of(_records(study), study.plan, "search", 3)] == [[0.4]]


def _count_large(sampler: str, folder: Path) -> int:
    """Of 30 proposals those that run out of memory: rank 16 and above; the score does not depend on it."""
    of = {"methods.lora.rank": {"int_log_uniform": [1, 64]}, **NUMBERS}
    study = Study(_plan(of, trials=30, sampler=sampler), folder)
    for _ in range(30):
        claim = _claim(study)
        if claim.chosen["methods.lora.rank"] >= 16:
            _end(study, claim, state="infeasible")
        else:
            _end(study, claim, _rate(claim.chosen))
    large = [one for one in _records(study) if one.params["methods.lora.rank"] >= 16]
    assert {one.state for one in large} == {"infeasible"}
    return len(large)


def test_the_sampler_avoids_what_runs_out_of_memory(tmp_path: Path) -> None:
    """F33: out of memory is a fact about the space, from which TPE learns."""
    assert 2 * _count_large("tpe", tmp_path / "tpe") < _count_large("random", tmp_path / "random")


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "cmaes"])
def test_samplers_that_need_values_are_told_the_worst_one_of_what_ran_out_of_memory(name: str, tmp_path: Path) -> None:
    """F33: they learn from complete trials only. Nothing that was not measured is shown."""
    study = Study(_plan(NUMBERS, sampler=name), tmp_path)
    for value in (0.5, 0.25, None):
        claim = _claim(study)
        _end(study, claim, *([] if value is None else [value]), state="infeasible" if value is None else "complete")
    (*_, told) = study._trials("search")
    assert (told.state.name, told.values) == (("PRUNED", None) if name == "tpe" else ("COMPLETE", [0.25]))
    assert [(one.state, one.values) for one in _records(study)][2] == ("infeasible", [])
    assert all(value > 0 for value in told.constraints.values())


def test_a_study_without_a_trial_may_be_begun_anew(tmp_path: Path) -> None:
    """A mistake is told after it was begun: what mends it is no other study."""
    Study(_plan(NUMBERS, objective=TWO), tmp_path)
    study = Study(_plan(CONDITIONAL), tmp_path)
    assert study.is_new
    _drive(study, trials=1)
    with pytest.raises(UserError, match="begun with other settings"):
        Study(_plan(NUMBERS), tmp_path)
    assert study.identity == Study(_plan(CONDITIONAL), tmp_path).identity != ""


def test_trials_that_fail_do_not_end_the_study(tmp_path: Path) -> None:
    """F33."""
    study = Study(_plan(NUMBERS, trials=6), tmp_path)
    for number in range(6):
        claim = _claim(study)
        if number % 2:
            study.finish(claim, "failed", run="r", seconds=1.0, reason="no such column")
        else:
            _end(study, claim, 0.5)
    assert study.claim("search") is None
    assert [one.state for one in _records(study)] == ["complete", "failed"] * 3
    assert _records(study)[1].reason == "no such column"


def test_a_trial_that_was_put_back_is_taken_again(tmp_path: Path) -> None:
    plan = _plan(CONDITIONAL, trials=2)
    first = None
    for attempt in range(1, 6):  # however often: nobody was killed
        study = Study(plan, tmp_path)
        claim = _claim(study)
        assert (claim.number, claim.attempt) == (0, attempt)
        first = first or claim.chosen
        assert claim.chosen == first
        assert claim.seconds == 30.0 * (attempt - 1), "what it took so far"
        study.put_back(claim, 30.0)
    _drive(Study(plan, tmp_path))
    assert [one.state for one in _records(study)] == ["complete"] * 2


def test_a_trial_whose_process_was_killed_is_taken_up_by_another_one(tmp_path: Path) -> None:
    """F32: the same number, the same settings, the next attempt; the number of trials is unchanged."""
    plan = _plan(CONDITIONAL, trials=2)
    first = _claim(Study(plan, tmp_path))
    other = _claim(Study(plan, tmp_path))
    assert (other.number, other.attempt) == (1, 1)  # the first one lives
    assert Study(plan, tmp_path).claim("search") is None
    first.lease.release()  # as the system does for a dead process
    again = _claim(study := Study(plan, tmp_path))
    assert (again.number, again.attempt, again.chosen) == (0, 2, first.chosen)
    _end(study, again, 0.5)
    _end(study, other, 0.6)
    assert [(one.number, one.values) for one in _records(study)] == [(0, [0.5]), (1, [0.6])]


def test_a_trial_that_ends_while_another_process_looks_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was seen at work, and gave its lease back before it was asked for."""
    plan = _plan(NUMBERS)
    first, second = Study(plan, tmp_path), Study(plan, tmp_path)
    claim = _claim(first)
    seen = second._trials("search")
    _end(first, claim, 0.5)
    monkeypatch.setattr(second, "_trials", lambda stage: seen)
    another = _claim(second)
    assert (another.number, another.attempt) == (1, 1)


def test_what_was_told_before_the_kill_is_not_told_twice(tmp_path: Path) -> None:
    plan = _plan(NUMBERS, pruner="median")
    study = Study(plan, tmp_path)
    claim = _claim(study)
    study.report(claim, 0.1, 1)
    claim.lease.release()
    study = Study(plan, tmp_path)
    claim = _claim(study)
    assert [study.report(claim, value, number) for number, value in ((1, 0.9), (2, 0.3))] == ["", ""]
    assert _records(study)[0].intermediate == {1: 0.1, 2: 0.3}


def test_a_trial_that_kills_its_process_every_time_is_given_up(tmp_path: Path) -> None:
    """F32."""
    plan = _plan(NUMBERS, trials=2)
    chosen = []
    for attempt in range(1, 4):
        claim = _claim(Study(plan, tmp_path))
        assert (claim.number, claim.attempt) == (0, attempt)
        chosen.append(claim.chosen)
        claim.lease.release()
    assert chosen == [chosen[0]] * 3
    study = Study(plan, tmp_path)
    assert _claim(study).number == 1
    assert [(one.state, one.reason) for one in _records(study)] == [
        ("failed", "its process ended 3 times while it ran"), ("running", "")
    ]  # fmt: skip


def test_the_number_of_trials_is_exact_and_may_grow(tmp_path: Path) -> None:
    """F34."""
    assert len(_drive(Study(_plan(NUMBERS, trials=3), tmp_path))) == 3
    assert len(_drive(Study(_plan(NUMBERS, trials=5), tmp_path))) == 2
    study = Study(_plan(NUMBERS, trials=3), tmp_path)
    assert (study.claim("search"), len(_records(study))) == (None, 5)


def test_minutes_end_a_search(tmp_path: Path) -> None:
    study = Study(_plan(NUMBERS, trials=None, minutes=2.5), tmp_path)
    assert len(_drive(study)) == 3


def test_a_changed_space_is_refused_with_the_difference(tmp_path: Path) -> None:
    """F35."""
    before = {"methods.lora.rank": {"choice": [1, 2]}}
    _drive(Study(_plan(before), tmp_path), lambda chosen: 0.5, trials=1)
    with pytest.raises(UserError) as error:
        Study(_plan({"methods.lora.rank": {"choice": [1, 4]}}, sampler="random"), tmp_path)
    told = str(error.value)
    assert error.value.exit_code == 2
    assert "the study 'mine' was begun with other settings:" in told
    assert 'space.methods.lora.rank: [{"choice": [1, 2], "when": {}}] -> [{"choice": [1, 4], "when": {}}]' in told
    assert "sampler.tpe: {} -> absent" in told
    assert "fix: put them back, or begin another one: study=<name>" in told
    Study(_plan({"methods.lora.rank": {"choice": [1, 4]}}, study="other"), tmp_path)


def test_the_confirmation_is_planned_once_and_remembered(tmp_path: Path) -> None:
    plan = _plan(NUMBERS)
    tasks = [{"arm": arm, "number": 3, "seed": 100, "chosen": {"train.epochs": 1}} for arm in ("search", "baseline")]
    for _ in range(2):
        study = Study(plan, tmp_path)
        study.plan_confirmation(tasks)
        study.remember("leader", "me")
    assert [claim.given for claim in (_claim(study, "confirm"), _claim(study, "confirm"))] == tasks
    assert study.claim("confirm") is None
    assert [one.arm for one in study.records("confirm")] == ["search", "baseline"]
    assert (Study(plan, tmp_path).recall("leader"), study.recall("nothing")) == ("me", None)


@pytest.mark.parametrize(
    ("url", "workers", "message"),
    [
        ("sqlite:///x.db", 2, r"^storage: SQLite is for one worker\n  why: .*\n  fix: leave storage out"),
        ("mysql://x/y", 1, r"^storage: 'mysql' is no storage for studies\n  fix: leave it out"),
        ("here.log", 1, r"^storage: 'here\.log' is no storage"),
    ],
)
def test_a_storage_that_does_not_suit_is_refused(url: str, workers: int, message: str, tmp_path: Path) -> None:
    """F34."""
    with pytest.raises(UserError, match=message):
        Study(_plan(NUMBERS, storage=url, workers=workers), tmp_path)


def test_sqlite_serves_one_worker(tmp_path: Path) -> None:
    study = Study(_plan(NUMBERS, trials=2, storage=f"sqlite:///{tmp_path}/study.db"), tmp_path)
    assert len(_drive(study)) == 2
    assert [one.state for one in _records(study)] == ["complete"] * 2
