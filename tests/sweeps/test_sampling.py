"""Samplers and pruners by name and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import SpecError
from harness.sweeps import sampling, space
from harness.sweeps.space import PRUNERS, SAMPLERS, SearchSpace

NUMBERS = {"train.learning_rate": {"log_uniform": [1e-5, 1e-2]}, "train.weight_decay": {"uniform": [0.0, 0.1]}}


def _space(**settings: Any) -> SearchSpace:
    plain = {"objective": {"metric": "validation/f1_macro", "direction": "maximize"}, "trials": 9, "space": NUMBERS}
    return SearchSpace.model_validate({"name": "mine", "story": "", **plain, **settings})


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_made_and_seeded_by_the_trial(name: str) -> None:
    settings = _space(sampler=name)
    sampling.check(settings)
    made = sampling.sampler(settings, settings.parameters("search"), "search", 3)
    shown = {"grid": "Random", "cmaes": "CmaEs", "nsga2": "NSGAII"}.get(name, name)
    assert type(made).__name__.lower() == f"{shown}Sampler".lower()


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_made(name: str) -> None:
    settings = _space(pruner={name: {"percentile": 25.0} if name == "percentile" else {}})
    sampling.check(settings)
    shown = name.replace("none", "nop").replace("_", "")
    assert type(sampling.pruner(settings)).__name__.lower() == f"{shown}pruner"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": {"tpe": {"n_startup_trails": 3}}}, r"sampler\.tpe\.n_startup_trails: unknown key; .*_trials'\?$"),
        ({"sampler": {"tpe": {"seed": 3}}}, r"sampler\.tpe\.seed: unknown key; "),
        ({"sampler": {"tpe": {"gamma": 0.2}}}, r"sampler\.tpe\.gamma: unknown key; "),
        ({"sampler": {"grid": {"order": 1}}}, r"sampler\.grid\.order: unknown key; known: none$"),
        ({"pruner": {"median": {"n_warmup_step": 3}}}, r"pruner\.median\.n_warmup_step: unknown key; .*_steps'\?$"),
        ({"pruner": {"percentile": {}}}, r"^mine\.yaml: pruner\.percentile\.percentile: missing$"),
        ({"pruner": {"percentile": {"percentile": 400.0}}}, r"pruner\.percentile: Percentile must be"),
        ({"sampler": {"nsga2": {"population_size": 1}}}, r"sampler\.nsga2: `population_size` must be"),
    ],
)
def test_a_setting_that_does_not_exist_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        sampling.check(_space(**settings))
    assert error.value.exit_code == 2


def test_all_of_them_are_told_at_once_and_at_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """objective: {metric: validation/f1_macro, direction: maximize}
trials: 4
space: {train.epochs: {choice: [1, 2]}}
sampler:
  tpe:
    n_startup: 3
    gama: 1
"""
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(space, "SPACES", tmp_path)
    with pytest.raises(SpecError) as error:
        sampling.check(space.load("mine", ["pruner={median: {n_warmup: 1}}"]))
    places = ["mine.yaml:6", "mine.yaml:7", "pruner={median"]
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == places


def test_tpe_knows_groups_only_where_there_are_conditions() -> None:
    conditional = {"a": {"choice": [1, 2]}, "b": {"choice": [1, 2], "when": {"a": 1}}}
    for of, is_grouped in ((NUMBERS, False), (conditional, True)):
        settings = _space(space=of)
        made: Any = sampling.sampler(settings, settings.parameters("search"), "search", 0)
        assert (made._multivariate, made._group, made._n_startup_trials) == (True, is_grouped, 3)


@pytest.mark.parametrize(("trials", "size"), [(8, 4), (24, 4), (100, 20), (1000, 50)])
def test_nsga2_has_generations_in_a_study_of_this_size(trials: int, size: int) -> None:
    settings = _space(sampler="nsga2", trials=trials)
    made: Any = sampling.sampler(settings, settings.parameters("search"), "search", 0)
    assert made._population_size == size
