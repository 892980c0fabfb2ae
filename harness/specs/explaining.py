"""What a setting means and may be, and what is wrong with one: in the words of who typed it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, get_args

from harness import registry
from harness.errors import SpecError
from harness.registry import MAPS
from harness.settings import Settings
from harness.specs import yaml_source
from harness.specs.schema import Spec


def explain(
    problem: Any,
    places: yaml_source.Places,
    siblings_of: Callable[[list[str]], list[str]],
    is_nullable: Callable[[list[str]], bool],
) -> str:
    """One line for one pydantic error: where, what, what instead.

    `siblings_of` a path: the keys that may stand there. `is_nullable`: whether null may.
    """
    path = _path(problem)
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    if not path:  # a rule over several settings names its key in its message
        key, message = message.split(": ", 1)
        path = key.split(".")
    if problem["type"] == "extra_forbidden":
        message = unknown_key(path[-1], siblings_of(path))
    elif problem["type"] == "missing":
        message = "missing"
    elif problem["type"] in ("model_type", "dict_type"):
        known = siblings_of([*path, ""])
        inside = f"a section of settings: {', '.join(known)}" if known else "a map, such as {}"
        message = f"found {value!r}, but this is {inside}"
    elif not isinstance(value, dict | Settings):
        message = f"{message}, found {value!r}{_as_meant(value, message, is_nullable(path))}"
    return f"{places.named(path)}: {message}"


def _as_meant(value: Any, message: str, is_nullable: bool) -> str:
    """What a value may have been meant as, and how that is written."""
    if value == "None" and is_nullable:
        return "; nothing is written `null`"
    return f"; a list is written [{value}]" if "valid list" in message and isinstance(value, str | int | float) else ""


def _path(problem: Any) -> list[str]:
    """The keys that lead to what a pydantic error is about; without the names of the types it was tried as."""
    return [str(part) for part in problem["loc"] if not str(part).startswith(("list[", "literal[", "constrained-"))]


def alternatives(problems: list[Any]) -> Iterator[Any]:
    """The problems; what one value should be, and is none of, in one."""
    for _, same in itertools.groupby(problems, lambda one: (_path(one), repr(one["input"]))):
        first, *others = same
        if all(one["msg"].startswith("Input should be ") for one in (first, *others)):
            also = (f" or {one['msg'].removeprefix('Input should be ')}" for one in others)
            yield {**first, "msg": "".join([first["msg"], *also])}
        else:
            yield from (first, *others)


_SHORT = {"lr": "learning_rate", "bs": "batch_size", "seed": "seeds", "wd": "weight_decay", "warmup": "warmup_steps"}
"""What other tools call some settings."""


def unknown_key(key: str, known: list[str]) -> str:
    """What is said of a key that does not exist: where one of its name stands, the nearest, or all of them."""
    if key not in known and (elsewhere := setting_called(key)):
        return f"unknown key; did you mean `{elsewhere}`?"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown key; did you mean `{near[0]}`?" if near else f"unknown key; known: {', '.join(known)}"


def setting_called(name: str) -> str | None:
    """The dotted key of the one setting with this name, or with the name that it is short for; sections go first."""
    found = [key for key in _settings() if key.rpartition(".")[2] == _SHORT.get(name, name)]
    found = [key for key in found if key.partition(".")[0] not in MAPS] or found
    return found[0] if len(found) == 1 else None


def _settings() -> Iterator[str]:
    """Every setting that a spec can have, by its dotted key."""
    for section in siblings([""]):
        plugins = registry.names(section.removesuffix("s")) if section in MAPS else []
        for path in [[section, name] for name in plugins] or [[section]]:
            here = settings_at(path)
            yield from [".".join([*path, name]) for name in (here.model_fields if here else ())] or [".".join(path)]


def described(chosen: Spec, asked: str) -> list[tuple[str, Any, str]]:
    """Key, value and meaning of a setting of this spec, or of all settings of a section.

    Raises:
        SpecError: it has no such key.
    """
    values = chosen.resolved()
    known: dict[str, Any] = {}
    for key in _settings():
        if (value := _value(values, key)) is not _ABSENT:
            known |= {key: value, **_inner(key, value, asked)}
    for key in (asked, setting_called(asked) or asked):
        below = [one for one in known if f"{one}.".startswith(f"{key}.")]
        if found := below or [one for one in known if key.startswith(f"{one}.")]:
            return [(one, known[one], _meaning(one)) for one in found]
    plugin = asked.split(".")[:2]
    near = difflib.get_close_matches(asked, [*known, *(key.rpartition(".")[0] for key in known)], n=1)
    fix = f"did you mean '{near[0]}'?" if near else f"harness show {chosen.name} lists them all"
    if settings_at(plugin):
        fix = f"it has no {'.'.join(plugin)}: look at it with '{'.'.join(plugin)}={{}}'"
    raise SpecError(f"{chosen.name} has no setting '{asked}'", fix=fix)


def _inner(key: str, value: Any, asked: str) -> dict[str, Any]:
    """The settings of a section inside a section, such as `model.architecture`; their defaults if it is asked for."""
    inner = settings_at(key.split("."))
    if key.split(".")[0] in MAPS or inner is None or not (value or f"{asked}.".startswith(f"{key}.")):
        return {}
    return {
        f"{key}.{name}": (value or {}).get(name, field.get_default(call_default_factory=True))
        for name, field in inner.model_fields.items()
    }


_ABSENT = object()


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part, _ABSENT) if isinstance(tree, dict) else _ABSENT
    return tree


def _meaning(key: str) -> str:
    """What the source says below a setting; of a plug-in without settings, its first line."""
    *path, last = key.split(".")
    if here := settings_at(path):
        return next(meaning for name, _, meaning in registry.describe_fields(here) if name == last)
    return registry.describe(path[0].removesuffix("s"), last).story.partition("\n")[0]


def settings_at(path: list[str]) -> type[Settings] | None:
    """The class of a section or a plug-in; None: there is none."""
    if len(path) == 2 and path[0] in MAPS:
        kind = path[0].removesuffix("s")
        return registry.settings_class(kind, path[1]) if path[1] in registry.names(kind) else None
    here: type[Settings] = Spec
    for part in path:
        annotation = here.model_fields[part].annotation if part in here.model_fields else None
        kinds = (annotation, *get_args(annotation))  # a section that may be null is one, too
        found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)
        if found is None:
            return None
        here = found
    return here


def siblings(path: list[str]) -> list[str]:
    """The keys that may stand where an unknown one stands."""
    here = settings_at(path[:-1])
    return sorted(here.model_fields.keys() - ({"name", "story"} if here is Spec else set())) if here else []


def may_be_null(path: list[str]) -> bool:
    """Whether a setting may be null."""
    here = settings_at(path[:-1])
    field = here.model_fields.get(path[-1]) if here else None
    return field is not None and type(None) in get_args(field.annotation)
