"""The values that a setting may take in a study: choices or a range, and the conditions under which it has them."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from harness.errors import did_you_mean
from harness.settings import Settings


class Distribution(Settings):
    """The values a setting may take: exactly one of the first five."""

    choice: list[Any] | None = Field(default=None, min_length=1)
    """These, of whatever type the setting has."""
    uniform: tuple[float, float] | None = None
    """From the first to the second number."""
    log_uniform: tuple[float, float] | None = None
    """The same, equally likely in every order of magnitude."""
    int_uniform: tuple[int, int] | None = None
    """Whole numbers from the first to the second, both included."""
    int_log_uniform: tuple[int, int] | None = None
    """The same, equally likely in every order of magnitude."""
    step: float | None = Field(default=None, gt=0)
    """Distance of the values of `uniform` and `int_uniform`."""
    when: dict[str, Any] = Field(default={})
    """Only where keys that are searched above have this value, or one of these."""

    @model_validator(mode="before")
    @classmethod
    def _is_map(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            form = "{log_uniform: [1.0e-4, 1.0e-2]} or {choice: [1, 2, 4]}"
            raise ValueError(f"values are given as {form}; one value for all trials stands without `space.`")
        return given

    @field_validator("uniform", "log_uniform", "int_uniform", "int_log_uniform", mode="before")
    @classmethod
    def _pair(cls, bounds: Any) -> Any:
        return tuple(bounds) if isinstance(bounds, list) else bounds

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(_KINDS)} is needed")
        kind = given[0]
        if kind == "choice":
            if len(self.labels) < len(self.choice or ()):
                raise ValueError("the choices are distinct (and 1, 1.0 and true are the same)")
        else:
            low, high = getattr(self, kind)
            if low >= high or (low <= 0 and "log" in kind):
                raise ValueError(f"{kind} is [low, high], low below high" + (", above 0" if "log" in kind else ""))
        if self.step is not None and kind not in ("uniform", "int_uniform"):
            raise ValueError(f"step does not go with {kind}")
        if self.step is not None and kind == "int_uniform" and self.step != int(self.step):
            raise ValueError("step of int_uniform is a whole number")
        return self

    @property
    def kind(self) -> str:
        """Which of the five."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def labels(self) -> dict[Any, Any]:
        """The choices by what Optuna keeps of them: scalars as they are, lists and maps as JSON."""
        scalars = (str, int, float, bool, type(None))
        return {
            value if isinstance(value, scalars) else json.dumps(value, sort_keys=True): value
            for value in self.choice or ()
        }

    @property
    def scale(self) -> str:
        """`choice`, `log` or `linear`."""
        return "choice" if self.kind == "choice" else "log" if "log" in self.kind else "linear"

    @property
    def extremes(self) -> list[Any]:
        """Every choice, or both ends: if these are right, what lies between is."""
        return list(self.choice) if self.choice else list(getattr(self, self.kind))

    @property
    def values(self) -> list[Any] | None:
        """All values; None where there is no end of them."""
        if self.choice:
            return list(self.choice)
        low, high = getattr(self, self.kind)
        if self.kind.startswith("int"):
            return list(range(low, high + 1, int(self.step or 1)))
        if self.step is None:
            return None
        several = range(int((high - low) / self.step * (1 + 1e-12)) + 1)
        return [min(float(f"{low + i * self.step:.12g}"), high) for i in several]  # 0.3, not 0.30000000000000004


_KINDS = ("choice", "uniform", "log_uniform", "int_uniform", "int_log_uniform")


@dataclass(frozen=True)
class Parameter:
    """One entry of a search space."""

    key: str
    """Dotted key of the spec, or `exp`."""
    name: str
    """The key; where it has several ranges, with the condition of this one."""
    distribution: Distribution

    def applies(self, chosen: dict[str, Any]) -> bool:
        """Whether its condition holds for what was chosen so far."""
        return all(key in chosen and chosen[key] in as_list(value) for key, value in self.distribution.when.items())


def as_list(value: Any) -> list[Any]:
    """The value of a condition: one, or several of which one must hold."""
    return value if isinstance(value, list) else [value]


def _is_range(given: dict[str, Any]) -> bool:
    """Whether a map gives values, perhaps misspelt, and not maps of keys below it."""
    is_nested = all(one and all(isinstance(each, dict) for each in as_list(one)) for one in given.values())
    return not is_nested and any(difflib.get_close_matches(key, Distribution.model_fields, n=1) for key in given)


def _flattened(space: Any, prefix: str = "") -> Any:
    """A space with one entry per dotted key, however deep an override has nested it; each entry a list."""
    if not isinstance(space, dict):
        return space
    flat: dict[str, Any] = {}
    for key, value in space.items():
        if isinstance(value, dict) and value and not _is_range(value):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = as_list(value)
    return flat


Space = Annotated[dict[str, list[Distribution]], BeforeValidator(_flattened)]
"""Dotted key of the spec -> its ranges, in the order of the file."""


def condition_problems(section: str, space: Space) -> Iterator[str]:
    """A line for each condition that can never hold, and for ranges of a key that could both apply."""
    above: dict[str, list[Any]] = {}
    for key, entries in space.items():
        conditions = [pair for entry in entries for pair in entry.when.items()]
        for name, wanted in conditions:
            if name not in above:
                yield f"{section}.{key}: `when` names {name}, which is not searched above it"
            elif never := [value for value in as_list(wanted) if value not in above[name]]:
                hint = did_you_mean(str(never[0]), map(str, above[name])) if above[name] else "it has a range"
                yield f"{section}.{key}: `when` asks for {name} = {never[0]}, which is no value of it; {hint}"
        for one, other in itertools.combinations(entries, 2):
            common = one.when.keys() & other.when.keys()
            if not any(not _shared(one.when[name], other.when[name]) for name in common):
                yield f"{section}.{key}: two of its ranges can apply at once; give them conditions"
        above[key] = [value for entry in entries for value in entry.values or ()]


def _shared(one: Any, other: Any) -> list[Any]:
    return [value for value in as_list(one) if value in as_list(other)]
