"""What a spec has that its experiment's file has not: settings that were given, plug-ins that were taken out."""

from __future__ import annotations

import re
import shlex
from typing import Any

from harness.errors import SpecError
from harness.registry import MAPS
from harness.specs import composing, spec
from harness.specs.schema import Spec

_PLACES = ("output", "tracking.uri")
"""Told on lines of their own."""
_OF_THE_RUN = ("name", "seeds", "output", "tracking", "provenance", "latency", "compression", "checkpoint")
_OF_THE_END = ("evaluation.final", "evaluation.baselines")


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


def given(chosen: Spec) -> list[str]:
    """What a spec has that its experiment's file has not, as words of a command; [] where there is no such file."""
    try:
        filed = spec.load(chosen.name).flat() if chosen.name in spec.names() else {}
    except SpecError:  # it was edited since the run began
        filed = {}
    own = chosen.flat()
    if not filed:
        return []
    gone = [f"~{plugin}" for plugin in removed(own, filed)]
    words = [_word(key, own[key]) for key in changed(own, filed) if key not in _PLACES]
    return [shlex.quote(word) for word in (*gone, *words)]


def _word(key: str, value: Any) -> str:
    """As people type it: without the quotes that Hydra takes for certain, where it reads the same without."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./:@+-]*|[0-9]+ [a-z]+", value)
    is_plain = is_word and value.lower() not in ("true", "false", "null", "nan", "inf")
    return f"{key}={value}" if is_plain else composing.override(key, value)


def story(chosen: Spec) -> str:
    """What an experiment's file says of it; with other settings their words alone: its scores are not theirs."""
    words = [word for word in given(chosen) if is_of_training(word.strip("'").lstrip("~").partition("=")[0])]
    own = "" if words else chosen.story.strip()
    return own or f"Experiment `{' '.join([chosen.name, *words])}`."


def is_of_training(key: str) -> bool:
    """Whether a setting can change what is trained."""
    return key.split(".")[0] not in _OF_THE_RUN and key not in _OF_THE_END
