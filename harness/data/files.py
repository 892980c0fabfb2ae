"""csv, tsv, json, jsonl, parquet, txt and CoNLL files as tables. No pandas: it turns the label "NA" into nothing."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from harness.data import conll, squad_file
from harness.data.tables import Anew, Cells, Table
from harness.errors import DataError, StorageError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", *conll.SUFFIXES)
_ROWS, _BUFFER = 256, 2**20
"""Of a parquet file: rows and bytes of a column that are read at once."""


class Encoding(NamedTuple):
    """How a file is encoded, and what a person says so with."""

    name: str
    setting: str


def read_file(path: Path, encoding: str = "utf-8", where: str = "data.name") -> Table:
    """One csv, tsv, jsonl, json, parquet, txt or CoNLL file; `where`: what a person names it with.

    The rows of jsonl, parquet and txt files are read as they are gone through, which raises the same.

    Raises:
        DataError: it cannot be read as what its name says, with file and line.
        StorageError: it cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is none of {', '.join(SUFFIXES)}", where=where, fix="convert it to one of these")
    if suffix == ".parquet":
        return _read_parquet(path)
    encoded = Encoding(encoding, "--encoding" if where == "--file" else "data.encoding")
    if not any(line.strip() for line in _lines(path, encoded)):
        raise DataError(f"{path} is empty", where=where, fix="write rows into it, or name another file")
    if suffix == ".txt":
        return Table(["text", "document"], Anew(lambda: _paragraphs(path, encoded)))
    if suffix == ".jsonl":
        rows = Anew(lambda: _json_lines(path, encoded))
        return Table(list(dict.fromkeys(name for _, item in rows for name in item)), rows)
    text = "".join(_lines(path, encoded))
    if suffix in conll.SUFFIXES:
        sentences = conll.read(path, text)
        return Table(list(dict.fromkeys(name for _, row in sentences for name in row)), sentences)
    return _read_json(path, text) if suffix == ".json" else _read_csv(path, text, suffix)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file to be read. Raises StorageError where it cannot be."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise StorageError(f"cannot read {path}", why=str(error)) from error


def _lines(path: Path, encoding: Encoding) -> Iterator[str]:
    """The lines with their ends, as they are asked for; read all at once where a line break is not one byte."""
    by_line, offset = "\n".encode(encoding.name) == b"\n", 0
    with _opened(path) as file:
        for number, content in enumerate(file if by_line else [file.read()], 1):
            text = _decode(path, content, encoding, offset, number)
            yield from [text] if by_line else io.StringIO(text, newline="\n")
            offset += len(content)


def _decode(path: Path, content: bytes, encoding: Encoding, offset: int, line: int) -> str:
    """What stands in a file from this offset, which is in this line; a byte-order mark is left out."""
    is_marked = not offset and codecs.lookup(encoding.name).name == "utf-8" and content.startswith(codecs.BOM_UTF8)
    mark = len(codecs.BOM_UTF8) if is_marked else 0
    try:
        return content[mark:].decode(encoding.name)
    except UnicodeDecodeError as error:
        line += content[mark : mark + error.start].decode(encoding.name, errors="replace").count("\n")
        what = f"not {encoding.name}: byte offset {offset + mark + error.start} is 0x{error.object[error.start]:02x}"
        fix = f"{encoding.setting}=latin-1, or whatever the file is encoded in; or convert it to utf-8"
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


def _paragraphs(path: Path, encoding: Encoding) -> Iterator[Cells]:
    """A row per paragraph, blank lines between them; two blank lines or more begin another `document`."""
    document, blank, begin, lines = 0, 2, 1, list[str]()
    for number, line in enumerate(chain(_lines(path, encoding), [""]), 1):
        if line.strip():
            document += blank > 1 and not lines
            begin, blank = begin if lines else number, 0
            lines.append(line.replace("\r\n", "\n").removesuffix("\n"))
            continue
        if lines:
            yield f"{path}:{begin}", {"text": "\n".join(lines), "document": str(document)}
            lines = []
        blank += 1


def _json_lines(path: Path, encoding: Encoding) -> Iterator[Cells]:
    """One object per line; a blank line is no row."""
    for number, line in enumerate(_lines(path, encoding), 1):
        if line.strip():
            where, item = f"{path}:{number}", _parsed(path, line.removesuffix("\n"), number)
            yield where, _object(item, where, 'write {"text": "...", "label": "..."} on each line')


def _read_json(path: Path, text: str) -> Table:
    """A list of objects, or one, or a file of SQuAD."""
    value = _parsed(path, text, 1)
    if squad_file.is_squad(value):
        return Table(squad_file.COLUMNS, list(squad_file.rows(path, value)))
    items = enumerate(value if isinstance(value, list) else [value], 1)
    places = [(f"{path}, item {number}", item) for number, item in items]
    rows = [(where, _object(item, where, "write a list of objects")) for where, item in places]
    return Table(list(dict.fromkeys(name for _, item in rows for name in item)), rows)


def _parsed(path: Path, text: str, line: int) -> Any:
    """The JSON that begins in this line of a file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{path}:{line + getattr(error, 'lineno', 1) - 1}"
        raise DataError("not JSON", where=where, why=str(error), fix="repair this line") from error


def _object(item: Any, where: str, fix: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError("not an object with named values", where=where, fix=fix)
    return item


def _read_parquet(path: Path) -> Table:
    """A few rows of a file at a time."""
    from pyarrow import parquet

    def rows() -> Iterator[Cells]:
        with _opened(path) as file, _told(path):
            batches = parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False).iter_batches(batch_size=_ROWS)
            every = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(every, 1):
                yield f"{path}, row {number}", row

    with _opened(path) as file, _told(path):
        schema = parquet.ParquetFile(file).schema_arrow
    names = _declared(schema.metadata)
    return Table(schema.names, Anew(lambda: name_tags(rows(), names)), labels_of(names))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What pyarrow raises as DataError: its own errors derive from these."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no parquet file that can be read", why=str(error), fix="write it again") from error


def _declared(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of the classes in columns of lists, as `datasets` writes them into a parquet file."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        lists = {name: feature["feature"] for name, feature in features.items() if "feature" in feature}
        return {name: inner["names"] for name, inner in lists.items() if "names" in inner}
    except (ValueError, KeyError, TypeError):
        return {}


def name_tags(rows: Iterable[Cells], names: dict[str, list[str]]) -> Iterator[Cells]:
    """Rows with lists of class numbers as lists of class names; -1: the row has none."""
    for where, row in rows:
        for column, known in names.items():
            if (numbers := row[column]) is not None:
                row[column] = [known[n] for n in numbers] if all(n is not None and n >= 0 for n in numbers) else None
        yield where, row


def labels_of(names: dict[str, list[str]]) -> list[str] | None:
    """The names of classes if one column has them."""
    return next(iter(names.values())) if len(names) == 1 else None
