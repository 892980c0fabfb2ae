"""A part of a source as rows of cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A part of a source as it was read: for each row where it stands, for messages, and its cells."""

    columns: list[str]
    cells: list[tuple[str, dict[str, Any]]]
    labels: list[str] | None = None
    """In the order of the source, if it has one."""
    is_rated: bool = False
    """Cells also hold `id` and `ratings`."""


Parts = dict[str, Callable[[], Table]]
"""The parts of a source by name, each with what reads it."""
