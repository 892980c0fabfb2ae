"""A search space: which settings of a spec a study tries, what it is after, and what it is measured against.

One YAML file of `search_spaces/` is one study. The keys of its `space` are dotted keys of the spec; every value that a
trial chooses becomes an override, as if it had been typed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self, get_args

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from harness.errors import SpecError, did_you_mean
from harness.settings import Settings
from harness.specs import composing, explaining, schema, spec, yaml_source
from harness.storage import PROJECT
from harness.sweeps.distribution import Distribution, Parameter, Space, condition_problems
from harness.sweeps.trials import Arm

SPACES = PROJECT / "search_spaces"
SAMPLERS = ("tpe", "gp", "random", "grid", "cmaes", "nsga2")
PRUNERS = ("none", "median", "percentile", "hyperband", "successive_halving", "wilcoxon")


class Objective(Settings):
    """What a study is after."""

    metric: str
    """`validation/<name>` at the checkpoint that is kept, or one of what every trial records."""
    direction: Literal["maximize", "minimize"]


class Baseline(Settings):
    """What the search is measured against: tuned in the same study, under the same budget, data and seeds."""

    exp: str
    """The experiment."""
    space: Space = Field(default={})
    """What is tuned of it."""


class Confirm(Settings):
    """The best configurations are trained again on fresh seeds; then the best one is judged on the test split, once."""

    top: int = Field(ge=1)
    """How many of the search, and of the baseline."""
    seeds: list[int] = Field(min_length=2)
    """None of which the search used."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        return schema.distinct_seeds(seeds)


class Resources(Settings):
    """What a worker reserves on a Ray cluster."""

    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)


class SearchSpace(Settings):
    """One study. On the command line its keys stand beside those of the spec: `trials=8 train.epochs=2`."""

    name: str
    story: str
    """The comment at the top of the file: what it asks."""
    objective: list[Objective] = Field(min_length=1)
    """One, or several: then nothing is pruned, and the result is a Pareto front."""
    space: Space
    """Dotted key of the spec -> values; a list of them, each with a condition, where they depend on other keys. The key
    `exp` chooses among experiments."""
    baseline: Baseline | None = None
    trials: int | None = Field(default=None, ge=1)
    """How many trials the search has in total, and the baseline as many. None: with `grid` all of them."""
    minutes: float | None = Field(default=None, gt=0)
    """The search, and the baseline likewise, begins no trial when its trials took so long in total."""
    trial_minutes: float | None = Field(default=None, gt=0)
    """A trial that takes longer is ended, and counts as one that broke a constraint."""
    sampler: dict[str, dict[str, Any]] = Field(default={"tpe": {}})
    """Name -> settings of Optuna's class."""
    sampler_seed: int = Field(default=0, ge=0)
    pruner: dict[str, dict[str, Any]] = Field(default={"none": {}})
    """Name -> settings of Optuna's class."""
    constraints: dict[str, float] = Field(default={})
    """Metric -> largest value; a trial beyond it is never the best, and the sampler learns from it."""
    confirm: Confirm | None = None
    study: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """Its name. None: that of the space, and of the experiment."""
    storage: str | None = None
    """Where Optuna keeps it. None: a journal file in the study's folder; for several machines
    `postgresql+psycopg://user@host/database`."""
    heartbeat_seconds: int = Field(default=60, ge=1)
    """How often a worker shows a database that it lives; it is given up after three times as long."""
    workers: int = Field(default=1, ge=1)
    """Processes on this machine that take trials."""
    executor: Literal["local", "ray"] = "local"
    """ray: the workers are Ray's, on whatever machines its cluster has."""
    resources: Resources = Resources()

    _places: yaml_source.Places | None = PrivateAttr(None)

    @field_validator("objective", mode="before")
    @classmethod
    def _several(cls, objective: Any) -> Any:
        return [objective] if isinstance(objective, dict) else objective

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _named(cls, chosen: Any, info: ValidationInfo) -> Any:
        found = {chosen: {}} if isinstance(chosen, str) else chosen
        if not isinstance(found, dict):
            return found
        if len(found) != 1:
            raise ValueError("name exactly one")
        (name, settings), known = *found.items(), SAMPLERS if info.field_name == "sampler" else PRUNERS
        if name not in known:
            raise ValueError(f"no {info.field_name} is called so; {did_you_mean(str(name), known)}")
        return {name: settings or {}}

    @model_validator(mode="after")
    def _alive(self) -> Self:
        """Refuse settings that do not go together, all at once: one line each, which begins with its key."""
        problems = [*self._engine_problems(), *condition_problems("space", self.space)]
        problems += condition_problems("baseline.space", self.baseline.space) if self.baseline else []
        if self.trials is None and self.minutes is None and "grid" not in self.sampler:
            problems.append("trials: say how many, or for how many minutes")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _engine_problems(self) -> Iterator[str]:
        ((sampler, _),), ((pruner, _),) = self.sampler.items(), self.pruner.items()
        if len(self.objective) > 1 and pruner != "none":
            yield "pruner: with several objectives nothing can be pruned; say none"
        if len(self.objective) > 1 and sampler == "cmaes":
            yield "sampler: cmaes has one objective; tpe, gp and nsga2 take several"
        entries = [one for arm in self.arms for parameters in self.entries(arm).values() for one in parameters]
        if sampler == "cmaes" and any(one.kind == "choice" for one in entries):
            yield "sampler: cmaes samples numbers only; use tpe where there are choices"
        if sampler == "cmaes" and self.constraints:
            yield "sampler: cmaes does not learn from constraints; use tpe, gp or nsga2"
        if sampler in ("cmaes", "gp") and any(one.when for one in entries):
            yield f"sampler: {sampler} knows no conditions (`when`); use tpe, random or nsga2"

    def entries(self, arm: Arm) -> Space:
        """What is searched, by key."""
        return self.baseline.space if arm == "baseline" and self.baseline else self.space

    def place(self, path: list[str]) -> str:
        """Where a setting of the study was given: `lora_rank.yaml:7`, or the override as typed."""
        return self._places.of(path) if self._places else f"{self.name}.yaml"

    def named(self, path: list[str], key: str) -> str:
        """The same with the key, where the place does not say it."""
        return self._places.named(path, key) if self._places else f"{self.name}.yaml: {key}"

    @property
    def arms(self) -> list[Arm]:
        """The search, and the baseline if there is one."""
        return ["search", "baseline"] if self.baseline else ["search"]

    def parameters(self, arm: Arm) -> list[Parameter]:
        """What is searched, in the order of the file: conditions name earlier keys."""
        found = []
        for key, entries in self.entries(arm).items():
            for entry in entries:
                told = ",".join(f"{key}={json.dumps(value)}" for key, value in entry.when.items())
                found.append(Parameter(key, f"{key}[{told}]" if len(entries) > 1 else key, entry))
        return found

    def choose(self, arm: Arm, suggest: Callable[[Parameter], Any]) -> dict[str, Any]:
        """A configuration: dotted key -> what `suggest` says for each parameter that applies."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters(arm):
            if parameter.applies(chosen):
                chosen[parameter.key] = suggest(parameter)
        return chosen

    def size(self, arm: Arm) -> int | None:
        """How many trials an arm has; None: as many as fit into `minutes`."""
        if not self.parameters(arm):
            return 1  # nothing to choose
        if "grid" not in self.sampler:
            return self.trials
        cells = len(self.grid(arm))
        return cells if self.trials is None else min(self.trials, cells)

    def grid(self, arm: Arm) -> list[dict[str, Any]]:
        """Every configuration, by the names of the parameters.

        Raises:
            SpecError: a range without a step has no end of values.
        """
        found: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]
        for parameter in self.parameters(arm):
            values = parameter.distribution.values
            if values is None:
                section, fix = "baseline.space" if arm == "baseline" else "space", "give `choice`, or a `step`"
                place = self.place([*section.split("."), parameter.key])
                what = f"{section}.{parameter.key}: a grid needs values that can be counted"
                raise SpecError(what, where=place, fix=fix)
            found = [
                (chosen | {parameter.key: value}, named | {parameter.name: value})
                for chosen, named in found
                for value in (values if parameter.applies(chosen) else [_ABSENT])
            ]
            found = [(_present(chosen), _present(named)) for chosen, named in found]
        return [named for _, named in found]


_ABSENT = object()


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not _ABSENT}


KEYS = SearchSpace.model_fields.keys() - {"name", "story"}
"""What may stand in a file, and beside the keys of a spec on the command line."""


def names() -> list[str]:
    """The search spaces that exist."""
    return sorted(path.stem for path in SPACES.glob("*.yaml"))


def load(name: str, overrides: list[str] | None = None) -> SearchSpace:
    """Read and validate a search space by itself; `mistakes.check` holds it against its experiments.

    Args:
        name: a file of `search_spaces/`, without `.yaml`.
        overrides: `key=value` with its own keys, such as `trials=8`.

    Raises:
        SpecError: everything that is wrong with it, at once.
    """
    if name not in names():
        raise SpecError(f"no search space is called '{name}'", where=f"sweep={name}", fix=did_you_mean(name, names()))
    source = yaml_source.read(SPACES / f"{name}.yaml")
    removed = [one for one in overrides or [] if one.startswith(("~space.", "~baseline.space."))]
    kept = [one for one in overrides or [] if one not in removed]
    composed = composing.compose(SPACES, name, kept, maps=("sampler", "pruner"))
    for one in removed:
        _remove(one, composed)
    places = yaml_source.Places([source], overrides or [])
    try:
        told = spec.comment(SPACES / f"{name}.yaml")
        found = SearchSpace.model_validate({**composed, "name": name, "story": told})
    except ValidationError as error:
        problems = [one for problem in error.errors() for one in _single(problem, source)]
        lines = [explaining.explain(problem, places, _siblings, _is_nullable) for problem in problems]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None
    found._places = places
    return found


def _remove(override: str, composed: dict[str, Any]) -> None:
    """Search a key no more; Hydra knows no keys with dots. Raises SpecError if it is not searched."""
    section, _, key = override.removeprefix("~").partition("space.")
    searched = ((composed.get("baseline") or {}) if section else composed).get("space", {})
    if key not in searched:
        raise SpecError(f"{key} is not searched", where=override, fix=did_you_mean(key, searched))
    del searched[key]


def _single(problem: Any, source: yaml_source.Source) -> Iterator[Any]:
    """One problem for each line of the message; the number of a range only where the file has several of them."""
    path: list[str] = []
    for part in problem["loc"]:
        if isinstance(part, str) or ".".join([*path, str(part)]) in source.lines:
            path.append(str(part))
    for line in problem["msg"].splitlines():
        yield {**problem, "loc": path, "msg": line}


def is_setting(override: str) -> bool:
    """Whether an override of the command line speaks of the study, not of the spec."""
    return override.lstrip("~+").split("=", 1)[0].split(".", 1)[0] in KEYS


def _siblings(path: list[str]) -> list[str]:
    """The keys that may stand where an unknown one stands."""
    inner: dict[str, type[Settings]] = {
        "baseline": Baseline, "confirm": Confirm, "objective": Objective, "resources": Resources,
    }  # fmt: skip
    if len(path) == 1 or path[0] not in (*inner, "space"):
        return sorted(KEYS)
    return sorted((Distribution if "space" in path[:2] else inner[path[0]]).model_fields)


def _is_nullable(path: list[str]) -> bool:
    field = SearchSpace.model_fields.get(path[0])
    return len(path) == 1 and field is not None and type(None) in get_args(field.annotation)
