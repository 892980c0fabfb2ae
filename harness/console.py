"""What a person sees in the terminal: lines, notes, tables. Only the first process speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

NOTE = "NOTE "
"""How a line begins that says what was replaced or went another way than asked; quiet runs say it, too."""

_GAP = 2
"""Blanks between the columns of a table."""


class Terminal:
    """Terminal output; silent on all processes but the first.

    It writes to what is `sys.stdout` at that moment. NO_COLOR leaves every colour and weight out, also where
    FORCE_COLOR asks for them.
    """

    def __init__(self, speaks: bool = True, *, quiet: bool = False) -> None:
        """`quiet`: nothing but lines that begin with NOTE, and those that are said `always`."""
        self.speaks, self.quiet = speaks, quiet
        width = None if sys.stdout.isatty() else 140  # a log file has room
        colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
        self.console = Console(
            quiet=not speaks, width=width, color_system=colours, highlight=False, soft_wrap=True,
            force_jupyter=False,  # printed lines in a notebook, too
        )  # fmt: skip
        self._told: set[str] = set()
        self._repeats = True

    @property
    def is_live(self) -> bool:
        """Whether lines can be drawn over: a terminal that a person looks at."""
        return self.speaks and not self.quiet and sys.stdout.isatty() and not self.console.is_dumb_terminal

    def aside(self) -> Terminal:
        """Where the trials of a study speak: their notes alone, each once, on the same screen."""
        other = Terminal(self.speaks, quiet=True)
        other.console, other._repeats = self.console, False
        return other

    def say(self, text: str = "", *, always: bool = False) -> None:
        """A line, as it is."""
        is_note = text.lstrip().startswith(NOTE)
        if is_note and not self._repeats:
            if text in self._told:
                return
            self._told.add(text)
        if always or is_note or not self.quiet:
            self.console.print(text, markup=False)

    def prose(self, text: str) -> None:
        """Sentences: on a terminal broken between words; nothing to copy and paste."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def say_once(self, text: str) -> None:
        """The same, but what was said once in this process is not said again: what holds for every replicate."""
        if text not in self._told:
            self.say(text)
            self._told.add(text)

    def title(self, text: str) -> None:
        """A heading."""
        if not self.quiet:
            self.console.print(text, style="bold", markup=False)

    def facts(self, facts: dict[str, str]) -> None:
        """A line per fact, its name in front; facts that are empty are left out."""
        width = max(map(len, facts), default=0)
        for name, fact in facts.items():
            if fact:
                self.say(f"{name:{width}}  {fact}")

    def table(self, columns: list[str], rows: list[list[str]], title: str = "", spare: Sequence[str] = ()) -> list[str]:
        """A table; the first column left, the others right aligned. Words and numbers are never broken.

        Args:
            columns: their names.
            rows: of cells.
            title: above it.
            spare: columns that a narrow terminal does without, the first to go first. Where that is not enough, each
                row is told on lines of its own.

        Returns:
            The columns that were left out.
        """
        if self.quiet:
            return []
        for number in range(len(spare) + 1):
            left_out = list(spare[:number])
            kept = [i for i, column in enumerate(columns) if column not in left_out]
            shown = [[row[i] for i in kept] for row in (columns, *rows)]
            if widths := _widths(shown, self.console.width):
                break
        else:
            for row in rows:
                self.say(row[0])
                self.facts({f"  {name}": cell for name, cell in zip(columns[1:], row[1:], strict=True)})
            return []
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for i, (column, width) in enumerate(zip(shown[0], widths, strict=True)):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold", width=width)
        for row in shown[1:]:
            table.add_row(*row)
        self.console.print(table)
        return left_out


def _widths(rows: list[list[str]], room: int) -> list[int]:
    """Of each column, so that a table fits with its header and its first column broken between words; []: it cannot."""
    columns = list(zip(*rows, strict=True))
    full = [max(map(cell_len, column)) for column in columns]
    heads = [max(map(cell_len, head.split()), default=0) for head, *_ in columns]
    first = max((cell_len(word) for cell in columns[0] for word in cell.split()), default=0)
    least = [first, *(max(head, *map(cell_len, of[1:]), 0) for head, of in zip(heads[1:], columns[1:], strict=True))]
    left = room - sum(least) - _GAP * len(least)
    for i, width in enumerate(full):
        more = min(width - least[i], max(left, 0))
        least[i], left = least[i] + more, left - more
    return least if left >= 0 else []
