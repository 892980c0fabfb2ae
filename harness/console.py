"""What a person sees in the terminal: notes, tables, one progress line. Only the first process speaks."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Terminal:
    """Terminal output; silent on all processes but the first. Honours NO_COLOR (rich)."""

    def __init__(self, speaks: bool = True) -> None:
        self.speaks = speaks
        width = None if sys.stdout.isatty() else 140  # a log file has room
        self.console = Console(quiet=not speaks, highlight=False, soft_wrap=True, width=width)

    def say(self, text: str = "") -> None:
        """One line, as it is."""
        self.console.print(text, markup=False)

    def title(self, text: str) -> None:
        """A heading."""
        self.console.print(text, style="bold", markup=False)

    def table(self, columns: list[str], rows: list[list[str]], title: str = "") -> None:
        """A table; the first column left, the others right aligned."""
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def progress(self, total: int) -> ProgressLine:
        """The progress line of a training run."""
        return ProgressLine(self, total)


class ProgressLine:
    """One live line on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self, terminal: Terminal, total: int) -> None:
        self.terminal, self.total = terminal, total
        self.live = terminal.speaks and sys.stdout.isatty()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
            TimeRemainingColumn(), console=terminal.console, disable=not self.live, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total)
        self.last_plain = self.started = time.monotonic()

    def __enter__(self) -> ProgressLine:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, text: str) -> None:
        """Show the step and a few values."""
        self.bar.update(self.task, completed=step, description=text)
        now = time.monotonic()
        if not self.live and now - self.last_plain >= 10:
            self.last_plain = now
            rate = step / (now - self.started)
            self.terminal.say(
                f"{text}  step {step}/{self.total}  {rate:.1f} it/s  {(self.total - step) / rate:.0f} s left"
            )

    def due(self) -> bool:
        """Whether showing new values is worth it: reading them waits for the device."""
        return self.live or time.monotonic() - self.last_plain >= 10
