"""Tables for people who read text: on a page of MLflow, in a file, in a terminal."""

from __future__ import annotations


def markdown_table(columns: list[str], rows: list[list[str]], *, numbers: bool = True) -> str:
    """A GitHub-flavoured table; `numbers`: all columns but the first are right aligned."""
    rule = "|---|" + ("---:|" if numbers else "---|") * (len(columns) - 1)
    return "\n".join(["| " + " | ".join(columns) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])


def text_table(columns: list[str], rows: list[list[str]], *, numbers: bool = True) -> str:
    """The same for a terminal: aligned, without rules; `numbers`: all columns but the first are right aligned."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        padded = [
            cell.rjust(width) if numbers and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
