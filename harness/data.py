"""Text and labels from built-ins, files or the Hub, split into train, validation and test, and checked before use.

`load` reads from top to bottom: find the parts of the source, read them, split what is not split, fix the labels on
train, check, report. No pandas: it turns the label "NA" into nothing.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import random
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from harness import builtin
from harness.errors import DataError, StorageError, did_you_mean
from harness.settings import Settings

SPLITS = ("train", "validation", "test")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
RATED_LABELS = {1: ["negative", "positive"], 2: ["negative", "neutral", "positive"]}
_PREFIX = "builtin:"
_PROBE_SECONDS = 6.0
_Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
_Share = Annotated[float, Field(gt=0, lt=1)]


class Data(Settings):
    """Where examples come from and how they are split."""

    name: _Name
    """`builtin:product_reviews`, a folder, a csv, tsv, jsonl, json or parquet file, or else an id on the Hub."""
    subset: _Name | None = None
    """Hub only: the configuration of the data set."""
    revision: _Name | None = None
    """Hub only: branch, tag or commit; name a commit to read the same rows forever."""
    text: _Name | Annotated[list[_Name], Field(min_length=2, max_length=2)]
    """The column with the text, or two columns for pairs of texts. Built-ins: `text`."""
    label: _Name
    """The column with the label; labels are text, whatever the file says. Built-ins: `label`."""
    group: _Name | None = None
    """Rows with the same value in this column stay in one split. Built-ins: `document` if none is named."""
    cuts: list[Annotated[float, Field(gt=-4, lt=4)]] = Field(default=[-0.5, 0.5])
    """Built-ins: a mean rating below the first cut is negative, above the last positive, else neutral; with one cut
    negative up to the cut, the cut included, and positive above."""
    validation: _Share | _Name = 0.15
    """A split or file of the source, or a share of the rows. Where the source has a `validation`, that is used."""
    test: _Share | _Name = 0.15
    """A split or file of the source, or a share of the rows. Where the source has a `test`, that is used."""
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    """Draws the split, and nothing else."""
    missing: Literal["error", "drop"] = "error"
    """What to do with rows whose text, label or group is absent or blank."""
    max_test_overlap: float = Field(default=0.1, ge=0, le=1)
    """Largest share of test texts that may also stand in train, compared without case and spacing."""
    limit: int | None = Field(default=None, ge=4)
    """At most so many rows per split, every label kept: for quick tries."""
    encoding: _Name = "utf-8"
    """Of csv, tsv, jsonl and json files; anything that does not decode is an error."""

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
    def _fields_fit_together(self) -> Data:
        columns = [*self.texts, self.label]
        if len(set(columns)) < len(columns):
            raise ValueError("text and label must be different columns")
        shares = [share for share in (self.validation, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError("the shares of validation and test must leave something for train")
        if self.validation == self.test and not shares:
            raise ValueError("validation and test must be different splits")
        if "train" in (self.validation, self.test):
            raise ValueError("the split 'train' cannot be used for validation or test")
        return self

    @property
    def texts(self) -> list[str]:
        """The one or two text columns."""
        return [self.text] if isinstance(self.text, str) else self.text


@dataclass(frozen=True)
class Example:
    """One row. `label` is an index into the label list; `ratings` are those of single people, where known."""

    id: str
    text: str
    pair: str | None
    label: int
    ratings: tuple[int, ...] = ()


@dataclass(frozen=True)
class Split:
    """Examples in the order of the source; `digest` is `sha256:<hex>` over their content, labels by name."""

    name: str
    examples: list[Example]
    digest: str


@dataclass(frozen=True)
class Splits:
    """What a run trains and is judged on; `report` can be written as JSON."""

    train: Split
    validation: Split
    test: Split
    labels: list[str]
    source: str
    report: dict[str, Any]


@dataclass(frozen=True)
class _Row:
    id: str
    texts: tuple[str, ...]
    label: str
    group: str
    normalised: str
    ratings: tuple[int, ...]


@dataclass(frozen=True)
class _Table:
    """A part of a source as it was read: for each row where it stands, for messages, and its cells."""

    columns: list[str]
    cells: list[tuple[str, dict[str, Any]]]
    labels: list[str] | None = None
    """In the order of the source, if it has one."""
    is_rated: bool = False
    """Cells also hold `id` and `ratings`."""


_Parts = dict[str, Callable[[], _Table]]


# ---------------------------------------------------------------------------------------------------------------- load


def load(data: Data) -> Splits:
    """Read, split and check.

    Rows are split by group, or else by row within each label; rows with the same normalised text count as one, so
    that no text stands on two sides. Which split a row is in depends on its group (or text) and `split_seed`, not on
    its place in the file. The labels are those of train: in numeric order if all are numbers, in the order of the
    source if it has one, else sorted.

    Raises:
        DataError: the source cannot be found or read, or what it holds cannot be trained and judged on.
        StorageError: a file cannot be opened, or a built-in cannot be kept.
    """
    parts = _find_parts(data)
    taken = {"train": "train", **_own_splits(data, parts)}
    tables = {split: parts[part]() for split, part in taken.items()}
    rows, dropped = {}, {}
    for split, table in tables.items():
        rows[split], dropped[split] = _rows(table, data, "" if len(parts) == 1 else f"{taken[split]}-")
    shares = {split: getattr(data, split) for split in ("test", "validation") if split not in taken}
    rows |= _carve(rows["train"], shares, data.split_seed)
    if data.limit:
        rows = {split: _limited(found, data.limit, data.split_seed, split) for split, found in rows.items()}
    labels = _ordered_labels(rows["train"], tables["train"].labels)
    _check_labels(rows, labels)
    report = _report(rows, labels, dropped)
    _check_overlap(report["splits"]["test"], data.max_test_overlap)
    splits = {name: _split(name, rows[name], labels) for name in SPLITS}
    for name in SPLITS:
        report["splits"][name] |= {"taken_from": taken.get(name, "a share of train"), "digest": splits[name].digest}
    subset, revision = f"[{data.subset}]" if data.subset else "", f"@{data.revision}" if data.revision else ""
    return Splits(**splits, labels=labels, source=f"{data.name}{subset}{revision}", report=report)


def describe(splits: Splits) -> str:
    """A table for the terminal."""
    head = ["split", "rows", *splits.labels, "duplicates", "in train", "characters", "digest"]
    lines = [head if len(splits.labels) <= 6 else [*head[:2], "per label", *head[-4:]]]
    for name, facts in splits.report["splits"].items():
        counts = [str(count) for count in facts["labels"].values()]
        if len(counts) > 6:
            counts = [f"{min(facts['labels'].values())}–{max(facts['labels'].values())}"]
        repeated = [str(facts["duplicates"]["normalised"]), str(facts["in_train"]["normalised"])]
        length = f"{facts['characters']['p50']} (max {facts['characters']['max']})"
        lines.append([name, str(facts["rows"]), *counts, *repeated, length, facts["digest"][:19]])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    title = f"{splits.source}: {splits.report['rows']} rows, {len(splits.labels)} labels"
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, *table])


# ------------------------------------------------------------------------------------------------------------- sources


def _find_parts(data: Data) -> _Parts:
    """The parts of the source by name, each with what reads it."""
    path, suffix = Path(data.name).expanduser(), Path(data.name).suffix.lower()
    is_builtin = data.name.startswith(_PREFIX)
    try:
        exists = path.exists()
    except OSError as error:
        raise DataError("no file has such a name", where="data.name", why=str(error.strerror)) from error
    is_local = exists or suffix in SUFFIXES or data.name.startswith((".", "/", "~")) or "\\" in data.name
    if (is_builtin or is_local) and (data.subset or data.revision):
        raise DataError("only data sets of the Hub have a subset and a revision", where="data.subset, data.revision")
    if is_builtin:
        return {"train": partial(_rated, data.name.removeprefix(_PREFIX), data.cuts)}
    if not is_local:
        return _hub_parts(data)
    if not exists:
        near = [file.name for file in path.parent.glob("*") if file.is_dir() or file.suffix.lower() in SUFFIXES]
        fix = did_you_mean(path.name, near) if path.parent.is_dir() else f"there is no folder {path.parent} either"
        raise DataError(f"{data.name} does not exist", where="data.name", fix=fix)
    folder = path if path.is_dir() else path.parent
    named = [name for name in (data.validation, data.test) if isinstance(name, str)]
    found = {name: _find_file(folder, name) for name in ([*SPLITS, *named] if path.is_dir() else named)}
    files = {name: file for name, file in found.items() if file} | ({} if path.is_dir() else {"train": path})
    if "train" not in files:
        why, what = f"it holds: {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}", "no train file"
        raise DataError(
            f"{what} in {path}",
            where="data.name",
            why=why,
            fix=f"call one of them train, with one of {', '.join(SUFFIXES)}",
        )
    return {name: partial(_read, file, data.encoding) for name, file in files.items()}


def _find_file(folder: Path, name: str) -> Path | None:
    """`name` with or without its suffix, in this folder."""
    found = [file for suffix in ("", *SUFFIXES) if (file := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has {' and '.join(file.name for file in found)}", fix="leave only one of them there")
    return found[0] if found else None


def _own_splits(data: Data, parts: _Parts) -> dict[str, str]:
    """validation and test, where they are parts of the source: named in `data`, or called so."""
    taken: dict[str, str] = {}
    for split, wanted in (("validation", data.validation), ("test", data.test)):
        if isinstance(wanted, str):
            if wanted not in parts:
                raise DataError(f"the source has no '{wanted}'", where=f"data.{split}", fix=did_you_mean(wanted, parts))
            taken[split] = wanted
    for split in ("validation", "test"):
        if split not in taken and split in parts and split not in taken.values():
            taken[split] = split
    return taken


def _rated(name: str, cuts: list[float]) -> _Table:
    labels, cells = RATED_LABELS[len(cuts)], []
    for row in builtin.ratings(name):
        label = labels[-1] if row.mean > cuts[-1] else labels[0] if row.mean < cuts[0] else labels[-2]
        facts = {"text": row.text, "label": label, "document": row.document, "id": row.id, "ratings": row.ratings}
        cells.append((f"{_PREFIX}{name}, sentence {row.id}", facts))
    return _Table(["text", "label", "document"], cells, labels, is_rated=True)


def _read(path: Path, encoding: str) -> _Table:
    """One file. Raises DataError with file and line, StorageError if it cannot be opened."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} is none of {', '.join(SUFFIXES)}", where="data.name", fix="convert it to one of these")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}", why=str(error)) from error
    if suffix == ".parquet":
        return _read_parquet(path, content)
    text = _decode(path, content, encoding)
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


def _read_csv(path: Path, text: str, suffix: str) -> _Table:
    """Header and rows; cells may stand in double quotes, also in tsv files; a blank line is no row."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        columns = next(reader, [])
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
    return _Table(columns, rows)


def _read_json(path: Path, text: str, by_line: bool) -> _Table:
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
    return _Table(list(dict.fromkeys(name for _, item in rows for name in item)), rows)


def _read_parquet(path: Path, content: bytes) -> _Table:
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
        rows = [(f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"{path} is no parquet file that can be read", why=str(error), fix="write it again") from error
    return _Table(table.column_names, rows)


# ----------------------------------------------------------------------------------------------------------------- Hub


def _hub_parts(data: Data) -> _Parts:
    """The splits of a data set on the Hub. Raises DataError telling unreachable, not found and gated apart."""
    local = "or download it by hand and name the file or folder"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.name):
        what = f"'{data.name}' is no built-in, no file or folder, and no id of the Hub"
        raise DataError(what, where="data.name", fix=did_you_mean(data.name, [_PREFIX + n for n in builtin.RATINGS]))
    import datasets

    offline, endpoint = datasets.config.HF_HUB_OFFLINE, datasets.config.HF_ENDPOINT
    if not offline and (why := _unreachable(f"{endpoint}/api/datasets/{data.name}")):
        what = f"'{data.name}' is no file or folder here, and the Hub cannot be reached"
        fix = f"connect to the internet, set HF_HUB_OFFLINE=1 to use a copy in the cache, {local}"
        raise DataError(what, where="data.name", why=why, fix=fix)
    try:
        loaded = datasets.load_dataset(data.name, data.subset, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        what, fix = f"'{data.name}' cannot be loaded from the Hub", "see why; name another subset or revision"
        if isinstance(error, ConnectionError) and offline:
            what, fix = f"'{data.name}' is not in the cache and HF_HUB_OFFLINE is set", f"unset HF_HUB_OFFLINE, {local}"
        elif "gated" in str(error):
            what, fix = f"'{data.name}' is gated", f"accept its terms on its page, then `hf auth login`, {local}"
        elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
            what, fix = f"'{data.name}' is not on the Hub, or is private", f"check the name, `hf auth login`, {local}"
        raise DataError(what, where="data.name", why=str(error), fix=fix) from error
    if "train" not in loaded:
        raise DataError("no split is called 'train'", where=data.name, why=f"splits: {', '.join(loaded)}")
    return {name: partial(_hub_table, part, data) for name, part in loaded.items()}


def _unreachable(url: str) -> str:
    """Why the Hub does not answer, or nothing if it does; one request, because the library retries for a minute."""
    import ssl
    import threading
    import urllib.error
    import urllib.request

    answer = ["no answer from the name server"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=_PROBE_SECONDS - 1):
                answer[0] = ""
        except urllib.error.HTTPError as error:  # the Hub itself: the library will say what is wrong
            answer[0] = f"{url} answers {error.code}" if error.code >= 500 else ""
            error.close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            answer[0] = "" if isinstance(reason, ssl.SSLError) else f"{url}: {reason}"

    thread = threading.Thread(target=ask, daemon=True)  # asking a name server has no timeout of its own
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0]


def _hub_table(part: Any, data: Data) -> _Table:
    """Only the columns that are used; class numbers become class names, and -1 (no label) nothing."""
    wanted = [name for name in (*data.texts, data.label, data.group) if name in part.column_names]
    names: list[str] | None = getattr(part.features.get(data.label), "names", None)
    cells = []
    for number, row in enumerate(part.select_columns(wanted), 1):
        if names and row[data.label] is not None:
            row[data.label] = names[row[data.label]] if row[data.label] >= 0 else None
        cells.append((f"{data.name}, row {number}", row))
    return _Table(part.column_names, cells, names)


# ----------------------------------------------------------------------------------------------------- rows and splits


def _rows(table: _Table, data: Data, prefix: str) -> tuple[list[_Row], int]:
    """The complete rows, and how many are not."""
    group = data.group or ("document" if table.is_rated else None)
    wanted = [*(("data.text", name) for name in data.texts), ("data.label", data.label)]
    wanted += [("data.group", group)] if group else []
    for where, name in wanted:
        if name not in table.columns:
            why = f"columns: {', '.join(table.columns) or 'none'}"
            raise DataError(
                f"no column is called '{name}'", where=where, why=why, fix=did_you_mean(name, table.columns)
            )
    rows: list[_Row] = []
    blank: list[tuple[str, str]] = []
    for number, (where, record) in enumerate(table.cells, 1):
        cells = {name: _cell(record.get(name), where, name) for _, name in wanted}
        if empty := [(name, where) for name, cell in cells.items() if not cell.strip()]:
            blank += empty
            continue
        texts = tuple(cells[name] for name in data.texts)
        id, ratings = (record["id"], record["ratings"]) if table.is_rated else (f"{prefix}{number}", ())
        rows.append(_Row(id, texts, cells[data.label], cells[group] if group else "", _normalised(texts), ratings))
    missing = len(table.cells) - len(rows)
    if missing and data.missing == "error":
        counts = ", ".join(f"{count} × {name}" for name, count in Counter(name for name, _ in blank).items())
        why, fix = f"blank: {counts}", "fill them, or leave these rows out with data.missing=drop"
        raise DataError(f"{missing} of {len(table.cells)} rows are incomplete", where=blank[0][1], why=why, fix=fix)
    return rows, missing


def _cell(value: object, where: str, column: str) -> str:
    """A cell as text, the empty string if it is absent: true, false, and numbers as JSON writes them, 1.0 as 1."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if not isinstance(value, str):
        fix = "name another column, or write text into this one"
        raise DataError(f"column '{column}' holds a {type(value).__name__}, not text or a number", where=where, fix=fix)
    if found := re.search(r"[\0\ud800-\udfff]", value):
        kind = "a NUL character" if found[0] == "\0" else f"half a surrogate pair (\\u{ord(found[0]):04x})"
        raise DataError(f"column '{column}' holds {kind}", where=where, fix="repair the file: this is no text")
    return value


def _normalised(texts: tuple[str, ...]) -> str:
    """The text as duplicates are counted: compatibility forms, case and spacing do not matter."""
    return "\0".join(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)


def _carve(rows: list[_Row], shares: dict[str, float], seed: int) -> dict[str, list[_Row]]:
    """Give each split its share of the rows, the rest to train; rows of one group, or with one text, stay together.

    Groups are shuffled as a whole, single rows within each label. A group goes to the first split that it brings
    nearer to its share.
    """
    units: dict[str, list[_Row]] = {}
    for row in rows:
        units.setdefault(row.group or row.normalised, []).append(row)
    strata: dict[str, list[str]] = {}
    for key in sorted(units):
        strata.setdefault(min("" if row.group else row.label for row in units[key]), []).append(key)
    side, draw = {}, random.Random(seed)
    for _, keys in sorted(strata.items()):
        draw.shuffle(keys)
        room = {split: share * sum(len(units[key]) for key in keys) for split, share in shares.items()}
        for key in keys:
            side[key] = next((split for split in shares if len(units[key]) < 2 * room[split]), "train")
            if side[key] != "train":
                room[side[key]] -= len(units[key])
    return {name: [r for r in rows if side[r.group or r.normalised] == name] for name in ("train", *shares)}


def _limited(rows: list[_Row], limit: int, seed: int, split: str) -> list[_Row]:
    """At most `limit` rows in the order of the source: two of each label, then each label in proportion."""
    by_label: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_label.setdefault(row.label, []).append(index)
    if limit < 2 * len(by_label):
        what = f"{split} has {len(by_label)} labels, too many for {limit} rows"
        raise DataError(what, where="data.limit", fix=f"allow at least {2 * len(by_label)} rows")
    draw, ranked = random.Random(seed), []
    for label, indices in sorted(by_label.items()):
        draw.shuffle(indices)
        ranked += [(rank / len(indices) if rank > 1 else 0.0, label, index) for rank, index in enumerate(indices)]
    return [rows[index] for index in sorted(index for _, _, index in sorted(ranked)[:limit])]


# --------------------------------------------------------------------------------------------------- checks and report


def _ordered_labels(train: list[_Row], order: list[str] | None) -> list[str]:
    present = {row.label for row in train}
    if order is not None:
        return [label for label in order if label in present]
    if all(re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", label) for label in present):
        return sorted(present, key=lambda label: (float(label), label))
    return sorted(present)


def _check_labels(rows: dict[str, list[_Row]], labels: list[str]) -> None:
    """Raise DataError, with counts, for a split that cannot be learnt from or judged on."""
    sizes = ", ".join(f"{name} {len(rows[name])}" for name in SPLITS)
    for name in SPLITS:
        counts = Counter(row.label for row in rows[name])
        why = ", ".join(f"{count} × '{label}'" for label, count in counts.most_common(10))
        if not counts:
            raise DataError(f"{name} has no rows", where="data", why=f"rows: {sizes}", fix="give more rows or groups")
        if unknown := sorted(counts.keys() - set(labels)):
            what = f"{name} has the label '{unknown[0]}' ({counts[unknown[0]]} rows), which train has not"
            fix = f"{did_you_mean(unknown[0], labels)} Or draw another split with data.split_seed"
            raise DataError(what, where="data.label", why=f"other unknown labels: {len(unknown) - 1}", fix=fix)
        if len(counts) == 1:
            fix = "give rows of another label, or draw another split with data.split_seed"
            raise DataError(f"{name} has one label only", where="data.label", why=f"rows: {why}", fix=fix)
        if name == "train" and (rare := [label for label in labels if counts[label] < 2]):
            what, why = f"train has fewer than 2 rows labelled '{rare[0]}'", f"rows: {why}"
            raise DataError(what, where="data.label", why=why, fix="give more rows of it, or merge it into another")


def _report(rows: dict[str, list[_Row]], labels: list[str], dropped: dict[str, int]) -> dict[str, Any]:
    """Facts per split; dropped rows count where they were read, before a share was taken from train."""
    exact, normal = {row.texts for row in rows["train"]}, {row.normalised for row in rows["train"]}
    facts: dict[str, Any] = {}
    for name in SPLITS:
        split = rows[name]
        counts, lengths = Counter(row.label for row in split), [sum(map(len, row.texts)) for row in split]
        in_train = [row for row in split if name != "train" and row.normalised in normal]
        distinct = {"exact": len({row.texts for row in split}), "normalised": len({row.normalised for row in split})}
        facts[name] = {
            "rows": len(split),
            "labels": {label: counts[label] for label in labels},
            "dropped": dropped.get(name, 0),
            "duplicates": {kind: len(split) - count for kind, count in distinct.items()},
            "in_train": {"exact": sum(row.texts in exact for row in in_train), "normalised": len(in_train)},
            "characters": {"p50": statistics.median_low(lengths), "max": max(lengths)},
        }
    return {"rows": sum(map(len, rows.values())), "dropped": sum(dropped.values()), "splits": facts}


def _check_overlap(test: dict[str, Any], allowed: float) -> None:
    repeated, total = test["in_train"]["normalised"], test["rows"]
    if repeated > allowed * total:
        what = f"{repeated} of {total} test texts ({repeated / total:.1%}) also stand in train"
        fix = "remove them from one side; if the data is known to be so, raise data.max_test_overlap"
        raise DataError(what, where="data.max_test_overlap", why=f"allowed is a share of {allowed:g}", fix=fix)


def _split(name: str, rows: list[_Row], labels: list[str]) -> Split:
    examples, digest = [], hashlib.sha256()
    for row in rows:
        text, pair = row.texts[0], row.texts[1] if len(row.texts) > 1 else None
        examples.append(Example(row.id, text, pair, labels.index(row.label), row.ratings))
        content = json.dumps([row.id, text, pair, row.label, row.ratings], ensure_ascii=False, separators=(",", ":"))
        digest.update(f"{content}\n".encode())
    return Split(name, examples, f"sha256:{digest.hexdigest()}")
