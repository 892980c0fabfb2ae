"""Reading: built-ins, csv, tsv, jsonl, json, parquet and txt files, and data sets of the Hub, as tables of cells.

The only door to `datasets` and pyarrow. No pandas: it turns the label "NA" into nothing.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from harness import builtin, hub
from harness.errors import DataError, StorageError, did_you_mean
from harness.settings import Settings
from harness.splitting import SPLITS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
RATED_LABELS = {1: ["negative", "positive"], 2: ["negative", "neutral", "positive"]}
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]


class Source(Settings):
    """What is read, and which of its columns are used."""

    name: Name
    """`builtin:product_reviews`, a folder, a csv, tsv, jsonl, json, parquet or txt file, or else an id on the Hub."""
    subset: Name | None = None
    """Hub only: the configuration of the data set."""
    revision: Name | None = None
    """Hub only: branch, tag or commit; name a commit to read the same rows forever."""
    text: Name | Annotated[list[Name], Field(min_length=2, max_length=2)]
    """The column with the text, or two columns for pairs of texts. Built-ins: `text`."""
    label: Name | None
    """The column with what is to be learnt; null for a task that learns from text alone. Classes are text, whatever the
    file says. Built-ins: `label`."""
    group: Name | None = None
    """Rows with the same value in this column stay in one split. Built-ins: `document` if none is named."""
    cuts: list[Annotated[float, Field(gt=-4, lt=4)]] = Field(default=[-0.5, 0.5])
    """Built-ins: a mean rating below the first cut is negative, above the last positive, else neutral; with one cut
    negative up to the cut, the cut included, and positive above."""
    encoding: Name = "utf-8"
    """Of csv, tsv, jsonl, json and txt files; anything that does not decode is an error."""

    @field_validator("cuts")
    @classmethod
    def _cuts_make_classes(cls, cuts: list[float]) -> list[float]:
        if len(cuts) not in RATED_LABELS:
            raise ValueError("one cut makes negative and positive, two make negative, neutral and positive")
        if sorted(set(cuts)) != cuts:
            raise ValueError("cuts must be strictly increasing")
        return cuts

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            "text".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError("Python knows no such text encoding; try utf-8, utf-16, latin-1 or cp1252") from None
        return encoding

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = [*self.texts, *([self.label] if self.label else [])]
        if len(set(columns)) < len(columns):
            raise ValueError("text and label must be different columns")
        return self

    @property
    def texts(self) -> list[str]:
        """The one or two text columns."""
        return [self.text] if isinstance(self.text, str) else self.text


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


# ---------------------------------------------------------------------------------------------------------------- parts


def find_parts(source: Source, named: list[str]) -> Parts:
    """The parts of a source: `train` always, `validation`, `test` and those `named` where they exist.

    Raises:
        DataError: nothing has this name, it cannot be reached, or it has no `train`.
    """
    if source.name.startswith(builtin.PREFIX):
        _refuse_hub_settings(source)
        name = source.name.removeprefix(builtin.PREFIX)
        return {"train": _read_news if name in builtin.CORPORA else partial(_read_rated, name, source.cuts)}
    try:
        path = Path(source.name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder that is not known
        why = getattr(error, "strerror", None) or str(error)
        raise DataError("no file has such a name", where="data.name", why=why) from error
    if not exists and path.suffix.lower() not in SUFFIXES and not hub.is_path(source.name):
        _refuse_half_a_name(path)
        return _hub_parts(source)
    _refuse_hub_settings(source)
    if not exists:
        near = [file.name for file in path.parent.glob("*") if file.suffix.lower() in SUFFIXES or _has_train(file)]
        fix = did_you_mean(path.name, near) if near else f"there is no data file in {path.parent.resolve()}"
        fix = fix if path.parent.is_dir() else f"there is no folder {path.parent} either"
        raise DataError(f"{source.name} does not exist", where="data.name", fix=fix)
    files = _folder_files(path, named) if path.is_dir() else {"train": path, **_find_files(path.parent, named)}
    return {name: partial(read_file, file, source.encoding) for name, file in files.items()}


def _refuse_hub_settings(source: Source) -> None:
    if source.subset or source.revision:
        raise DataError("only data sets of the Hub have a subset and a revision", where="data.subset, data.revision")


def _refuse_half_a_name(path: Path) -> None:
    """`reviews` beside reviews.csv is no data set of the Hub; one that is called so has an owner's name, too."""
    near = [f"'{path.name}{suffix}'" for suffix in SUFFIXES if path.with_name(f"{path.name}{suffix}").is_file()]
    if near and path.name == str(path):
        fix = f"did you mean {' or '.join(near)}? A data set of the Hub is called owner/{path.name}"
        raise DataError(f"{path} does not exist", where="data.name", fix=fix)


def _has_train(folder: Path) -> bool:
    return any((folder / f"train{suffix}").is_file() for suffix in SUFFIXES)


def _folder_files(folder: Path, named: list[str]) -> dict[str, Path]:
    files = _find_files(folder, [*SPLITS, *named])
    if "train" not in files:
        why = f"it holds: {', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
        fix = f"call one of them train, with one of {', '.join(SUFFIXES)}"
        raise DataError(f"no train file in {folder}", where="data.name", why=why, fix=fix)
    return files


def _find_files(folder: Path, names: list[str]) -> dict[str, Path]:
    """These names, with or without their suffix, as far as the folder has them."""
    files = {}
    for name in names:
        found = [file for suffix in ("", *SUFFIXES) if (file := folder / f"{name}{suffix}").is_file()]
        if len(found) > 1:
            what, fix = f"{folder} has {' and '.join(file.name for file in found)}", "leave only one of them there"
            raise DataError(what, where="data.name", fix=fix)
        if found:
            files[name] = found[0]
    return files


# ---------------------------------------------------------------------------------------------------------------- files


def _read_rated(name: str, cuts: list[float]) -> Table:
    labels, cells = RATED_LABELS[len(cuts)], []
    for row in builtin.ratings(name):
        label = labels[-1] if row.mean > cuts[-1] else labels[0] if row.mean < cuts[0] else labels[-2]
        facts = {"text": row.text, "label": label, "document": row.document, "id": row.id, "ratings": row.ratings}
        cells.append((f"{builtin.PREFIX}{name}, sentence {row.id}", facts))
    return Table(["text", "label", "document"], cells, labels, is_rated=True)


def _read_news() -> Table:
    """One row per article; some have no text."""
    rows = [(f"{builtin.PREFIX}news, article {row['id']}", dict[str, Any](row)) for row in builtin.articles()]
    return Table(["text", "title", "id"], rows)


def read_file(path: Path, encoding: str = "utf-8", where: str = "data.name") -> Table:
    """One csv, tsv, jsonl, json, parquet or txt file; `where`: what a person names it with.

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
    text = _decode(path, content, encoding)
    if not text.strip():
        raise DataError(f"{path} is empty", where=where, fix="write rows into it, or name another file")
    if suffix == ".txt":
        return _read_text(path, text)
    return _read_csv(path, text, suffix) if suffix in (".csv", ".tsv") else _read_json(path, text, suffix == ".jsonl")


def _decode(path: Path, content: bytes, encoding: str) -> str:
    is_marked = codecs.lookup(encoding).name == "utf-8" and content.startswith(codecs.BOM_UTF8)
    mark = len(codecs.BOM_UTF8) if is_marked else 0
    try:
        return content[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        line = content[mark : mark + error.start].decode(encoding, errors="replace").count("\n") + 1
        what = f"not {encoding}: byte offset {mark + error.start} is 0x{error.object[error.start]:02x}"
        fix = "data.encoding=latin-1, or whatever the file is encoded in; or convert it to utf-8"
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
    """One object per line, or a list of objects."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for line, chunk in enumerate(text.split("\n"), 1) if by_line else [(1, text)]:
        if by_line and not chunk.strip():
            continue
        try:
            value = json.loads(chunk)
        except (ValueError, RecursionError) as error:
            where = f"{path}:{line + getattr(error, 'lineno', 1) - 1}"
            raise DataError("not JSON", where=where, why=str(error), fix="repair this line") from error
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
    return Table(table.column_names, rows)


# ------------------------------------------------------------------------------------------------------------------ Hub


def _hub_parts(source: Source) -> Parts:
    """The splits of a data set on the Hub."""
    if not hub.is_id(source.name):
        what = f"'{source.name}' is no built-in, no file or folder, and no id of the Hub"
        fix = did_you_mean(source.name, [builtin.PREFIX + name for name in builtin.DATA])
        raise DataError(what, where="data.name", fix=fix)
    import datasets

    if not datasets.config.HF_HUB_OFFLINE:
        hub.require_reachable(source.name, DataError, "data.name", "datasets")
    fix, absent = "see why; name another subset or revision", datasets.exceptions.DatasetNotFoundError
    with hub.explained("rows", source.name, DataError, "data.name", fix, absent):
        loaded = datasets.load_dataset(source.name, source.subset, revision=source.revision)
    if "train" not in loaded:
        raise DataError("no split is called 'train'", where=source.name, why=f"splits: {', '.join(loaded)}")
    return {name: partial(_hub_table, part, source) for name, part in loaded.items()}


def _hub_table(part: Any, source: Source) -> Table:
    """Only the columns that are used; class numbers become class names, and -1 (no label) nothing."""
    wanted = [name for name in (*source.texts, source.label, source.group) if name in part.column_names]
    names: list[str] | None = getattr(part.features.get(source.label), "names", None)
    cells = []
    for number, row in enumerate(part.select_columns(wanted), 1):
        if names and row[source.label] is not None:
            row[source.label] = names[row[source.label]] if row[source.label] >= 0 else None
        cells.append((f"{source.name}, row {number}", row))
    return Table(part.column_names, cells, names)
