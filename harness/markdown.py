"""Tables for people who read text: on a page of MLflow, in a file, in a terminal."""

from __future__ import annotations


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A GitHub-flavoured table, first column left and the others right aligned."""
    rule = "|---|" + "---:|" * (len(columns) - 1)
    return "\n".join(["| " + " | ".join(columns) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])


def text_table(columns: list[str], rows: list[list[str]]) -> str:
    """The same for a terminal: aligned, without rules."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
             for row in (columns, *rows)]  # fmt: skip
    return "\n".join("  ".join(line).rstrip() for line in lines)
