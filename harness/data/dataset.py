"""Text and labels, split into train, validation and test, and checked before use.

`load` reads from top to bottom: find the parts of the source, read them, split what is not split, fix the labels on
train, check, report.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from harness.data.kept_texts import Made, TextFile
from harness.data.labelling import Labelling, as_text
from harness.data.sources import Name, Source, find_parts
from harness.data.splitting import SPLITS, Row, carve, check_has_rows, limited, marks
from harness.data.tables import Parts, Table
from harness.errors import DataError, did_you_mean
from harness.markdown import text_table

_Share = Annotated[float, Field(gt=0, lt=1)]


class Data(Source):
    """Where examples come from and how they are split."""

    validation: _Share | Name = 0.15
    """A split or file of the source, or a share of the rows. Where the source has a `validation`, that is used."""
    test: _Share | Name = 0.15
    """A split or file of the source, or a share of the rows. Where the source has a `test`, that is used."""
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    """Draws the split, and nothing else."""
    missing: Literal["error", "drop"] = "error"
    """What to do with rows whose text, label or group is absent or blank."""
    max_test_overlap: float = Field(default=0.1, ge=0, le=1)
    """Largest share of test texts that may also stand in train, compared without case and spacing."""
    limit: int | None = Field(default=None, ge=4)
    """At most so many rows per split, every label kept: for quick tries."""

    @model_validator(mode="after")
    def _splits_fit_together(self) -> Self:
        shares = [share for share in (self.validation, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError("the shares of validation and test must leave something for train")
        if self.validation == self.test and not shares:
            raise ValueError("validation and test must be different splits")
        if "train" in (self.validation, self.test):
            raise ValueError("the split 'train' cannot be used for validation or test")
        return self


@dataclass(frozen=True)
class Example:
    """One row."""

    id: str
    text: str
    pair: str | None
    label: Any
    """What is to be learnt, as the task's `labelling` has it; of a class its index in the label list."""
    ratings: tuple[int, ...] = ()
    """Those of single people, where known."""


@dataclass(frozen=True)
class Split:
    """Examples in the order of the source; `digest` is `sha256:<hex>` over their content, labels by name."""

    name: str
    examples: Sequence[Example]
    """Without labels they are made each time they are asked for, of texts in a temporary file."""
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


# ----------------------------------------------------------------------------------------------------------------- load


def load(data: Data, labelling: Labelling) -> Splits:
    """Read, split and check.

    Rows are split by group, or else by row within each label; without groups, rows with the same normalised text count
    as one, so that no text stands on two sides. Which split a row is in depends on its group (or text) and
    `split_seed`, not on its place in the file. The labels are those of train, in the order that `labelling` gives them.

    Raises:
        DataError: the source cannot be found or read, or what it holds cannot be trained and judged on.
        StorageError: a file cannot be opened, or a built-in or the texts cannot be kept.
    """
    parts = find_parts(data, [name for name in (data.validation, data.test) if isinstance(name, str)])
    taken = {"train": "train", **_own_splits(data, parts)}
    tables = {split: parts[part]() for split, part in taken.items()}
    rows, dropped = {}, {}
    for split, table in tables.items():
        rows[split], dropped[split] = _rows(table, data, labelling, "" if len(parts) == 1 else f"{taken[split]}-")
    shares = {split: getattr(data, split) for split in ("test", "validation") if split not in taken}
    rows |= carve(rows["train"], shares, data.split_seed)
    if data.limit:
        rows = {split: limited(found, data.limit, data.split_seed, split) for split, found in rows.items()}
    labels = labelling.names(rows["train"], tables["train"].labels)
    for split in SPLITS:
        check_has_rows(split, rows)
        labelling.check(split, rows, labels, shares)
    report = _report(rows, labelling, labels, dropped)
    _check_overlap(report["splits"]["test"], data.max_test_overlap)
    report["notes"] = _notes(report["splits"]["validation"], data.max_test_overlap)
    splits = {name: _split(name, rows[name], labelling, labels) for name in SPLITS}
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
    title = f"{splits.source}: {splits.report['rows']} rows{f', {len(n)} labels' if (n := splits.labels) else ''}"
    return "\n".join([title, text_table(lines[0], lines[1:], numbers=False), *splits.report["notes"]])


# ----------------------------------------------------------------------------------------------------------------- rows


def _own_splits(data: Data, parts: Parts) -> dict[str, str]:
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


def _rows(table: Table, data: Data, labelling: Labelling, prefix: str) -> tuple[list[Row], int]:
    """The complete rows, and how many are not; without labels the texts are in a file, in any amount."""
    group, label = data.group or ("document" if table.is_rated else None), _label_column(data, labelling)
    named = (*(("data.text", name) for name in data.texts), ("data.label", label), ("data.group", group))
    wanted = [(where, name) for where, name in named if name]
    for where, name in wanted:
        if name not in table.columns:
            why = f"columns: {', '.join(table.columns) or 'none'}"
            fix = _column_fix(name, where, table.columns)
            raise DataError(f"no column is called '{name}'", where=where, why=why, fix=fix)
    rows: list[Row] = []
    blank: list[tuple[str, str]] = []
    file, number = None if labelling.has_labels else TextFile(), 0
    for number, (where, record) in enumerate(table.cells, 1):
        beside = [record.get(name) for name in data.texts]
        texts = labelling.texts(beside, where, data.texts)
        own = labelling.label(record.get(label), beside, where, label) if label else None
        of = as_text(record.get(group), where, group) if group else labelling.group(texts)
        cells = [*zip(data.texts, texts, strict=False), (label, own), (group, of)]  # a labelling may do without a text
        if empty := [(name, where) for name, cell in cells if name and _is_blank(cell)]:
            blank += empty
            continue
        id, ratings = (record["id"], record["ratings"]) if table.is_rated else (f"{prefix}{number}", ())
        kept = file.keep(texts) if file else texts
        rows.append(Row(id, kept, marks(texts), own, labelling.stratum(own), of, ratings))
    missing = number - len(rows)
    if missing and data.missing == "error":
        counts = ", ".join(f"{count} × {name}" for name, count in Counter(name for name, _ in blank).items())
        why, fix = f"blank: {counts}", "fill them, or leave these rows out with data.missing=drop"
        raise DataError(f"{missing} of {number} rows are incomplete", where=blank[0][1], why=why, fix=fix)
    return rows, missing


def _column_fix(name: str, where: str, columns: list[str]) -> str:
    """What to do about a column that is not there: the nearest one, or how another is named."""
    if (near := did_you_mean(name, columns)).startswith("did"):
        return near
    without = "; data.group=null if the rows belong to no groups" if where == "data.group" else ""
    return f"name one of them: {where}=<column>{without}"


def _label_column(data: Data, labelling: Labelling) -> str | None:
    """`data.label`. Raises DataError where the task and the spec do not agree about whether there are labels."""
    if labelling.has_labels and data.label is None:
        fix = "name the column that holds what is to be learnt"
        raise DataError("this task learns labels, and data.label is null", where="data.label", fix=fix)
    if data.label and not labelling.has_labels:
        raise DataError("this task learns from text alone", where="data.label", fix="data.label=null")
    return data.label


def _is_blank(cell: Any) -> bool:
    return not (cell.strip() if isinstance(cell, str) else cell)


def unlabelled(table: Table, texts: list[str], labelling: Labelling, where: str) -> list[Example]:
    """The rows of a table as examples to predict, by one or two columns; their labels mean nothing.

    `where`: what a person gives the columns with.

    Raises:
        DataError: no such column, a blank cell, no rows.
    """
    if odd := [name for name in texts if name not in table.columns]:
        why = f"columns: {', '.join(table.columns) or 'none'}"
        what = f"no column is called '{odd[0]}'"
        raise DataError(what, where=where, why=why, fix=_column_fix(odd[0], where, table.columns))
    rows = [(place, [record.get(name) for name in texts]) for place, record in table.cells]
    read = [(place, cells, labelling.texts(cells, place, texts)) for place, cells in rows]
    if blank := [place for place, _, found in read if any(map(_is_blank, found))]:
        raise DataError(
            f"{len(blank)} of {len(rows)} rows have no text", where=blank[0], fix="fill them, or leave them out"
        )
    if not rows:
        raise DataError("there are no rows to predict")
    return [
        Example(str(number), found[0], found[1] if found[1:] else None, labelling.unknown(cells))
        for number, (_, cells, found) in enumerate(read, 1)
    ]


# --------------------------------------------------------------------------------------------------------------- report


def _report(
    rows: dict[str, list[Row]], labelling: Labelling, labels: list[str], dropped: dict[str, int]
) -> dict[str, Any]:
    """Facts per split; dropped rows count where they were read, before a share was taken from train."""
    exact, normal = {row.marks.exact for row in rows["train"]}, {row.marks.normalised for row in rows["train"]}
    facts: dict[str, Any] = {}
    for name in SPLITS:
        split = rows[name]
        counts = Counter(label for row in split for label in labelling.counted(row.label))
        own = [row.marks for row in split]
        lengths = [mark.characters for mark in own]
        in_train = [mark for mark in own if name != "train" and mark.normalised in normal]
        distinct = {"exact": len({mark.exact for mark in own}), "normalised": len({mark.normalised for mark in own})}
        facts[name] = {
            "rows": len(split),
            "labels": {label: counts[label] for label in labels},
            "dropped": dropped.get(name, 0),
            "duplicates": {kind: len(split) - count for kind, count in distinct.items()},
            "in_train": {"exact": sum(mark.exact in exact for mark in in_train), "normalised": len(in_train)},
            "characters": {"p50": statistics.median_low(lengths), "max": max(lengths)},
        }
    return {"rows": sum(map(len, rows.values())), "dropped": sum(dropped.values()), "splits": facts}


def _check_overlap(test: dict[str, Any], allowed: float) -> None:
    repeated, total = test["in_train"]["normalised"], test["rows"]
    if repeated > allowed * total:
        what = f"{repeated} of {total} test texts ({repeated / total:.1%}) also stand in train"
        fix = "remove them from one side; if the data is known to be so, raise data.max_test_overlap"
        raise DataError(what, where="data.max_test_overlap", why=f"allowed is a share of {allowed:g}", fix=fix)


def _notes(validation: dict[str, Any], allowed: float) -> list[str]:
    """What is refused of test is said of validation."""
    repeated, total = validation["in_train"]["normalised"], validation["rows"]
    if repeated <= allowed * total:
        return []
    return [f"NOTE {repeated} of {total} validation texts also stand in train: what it chooses has seen them"]


def _example(id: str, texts: Iterable[str], label: Any, ratings: tuple[int, ...]) -> Example:
    text, *other = texts
    return Example(id, text, other[0] if other else None, label, ratings)


def _split(name: str, rows: list[Row], labelling: Labelling, labels: list[str]) -> Split:
    parts = [(row.id, row.texts, labelling.target(row.label, labels), row.ratings) for row in rows]
    examples, digest = Made(_example, list[tuple[Any, ...]](parts)), hashlib.sha256()
    for row, made in zip(rows, examples, strict=True):
        content = [made.id, made.text, made.pair, row.label, made.ratings]
        digest.update(f"{json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n".encode())
    return Split(name, list(examples) if labelling.has_labels else examples, f"sha256:{digest.hexdigest()}")
