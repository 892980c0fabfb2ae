"""Optuna's samplers and pruners by name and settings, and what a sampler is asked. With study.py the door to optuna."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from harness.errors import SpecError, did_you_mean
from harness.sweeps.distribution import Parameter
from harness.sweeps.space import SearchSpace

_SAMPLERS: dict[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.RandomSampler,  # asked for nothing: each trial of a grid has its settings given
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
_PRUNERS: dict[str, Any] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}

_OURS = ("seed", "constraints_func", "search_space")
"""Settings that a study makes itself; those that are functions cannot be written in a file."""


def check(space: SearchSpace) -> None:
    """Raise SpecError for settings that the sampler or the pruner does not have, or not so; all at once."""
    problems = [
        *_setting_problems(space, "sampler", space.sampler, _SAMPLERS),
        *_setting_problems(space, "pruner", space.pruner, _PRUNERS),
    ]
    if problems:
        raise SpecError("\n".join(problems))


def _setting_problems(
    space: SearchSpace, kind: str, chosen: dict[str, dict[str, Any]], classes: dict[str, Any]
) -> Iterator[str]:
    ((name, settings),) = chosen.items()
    parameters = {} if name == "grid" else dict(inspect.signature(classes[name]).parameters)
    known = {key for key in parameters if key not in _OURS and "Callable" not in str(parameters[key].annotation)}
    needed = [key for key in sorted(known) if parameters[key].default is inspect.Parameter.empty]
    for key in (key for key in settings if key not in known):
        place = space.named([kind, name, key], f"{kind}.{name}.{key}")
        yield f"{place}: unknown key; {did_you_mean(key, known)}"
    if missing := [key for key in needed if key not in settings]:
        yield from (f"{space.place([kind, name])}: {kind}.{name}.{key}: missing" for key in missing)
        return
    try:
        with quietly():
            classes[name](**{key: value for key, value in settings.items() if key in known})
    except (TypeError, ValueError, ImportError) as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        yield f"{space.place([kind, name])}: {kind}.{name}: {told}"


def sampler(space: SearchSpace, parameters: list[Parameter], stage: str, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for one trial, seeded by its number: what it says does not depend on which process asks."""
    ((name, settings),) = space.sampler.items()
    settings = dict(settings)
    if name == "tpe":
        settings.setdefault("multivariate", True)
        settings.setdefault("group", any(one.distribution.when for one in parameters))
        settings.setdefault("n_startup_trials", min(10, max(3, (space.trials or 30) // 3)))
    if name == "nsga2":
        settings.setdefault("population_size", min(50, max(4, (space.trials or 50) // 5)))  # five generations
    seed = int.from_bytes(hashlib.sha256(f"{space.sampler_seed} {stage} {number}".encode()).digest()[:4], "big")
    with quietly():
        found: optuna.samplers.BaseSampler = _SAMPLERS[name](seed=seed, **settings)
    return found


def pruner(space: SearchSpace) -> optuna.pruners.BasePruner:
    """The pruner of a study."""
    ((name, settings),) = space.pruner.items()
    with quietly():
        found: optuna.pruners.BasePruner = _PRUNERS[name](**settings)
    return found


def suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    """The sampler's value for a setting, or the one that the trial was begun with."""
    name, kind = parameter.name, parameter.distribution
    if kind.choice is not None:
        return kind.labels[trial.suggest_categorical(name, list(kind.labels))]
    low, high = getattr(kind, kind.kind)
    is_log = kind.scale == "log"
    if kind.kind.startswith("int"):
        return trial.suggest_int(name, low, high, step=int(kind.step or 1), log=is_log)
    return trial.suggest_float(name, low, high, step=kind.step, log=is_log)


def fixed(parameters: list[Parameter], cell: dict[str, Any]) -> dict[str, Any]:
    """What a trial is begun with so that `suggest` says the values of a grid's cell."""
    choices = {one.name: one.distribution.labels for one in parameters}
    return {
        name: next((label for label, choice in choices[name].items() if choice == value), value)
        for name, value in cell.items()
    }


@contextmanager
def quietly() -> Iterator[None]:
    """Without Optuna's notices: something is experimental, few trials say little of importances, and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message=".*[Ii]mportance")
        warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")
        warnings.filterwarnings("ignore", message=".*[Hh]eartbeat of storage is supposed")
        yield
