"""YAML files and overrides -> plain values, by Hydra's compose API. The only door to Hydra and OmegaConf."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.errors import SpecError, did_you_mean


def compose(folder: Path, name: str, overrides: list[str], maps: Collection[str] = ()) -> dict[str, Any]:
    """The values of `<folder>/<name>.yaml`, with the files it builds on, and the overrides on top, in their order.

    Args:
        folder: where the files are.
        name: a file, without `.yaml`.
        overrides: `key=value` with dotted keys, which need not exist; `~key` removes.
        maps: sections in which a map that is given takes the place of the one that is there. In all others it changes
            the settings it names.

    Raises:
        SpecError: an override that cannot be read, refers to the environment or to other keys, or removes nothing.
    """
    from hydra import compose as merge
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    asked, where = [(override, *_read(override)) for override in overrides], f"{name}.yaml"
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed: Any = merge(name)
        OmegaConf.set_struct(composed, False)
        for override, key, value in asked:
            where = override
            if override.startswith("~"):
                _remove(composed, key, name, override)
            else:
                is_merged = not (isinstance(value, dict) and key.split(".")[0] in maps)
                OmegaConf.update(composed, key, value, merge=is_merged, force_add=True)
        values: Any = OmegaConf.to_container(composed, resolve=True)
        return dict(values)
    except (HydraException, OmegaConfBaseException) as error:
        raise SpecError(str(error).splitlines()[0], where=where) from None


def _read(override: str) -> tuple[str, Any]:
    """Key and value of an override; the value of one that removes is None.

    Raises:
        SpecError: it has no value, too many, or one that cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    is_removal, (key, equals, text) = override.startswith("~"), override.lstrip("+").partition("=")
    if is_removal == bool(equals):
        raise SpecError(f"'{override}' is not an override", fix="write key=value, or ~key to remove a key")
    if "${" in override:
        raise SpecError(f"'{override}': specs cannot refer to the environment or to other keys", fix="write the value")
    try:
        read = OverridesParser.create().parse_override(override if is_removal else f"++{key}={text}")
    except HydraException as error:
        fix = "quote values with special characters: 'data.name=\"my file (1).csv\"'"
        if written := re.sub(r"([{,]\s*\w+)\s*=\s*", r"\1: ", text) if text.startswith("{") else "":
            fix = f"a map is written with colons: '{key}={written}'" if written != text else fix
        raise SpecError(str(error).splitlines()[0], where=override, fix=fix) from None
    if read.is_sweep_override():
        fix = f"a list is written {key}=[{text}]; a study tries several values of one setting: sweep=<search space>"
        raise SpecError("one value is expected", where=override, fix=fix)
    return str(read.get_key_element()).lstrip("+~"), read.value()


def _remove(composed: Any, key: str, name: str, override: str) -> None:
    """Take a key out. Raises SpecError if it is not there."""
    inside = composed
    *sections, last = key.split(".")
    for section in sections:
        inside = inside.get(section) if hasattr(inside, "keys") else None
    known = [str(other) for other in inside] if hasattr(inside, "keys") else []
    if last not in known:
        raise SpecError(f"{name} has no {key}", where=override, fix=did_you_mean(last, known))
    del inside[last]


def override(key: str, value: Any) -> str:
    """The override that gives a setting this value: `compose` reads exactly the value back.

    Args:
        key: dotted.
        value: None, bool, int, float, str, or lists and maps of them, maps with names as keys (`true` is none).
    """
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and not _is_word(value) else _quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(entry)}" for key, entry in value.items()) + "}"
    return repr(value)


def _is_word(text: str) -> bool:
    """Whether Hydra reads an unquoted word as something else than a string."""
    return text.lower() in ("true", "false", "null", "nan", "inf", "interval", "choice", "range", "glob", "sort")


def _quoted(text: str) -> str:
    """In Hydra's grammar a backslash counts only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"
