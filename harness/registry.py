"""The folder is the registry: `methods: {lora: ...}` names `harness/methods/lora.py`, which holds one such class.

Settings are read from a plug-in's source without importing it: its heavy libraries take seconds to import, and a
mistake in a spec must be told at once. Therefore the field annotations of a plug-in use only builtins, `typing`,
`pydantic` and `harness.units`; the contract tests hold every file to that. What several plug-ins share may stand in a
class between them and the contract, in a module of its own.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from harness.errors import SpecError, did_you_mean
from harness.settings import Settings

FOLDERS = {"task": "tasks", "method": "methods", "metric": "metrics"}
MAPS = ("task", "methods", "metrics")
"""Sections of a spec that map plug-ins to their settings."""
_ROOT = Path(__file__).parent
_LIGHT_MODULES = {"typing", "collections.abc", "pydantic", "harness.units"}


def names(kind: str) -> list[str]:
    """The names of all tasks, methods or metrics."""
    return sorted(path.stem for path in (_ROOT / FOLDERS[kind]).glob("*.py") if not path.stem.startswith("_"))


def check_name(kind: str, name: str, where: str = "") -> None:
    """Raise SpecError, with the nearest name, if no such file exists."""
    if name not in names(kind):
        raise SpecError(f"no {kind} is called '{name}'", where=where, fix=did_you_mean(name, names(kind)))


@cache
def settings_class(kind: str, name: str) -> type[Settings]:
    """The fields of a plug-in as a `Settings` class, read from its source without importing it.

    Raises:
        SpecError: no such plug-in.
    """
    return _settings(_plugin(kind, name), f"<settings of {name}>")


def _settings(of: _Plugin, where: str) -> type[Settings]:
    above = _settings(of.above, where) if of.above else Settings
    light = [node for node in of.tree.body if isinstance(node, ast.ImportFrom) and node.module in _LIGHT_MODULES]
    fields: list[ast.stmt] = [node for node in of.node.body if isinstance(node, ast.AnnAssign) and _is_public(node)]
    bases: list[ast.expr] = [ast.Name("Settings", ast.Load())]
    node = ast.ClassDef(of.node.name, bases, keywords=[], body=fields or [ast.Pass()], decorator_list=[])
    module = ast.fix_missing_locations(ast.Module([*light, node], type_ignores=[]))
    scope: dict[str, Any] = {"Settings": above, "__name__": of.module}
    exec(compile(module, where, "exec", dont_inherit=True), scope)  # noqa: S102 - our own source, field declarations only
    found: type[Settings] = scope[node.name]
    return found


@dataclass(frozen=True)
class Described:
    """What a plug-in's source says about it."""

    story: str
    """The docstring of the file: what it does, formulas, sources, hazards."""
    fields: list[tuple[str, str, str]]
    """Name, default and meaning of every setting, with what its annotation allows."""


def describe(kind: str, name: str) -> Described:
    """Read a plug-in's documentation without importing it. Raises SpecError if no such plug-in exists."""
    return Described(ast.get_docstring(_plugin(kind, name).tree) or "", describe_fields(settings_class(kind, name)))


def describe_fields(settings: type[Settings]) -> list[tuple[str, str, str]]:
    """Name, default and meaning of every setting, as `Described` has them: what stands below it in the source."""
    said = {name: text for one in reversed(settings.__mro__) for name, text in _said(one).items()}
    described = []
    for name, field in settings.model_fields.items():
        default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        allowed = f"({told})" if (told := _allowed(field)) else ""
        described.append((name, default, f"{said.get(name, '')} {allowed}".strip()))
    return described


def _said(of: type) -> dict[str, str]:
    """The texts below the fields of a class of ours."""
    if not of.__module__.startswith("harness."):
        return {}
    (body,) = (node.body for node in _classes(_source(of.__module__)) if node.name == of.__name__)
    return {
        node.target.id: " ".join(after.value.value.split())
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }


def _allowed(field: FieldInfo) -> str:
    """What a value may be, where its type does not say it: words, bounds, null."""
    bounds = [
        f"{sign} {getattr(one, name)}"
        for one in field.metadata
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if hasattr(one, name)
    ]
    null = ["or null"] if type(None) in get_args(field.annotation) else []
    return ", ".join([*([" | ".join(words)] if (words := _words(field.annotation)) else []), *bounds, *null])


def _words(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _words(part)]


def produces(metric: str) -> tuple[str, ...]:
    """The keys a metric gives whatever the data, read without importing it."""
    found: tuple[str, ...] = getattr(settings_class("metric", metric), "produces", ())
    return found


def is_less_better(key: str) -> bool:
    """Whether less of a score is better, as the metric that gives it declares; read without importing it."""
    return any(key in getattr(settings_class("metric", name), "less_is_better", ()) for name in names("metric"))


def producer(key: str, predictions: str | None = None) -> str:
    """The metric that gives a key, from this class of predictions if one is named. Raises SpecError: there is none."""
    for name in names("metric"):
        if key in produces(name) and (predictions is None or _is_made(predictions_of("metric", name), predictions)):
            return name
    raise SpecError(
        f"no metric gives '{key}'", fix=did_you_mean(key, {k for n in names("metric") for k in produces(n)})
    )


def predictions_of(kind: Literal["task", "metric"], name: str) -> str:
    """The class of predictions that a task makes or a metric reads, by its name; read without importing it."""
    plugin = _plugin(kind, name).node
    if kind == "metric":
        return next(ast.unparse(base.slice) for base in plugin.bases if isinstance(base, ast.Subscript))
    (predict,) = (node for node in plugin.body if isinstance(node, ast.FunctionDef) and node.name == "predict")
    return ast.unparse(predict.returns) if predict.returns else ""


def reads(metric: str, task: str) -> bool:
    """Whether a metric reads the predictions that a task makes: that class, or one above it."""
    return _is_made(predictions_of("metric", metric), predictions_of("task", task))


def _is_made(wanted: str, found: str) -> bool:
    """Whether a class of predictions is the wanted one, or derives from it."""
    above = {node.name: list(map(_named, node.bases)) for node in _classes(_source("harness.predictions"))}
    made = [found]
    while made:
        if wanted in made:
            return True
        made = [base for one in made for base in above.get(one, [])]
    return False


def not_after(method: str) -> dict[str, str]:
    """Methods that must not stand above this one, with the reason, read without importing it."""
    found: dict[str, str] = getattr(settings_class("method", method), "not_after", {})
    return found


def plugin(kind: str, name: str) -> Any:
    """The plug-in's class, imported. Raises SpecError if no such plug-in exists."""
    found = _plugin(kind, name)
    return getattr(importlib.import_module(found.module), found.node.name)


def build(kind: str, name: str, settings: Settings | dict[str, Any]) -> Any:
    """Make a plug-in from its settings. Raises SpecError for settings that do not fit, alone or together."""
    values = settings.model_dump() if isinstance(settings, Settings) else settings
    made = plugin(kind, name)
    try:
        return made(**values)
    except ValidationError as error:
        section = next(section for section in MAPS if section.removesuffix("s") == kind)
        told = (
            f"{'.'.join([section, name, *map(str, one['loc'])])}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise SpecError("\n".join(told)) from None


def _named(base: ast.expr) -> str:
    """`Metric` of the base classes `Metric` and `Metric[...]`."""
    base = base.value if isinstance(base, ast.Subscript) else base
    return base.id if isinstance(base, ast.Name) else ""


def _is_public(node: ast.AnnAssign) -> bool:
    return isinstance(node.target, ast.Name) and not node.target.id.startswith("_")


class _Plugin(NamedTuple):
    """A class that derives from a contract, as its source has it."""

    module: str
    tree: ast.Module
    node: ast.ClassDef
    above: _Plugin | None
    """The class of another module between it and the contract."""


def _plugin(kind: str, name: str) -> _Plugin:
    """Raises SpecError: no such plug-in exists."""
    check_name(kind, name)
    module = f"harness.{FOLDERS[kind]}.{name}"
    found = list(filter(None, (_derived(kind, module, node.name) for node in _classes(_source(module)))))
    assert len(found) == 1, f"a {kind} file holds exactly one class derived from {kind.capitalize()}"
    return found[0]


def _derived(kind: str, module: str, name: str) -> _Plugin | None:
    """A class of a module of ours, if it derives from the contract: itself, or through a class that it imports."""
    tree = _source(module)
    for node in _classes(tree):
        for base in map(_named, node.bases if node.name == name else []):
            if base == kind.capitalize():
                return _Plugin(module, tree, node, None)
            if (home := _home(tree, base)) and (above := _derived(kind, home, base)):
                return _Plugin(module, tree, node, above)
    return None


def _home(tree: ast.Module, name: str) -> str | None:
    """The module of ours that a name is imported from."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    homes = [node.module for node in imports if any(alias.name == name for alias in node.names)]
    return next((home for home in homes if home and home.startswith("harness.")), None)


def _source(module: str) -> ast.Module:
    return ast.parse(_ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8"))


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]
