"""Optuna's samplers and pruners by name and settings, and what a sampler is asked. With study.py the door to optuna."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from harness.errors import SpecError, did_you_mean
from harness.sweeps.space import Parameter, SearchSpace

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


def check(space: SearchSpace) -> None:
    """Raise SpecError for a setting that the sampler or the pruner does not have, or not with this value."""
    _check_settings("sampler", space.sampler, _SAMPLERS)
    _check_settings("pruner", space.pruner, _PRUNERS)


def _check_settings(kind: str, chosen: dict[str, dict[str, Any]], classes: dict[str, Any]) -> None:
    ((name, settings),) = chosen.items()
    known = set(inspect.signature(classes[name]).parameters) - {"seed", "constraints_func", "search_space"}
    for key in settings:
        if key not in known or name == "grid":
            fix = did_you_mean(key, known) if name != "grid" else "a grid has no settings"
            raise SpecError(f"unknown key `{key}`", where=f"{kind}.{name}", fix=fix)
    try:
        with quietly():
            classes[name](**settings)
    except (TypeError, ValueError, ImportError) as error:
        raise SpecError(str(error).splitlines()[0], where=f"{kind}.{name}") from None


def sampler(space: SearchSpace, parameters: list[Parameter], stage: str, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for one trial, seeded by its number: what it says does not depend on which process asks."""
    ((name, settings),) = space.sampler.items()
    settings = dict(settings)
    if name == "tpe":
        settings.setdefault("multivariate", True)
        settings.setdefault("group", any(one.distribution.when for one in parameters))
        settings.setdefault("n_startup_trials", min(10, max(3, (space.trials or 30) // 3)))
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


def suggest(trial: optuna.Trial, parameter: Parameter, cell: dict[str, Any] | None) -> Any:
    """The sampler's value for a setting, or that of a grid's cell."""
    name, kind = parameter.name, parameter.distribution
    if kind.choice is not None:
        labels = {_label(value): value for value in kind.choice}
        given = [_label(cell[name])] if cell else list(labels)
        return labels[trial.suggest_categorical(name, given)]
    low, high = getattr(kind, kind.kind)
    if cell:
        low = high = cell[name]
    if kind.kind.startswith("int"):
        step = 1 if cell or kind.step is None else int(kind.step)
        return trial.suggest_int(name, low, high, step=step, log=kind.scale == "log" and not cell)
    return trial.suggest_float(name, low, high, step=None if cell else kind.step, log=kind.scale == "log" and not cell)


def _label(value: Any) -> Any:
    """A choice as Optuna keeps it: scalars as they are, lists and maps as JSON."""
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value, sort_keys=True)


@contextmanager
def quietly() -> Iterator[None]:
    """Without Optuna's notices that something is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message=".*[Hh]eartbeat of storage is supposed")
        yield
