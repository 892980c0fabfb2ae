"""What a spec has that its experiment's file has not: settings that were given, plug-ins that were taken out."""

from __future__ import annotations

from typing import Any

MAPS = ("task", "methods", "metrics")
"""Sections that map plug-ins to their settings."""


def changed(own: dict[str, Any], filed: dict[str, Any]) -> list[str]:
    """The dotted keys of a spec whose value is not that of the file."""
    told = {key: value for key, value in own.items() if not (key in MAPS and value == {})}
    return [key for key, value in told.items() if key not in filed or filed[key] != value]


def removed(own: dict[str, Any], filed: dict[str, Any]) -> list[str]:
    """The plug-ins that the file has and the spec has not, such as `methods.lora`."""
    return sorted(_plugins(filed) - _plugins(own))


def _plugins(settings: dict[str, Any]) -> set[str]:
    parts = (key.split(".") for key in settings)
    return {".".join(part[:2]) for part in parts if part[0] in MAPS and len(part) > 1}
