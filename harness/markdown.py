"""Tables for people who read text: on a page of MLflow, in a file, in a log."""

from __future__ import annotations


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A GitHub-flavoured table, first column left and the others right aligned."""
    rule = "|---|" + "---:|" * (len(columns) - 1)
    return "\n".join(["| " + " | ".join(columns) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])
