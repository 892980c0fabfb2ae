"""A part of a source as rows of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Cells = tuple[str, dict[str, Any]]
"""Where a row stands, for messages, and its cells by column."""


@dataclass(frozen=True)
class Anew:
    """Rows that are read anew each time they are gone through, so that not all are in memory at once."""

    read: Callable[[], Iterator[Cells]]

    def __iter__(self) -> Iterator[Cells]:
        return self.read()


@dataclass(frozen=True)
class Table:
    """A part of a source as it is read."""

    columns: list[str]
    cells: Iterable[Cells]
    """Can be gone through more than once; may raise what reading its source raises."""
    labels: list[str] | None = None
    """In the order of the source, if it has one."""
    is_rated: bool = False
    """Cells also hold `id` and `ratings`."""


Parts = dict[str, Callable[[], Table]]
"""The parts of a source by name, each with what reads it."""
