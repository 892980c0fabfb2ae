"""The folder is the registry: `methods: {lora: ...}` names `harness/methods/lora.py`, which holds one such class.

Settings are read from a plug-in's source without importing it: its heavy libraries take seconds to import, and a
mistake in a spec must be told at once. Therefore the field annotations of a plug-in use only builtins, `typing`,
`pydantic` and `harness.units`; the contract tests hold every file to that.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import SpecError, did_you_mean
from harness.settings import Settings

FOLDERS = {"task": "tasks", "method": "methods", "metric": "metrics"}
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
    check_name(kind, name)
    tree = ast.parse((_ROOT / FOLDERS[kind] / f"{name}.py").read_text(encoding="utf-8"))
    plugin = _plugin_class(tree, kind)
    light = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in _LIGHT_MODULES]
    fields: list[ast.stmt] = [node for node in plugin.body if isinstance(node, ast.AnnAssign) and _is_public(node)]
    plugin.bases, plugin.decorator_list = [ast.Name("Settings", ast.Load())], []
    plugin.body = fields or [ast.Pass()]
    module = ast.fix_missing_locations(ast.Module([*light, plugin], type_ignores=[]))
    scope: dict[str, Any] = {"Settings": Settings, "__name__": f"harness.{FOLDERS[kind]}.{name}"}
    exec(compile(module, f"<settings of {name}>", "exec", dont_inherit=True), scope)  # noqa: S102 - our own source, field declarations only
    found: type[Settings] = scope[plugin.name]
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
    check_name(kind, name)
    tree = ast.parse((_ROOT / FOLDERS[kind] / f"{name}.py").read_text(encoding="utf-8"))
    body, known = _plugin_class(tree, kind).body, settings_class(kind, name).model_fields
    fields = []
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in known:
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            field = known[node.target.id]
            default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
            choices = re.findall(r"'(\w+)'", ast.unparse(node.annotation))
            allowed = f" ({' | '.join(choices)})" if choices else ""
            fields.append((node.target.id, default, " ".join(str(said).split()) + allowed))
    return Described(ast.get_docstring(tree) or "", fields)


def produces(metric: str) -> tuple[str, ...]:
    """The keys a metric gives whatever the data, read without importing it."""
    found: tuple[str, ...] = getattr(settings_class("metric", metric), "produces", ())
    return found


def is_less_better(key: str) -> bool:
    """Whether less of a score is better, as the metric that gives it declares; read without importing it."""
    return any(key in getattr(settings_class("metric", name), "less_is_better", ()) for name in names("metric"))


def not_after(method: str) -> dict[str, str]:
    """Methods that must not stand above this one, with the reason, read without importing it."""
    found: dict[str, str] = getattr(settings_class("method", method), "not_after", {})
    return found


def plugin(kind: str, name: str) -> Any:
    """The plug-in's class, imported. Raises SpecError if no such plug-in exists."""
    check_name(kind, name)
    module = importlib.import_module(f"harness.{FOLDERS[kind]}.{name}")
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    return getattr(module, _plugin_class(tree, kind).name)


def build(kind: str, name: str, settings: Settings | dict[str, Any]) -> Any:
    """Make a plug-in from its settings. Raises pydantic.ValidationError for settings that do not fit."""
    values = settings.model_dump() if isinstance(settings, Settings) else settings
    return plugin(kind, name)(**values)


def _is_public(node: ast.AnnAssign) -> bool:
    return isinstance(node.target, ast.Name) and not node.target.id.startswith("_")


def _plugin_class(tree: ast.Module, kind: str) -> ast.ClassDef:
    base = kind.capitalize()
    found = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == base for b in node.bases)
    ]
    assert len(found) == 1, f"a {kind} file holds exactly one class derived from {base}"
    return found[0]
