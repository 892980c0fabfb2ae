"""Sentences of a CoNLL file: a word a line, its tag in the last column, a blank line after each sentence.

    -DOCSTART- -X- O        a document begins; no sentence
    EU         NNP B-ORG
    rejects    VBZ O

Columns are separated by tabs, or else by spaces; those between the first and the last are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.data.entities import is_tag
from harness.errors import DataError

SUFFIXES = (".conll", ".bio", ".iob")
COLUMNS = ("tokens", "ner_tags")
"""What the words and the tags of a sentence are called, as they usually are on the Hub."""
DOCUMENT = "document"
"""The column with the number of the document, in files that say where one begins."""
_START = "-DOCSTART-"
_FIX = "write a word and its tag, separated by a tab or spaces; a blank line ends a sentence"


def read(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Each sentence: where its first word stands, and its cells.

    Raises:
        DataError: with file and line, for a word without a tag, a tag that is none, or other columns than before.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    open_row: dict[str, Any] | None = None
    document, first = 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        where, cells = f"{path}:{number}", _cells(line)
        if not cells or cells[0] == _START:
            document, open_row = document + bool(cells), None
            continue
        first = first or f"{len(cells)} {number}"
        _check(where, cells, *map(int, first.split()))
        if open_row is None:
            open_row = {name: [] for name in COLUMNS} | ({DOCUMENT: str(document)} if document else {})
            rows.append((where, open_row))
        for name, cell in zip(COLUMNS, (cells[0], cells[-1]), strict=True):
            open_row[name].append(cell)
    return rows


def _cells(line: str) -> list[str]:
    """The columns of a line; [] of a blank one."""
    if not line.strip():
        return []
    line = line.rstrip("\r")
    return [cell.strip(" ") for cell in line.split("\t")] if "\t" in line else [c for c in line.split(" ") if c]


def _check(where: str, cells: list[str], width: int, first: int) -> None:
    if not cells[0]:
        raise DataError("a tag without a word", where=where, fix=_FIX)
    if len(cells) == 1 or not cells[-1]:
        raise DataError(f"the word '{cells[0]}' has no tag", where=where, fix=_FIX)
    if len(cells) != width:
        fix = "give every line the same columns; a word that holds a space needs tabs between the columns"
        raise DataError(f"{len(cells)} columns, but line {first} has {width}", where=where, fix=fix)
    if not is_tag(cells[-1]):
        fix = f"the last column is O, or B- or I- and a type, such as B-{cells[-1] if cells[-1].isalnum() else 'PER'}"
        raise DataError(f"'{cells[-1]}' of the word '{cells[0]}' is no tag", where=where, fix=fix)
