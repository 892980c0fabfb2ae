"""csv, tsv, json, jsonl, parquet, txt and CoNLL files as tables. No pandas: it turns the label "NA" into nothing."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from harness.data import conll, squad_file
from harness.data.tables import Table
from harness.errors import DataError, StorageError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", *conll.SUFFIXES)


def read_file(path: Path, encoding: str = "utf-8", where: str = "data.name") -> Table:
    """One csv, tsv, jsonl, json, parquet, txt or CoNLL file; `where`: what a person names it with.

    Raises:
        DataError: it cannot be read as what its name says, with file and line.
        StorageError: it cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is none of {', '.join(SUFFIXES)}", where=where, fix="convert it to one of these")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}", why=str(error)) from error
    if suffix == ".parquet":
        return _read_parquet(path, content)
    text = _decode(path, content, encoding, "--encoding" if where == "--file" else "data.encoding")
    if not text.strip():
        raise DataError(f"{path} is empty", where=where, fix="write rows into it, or name another file")
    if suffix in conll.SUFFIXES:
        sentences = conll.read(path, text)
        return Table(list(dict.fromkeys(name for _, row in sentences for name in row)), sentences)
    if suffix == ".txt":
        return _read_text(path, text)
    return _read_csv(path, text, suffix) if suffix in (".csv", ".tsv") else _read_json(path, text, suffix == ".jsonl")


def _decode(path: Path, content: bytes, encoding: str, setting: str) -> str:
    """The text. Raises DataError, with what a person gives the encoding with."""
    is_marked = codecs.lookup(encoding).name == "utf-8" and content.startswith(codecs.BOM_UTF8)
    mark = len(codecs.BOM_UTF8) if is_marked else 0
    try:
        return content[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        line = content[mark : mark + error.start].decode(encoding, errors="replace").count("\n") + 1
        what = f"not {encoding}: byte offset {mark + error.start} is 0x{error.object[error.start]:02x}"
        fix = f"{setting}=latin-1, or whatever the file is encoded in; or convert it to utf-8"
        raise DataError(what, where=f"{path}:{line}", why=error.reason, fix=fix) from None


def _read_csv(path: Path, text: str, suffix: str) -> Table:
    """Header and rows; cells may stand in double quotes, also in tsv files; a blank line is no row."""
    csv.field_size_limit(2**31 - 1)
    separator = "\t" if suffix == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        columns = next(reader, [])
        if len(columns) == 1 and (other := next((mark for mark in ";\t|," if mark in columns[0]), None)):
            what = f"the header is one cell, and the separator looks like {json.dumps(other)}"
            fix = f"separate the cells of a {suffix} by {'tabs' if suffix == '.tsv' else 'commas'}"
            raise DataError(what, where=f"{path}:1", fix=fix)
        if repeated := [name for name, count in Counter(columns).items() if count > 1]:
            raise DataError(f"two columns are called '{repeated[0]}'", where=f"{path}:1", fix="rename one")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(columns):
                fix = "put cells that hold the separator or a line break in double quotes"
                what = f"{len(cells)} cells, but the header has {len(columns)}"
                raise DataError(what, where=f"{path}:{line}", fix=fix)
            if cells:
                rows.append((f"{path}:{line}", dict(zip(columns, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        fix = 'write a cell that holds " in double quotes, with each inner " doubled'
        raise DataError("wrong quoting", where=f"{path}:{reader.line_num}", why=str(error), fix=fix) from error
    return Table(columns, rows)


def _read_text(path: Path, text: str) -> Table:
    """A row per paragraph, blank lines between them; two blank lines or more begin another `document`."""
    rows: list[tuple[str, dict[str, Any]]] = []
    document, blank, begin, lines = 1, 0, 1, list[str]()
    for number, line in enumerate([*text.replace("\r\n", "\n").split("\n"), ""], 1):
        if line.strip():
            document += bool(rows) and blank > 1 and not lines
            begin, blank = begin if lines else number, 0
            lines.append(line)
            continue
        if lines:
            rows.append((f"{path}:{begin}", {"text": "\n".join(lines), "document": str(document)}))
            lines = []
        blank += 1
    return Table(["text", "document"], rows)


def _read_json(path: Path, text: str, by_line: bool) -> Table:
    """One object per line, or a list of objects, or a file of SQuAD."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for line, chunk in enumerate(text.split("\n"), 1) if by_line else [(1, text)]:
        if by_line and not chunk.strip():
            continue
        try:
            value = json.loads(chunk)
        except (ValueError, RecursionError) as error:
            where = f"{path}:{line + getattr(error, 'lineno', 1) - 1}"
            raise DataError("not JSON", where=where, why=str(error), fix="repair this line") from error
        if not by_line and squad_file.is_squad(value):
            return Table(squad_file.COLUMNS, list(squad_file.rows(path, value)))
        for number, item in enumerate(value if isinstance(value, list) and not by_line else [value], 1):
            where = f"{path}:{line}" if by_line else f"{path}, item {number}"
            if not isinstance(item, dict):
                fix = 'write {"text": "...", "label": "..."} on each line' if by_line else "write a list of objects"
                raise DataError("not an object with named values", where=where, fix=fix)
            rows.append((where, item))
    return Table(list(dict.fromkeys(name for _, item in rows for name in item)), rows)


def _read_parquet(path: Path, content: bytes) -> Table:
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
        rows = [(f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"{path} is no parquet file that can be read", why=str(error), fix="write it again") from error
    return Table(table.column_names, *name_tags(rows, _declared(table.schema.metadata)))


def _declared(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of the classes in columns of lists, as `datasets` writes them into a parquet file."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        lists = {name: feature["feature"] for name, feature in features.items() if "feature" in feature}
        return {name: inner["names"] for name, inner in lists.items() if "names" in inner}
    except (ValueError, KeyError, TypeError):
        return {}


def name_tags(
    rows: list[tuple[str, dict[str, Any]]], names: dict[str, list[str]]
) -> tuple[list[tuple[str, dict[str, Any]]], list[str] | None]:
    """Lists of class numbers as lists of class names, and the names if one column has them; -1: the row has none."""
    for column, known in names.items():
        for _, row in rows:
            if (numbers := row[column]) is not None:
                row[column] = [known[n] for n in numbers] if all(n is not None and n >= 0 for n in numbers) else None
    return rows, next(iter(names.values())) if len(names) == 1 else None
