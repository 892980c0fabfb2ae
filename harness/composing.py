"""YAML files and overrides -> plain values, by Hydra's compose API. The only door to Hydra and OmegaConf."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.errors import SpecError


def compose(folder: Path, name: str, overrides: list[str]) -> dict[str, Any]:
    """The values of `<folder>/<name>.yaml`, with the files it builds on, and the overrides on top.

    Args:
        folder: where the files are.
        name: a file, without `.yaml`.
        overrides: `key=value` with dotted keys, which need not exist; `~key` removes.

    Raises:
        SpecError: an override that cannot be read, or refers to the environment or to other keys.
    """
    from hydra import compose as merge
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    asked = [override if override[:1] in "~+" else f"++{override}" for override in overrides]
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise SpecError(f"'{override}' is not an override", fix="write key=value, or ~key to remove a key")
        if "${" in override:
            raise SpecError(
                f"'{override}': specs cannot refer to the environment or to other keys", fix="write the value"
            )
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed: Any = OmegaConf.to_container(merge(name, overrides=asked), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).splitlines()[0]
        quoted = "quote values with special characters: 'data.name=\"my file (1).csv\"'"
        raise SpecError(first, where=" ".join(overrides) or f"{name}.yaml", fix=quoted) from None
    return dict(composed)


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
