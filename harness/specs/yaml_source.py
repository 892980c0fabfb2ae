"""Spec files as text: traps of YAML are refused with their line, and every key knows where it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import SpecError

_TRAPS = (
    (re.compile(r"(?i)(y|yes|n|no|on|off)"), "YAML 1.1 reads this as true or false"),
    (re.compile(r"[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"), "YAML 1.1 reads this as a number of base 60"),
    (re.compile(r"[-+]?0[0-9_]+"), "YAML 1.1 reads this as an octal number"),
)


@dataclass(frozen=True)
class Source:
    """A YAML file and the line of each dotted key; a map in a list has the key of the list and its number."""

    path: Path
    lines: dict[str, int]
    defaults: tuple[str, ...] = ()
    """The files it builds on, as its list `defaults` names them."""

    def plugins(self, section: str) -> list[str]:
        """The plug-ins that a section names, such as `methods.lora`."""
        return [key for key in self.lines if key.startswith(f"{section}.") and key.count(".") == 1]


def read(path: Path) -> Source:
    """Read and check a spec file.

    Raises:
        SpecError: with file:line, for a syntax error, a duplicate key, an alias, an interpolation, or a plain scalar
            that YAML 1.1 would read as something else than it looks like.
    """
    try:
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise SpecError("anchors and aliases are not allowed", where=_place(path, event), fix="write it out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise SpecError("not UTF-8", where=f"{path.name}", why=f"byte {error.start}", fix="save it as UTF-8") from None
    except OSError as error:
        raise SpecError("cannot be read", where=str(path), why=str(error)) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"not valid YAML: {error.problem}", where=f"{path.name}:{line}") from None
    lines: dict[str, int] = {}
    if root is not None:
        _walk(root, "", path, lines)
    return Source(path, lines, _defaults(root))


def load(path: Path) -> dict[str, Any]:
    """The values of a spec that was written by a run. Raises SpecError."""
    read(path)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise SpecError("not a spec", where=str(path))
    return values


def dump(values: dict[str, Any]) -> str:
    """Plain values as YAML that `load` reads back."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _walk(node: yaml.Node, prefix: str, path: Path, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            key = f"{prefix}{key_node.value}"
            if key in lines:
                raise SpecError(f"the key `{key}` stands twice", where=_place(path, key_node), fix="keep one of them")
            lines[key] = key_node.start_mark.line + 1
            _walk(value, f"{key}.", path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            if isinstance(item, yaml.MappingNode):
                lines[f"{prefix}{number}"] = item.start_mark.line + 1
            _walk(item, f"{prefix}{number}.", path, lines)
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        _check_scalar(node, path)


def _defaults(root: yaml.Node | None) -> tuple[str, ...]:
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    listed = [value.value for key, value in entries if key.value == "defaults" and isinstance(value.value, list)]
    return tuple(str(item.value) for found in listed for item in found)


def _check_scalar(node: yaml.ScalarNode, path: Path) -> None:
    for pattern, reading in _TRAPS:
        if pattern.fullmatch(node.value):
            fix = f'write "{node.value}" in quotes, or true / false, or a plain number'
            raise SpecError(f"{node.value!r} is ambiguous", where=_place(path, node), why=reading, fix=fix)
    if "${" in node.value:
        raise SpecError("specs cannot refer to the environment or to other keys", where=_place(path, node))


def _place(path: Path, at: yaml.Event | yaml.Node) -> str:
    return f"{path.name}:{at.start_mark.line + 1}" if at.start_mark else path.name


class Places:
    """Where a setting was given: on the command line, else in the last file that has it."""

    def __init__(self, files: list[Source], overrides: list[str]) -> None:
        self.files, self.overrides = files, overrides

    def of(self, path: list[str]) -> str:
        """`lora.yaml:7`, or the override as typed; for a missing key, the place of its nearest parent."""
        for end in range(len(path), 0, -1):
            key = ".".join(path[:end])
            for override in reversed(self.overrides):
                given, _, value = override.lstrip("+~").partition("=")
                inside = key.removeprefix(f"{given}.").split(".")  # of a map such as metrics={f1: {}}
                is_inside = key.startswith(f"{given}.") and all(re.search(rf"\b{one}\b", value) for one in inside)
                if given == key or given.startswith(f"{key}.") or is_inside:
                    return override
            for source in reversed(self.files):
                if key in source.lines:
                    return f"{source.path.name}:{source.lines[key]}"
        return self.files[-1].path.name

    def named(self, path: list[str], key: str = "") -> str:
        """The same with the key, where the place does not say it: `lora.yaml:7: train.epochs`, but `train.epochs=0`.

        `key`: what is said instead of the path.
        """
        place, key = self.of(path), key or ".".join(path)
        return place if place.lstrip("+").startswith(f"{key}=") else f"{place}: {key}"
