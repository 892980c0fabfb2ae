"""What the rows of a task's data are: how cells are read, what a label may be, and what is checked before training.

`dataset.py` reads, splits and reports rows of any kind; what differs between kinds is here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from harness.data.splitting import Row
from harness.errors import DataError, did_you_mean

_NUMBER = r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_MANY = 10
"""More numbers than a rating has steps: labels of which most are rare are measurements."""


class Labelling(ABC):
    """One kind of rows. A label is what JSON can hold, with tuples for lists; one that is empty is absent."""

    has_labels: ClassVar[bool] = True
    """Whether `data.label` names a column; if not, it is null."""

    def texts(self, cells: Sequence[Any], where: str, columns: Sequence[str]) -> tuple[str, ...]:
        """The cells of the text columns as texts; an absent one is "", or left out if it may be. Raises DataError."""
        return tuple(as_text(cell, where, column) for cell, column in zip(cells, columns, strict=True))

    @abstractmethod
    def label(self, cell: Any, beside: Sequence[Any], where: str, column: str) -> Any:
        """The cell of the label column as a label; `beside`: the cells of the text columns. Raises DataError."""

    def unknown(self, beside: Sequence[Any]) -> Any:
        """The target of a row whose label nobody knows; it means nothing."""
        return 0

    def group(self, texts: Sequence[str]) -> str:
        """What keeps rows in one split where no column does; "": nothing."""
        return ""

    def stratum(self, label: Any) -> str:
        """Rows of one stratum are divided among the splits in proportion."""
        return ""

    def names(self, train: list[Row], order: list[str] | None) -> list[str]:
        """The fixed list of label names, from the rows of train; `order` is that of the source, if it has one."""
        return []

    def check(self, split: str, rows: Mapping[str, list[Row]], names: list[str], drawn: Collection[str]) -> None:
        """Raise DataError, with counts, for a split that cannot be learnt from or judged on.

        `drawn`: the splits that are shares of train, which another seed would fill with other rows.
        """
        return

    def counted(self, label: Any) -> Iterable[str]:
        """The names that the report counts, once for each time that a row has them."""
        return ()

    def target(self, label: Any, names: list[str]) -> Any:
        """A label as examples hold it."""
        return label


class Classes(Labelling):
    """One label of a fixed list for each text; a label is text, a target its index."""

    def label(self, cell: Any, beside: Sequence[Any], where: str, column: str) -> str:
        """Text, whatever the file says."""
        return as_text(cell, where, column)

    def stratum(self, label: Any) -> str:
        """Every label in proportion."""
        return str(label)

    def names(self, train: list[Row], order: list[str] | None) -> list[str]:
        """The labels of train: in the order of the source if it has one, by number if all are numbers, else sorted."""
        present = {row.label for row in train}
        if order is not None:
            return [label for label in order if label in present]
        if all(re.fullmatch(_NUMBER, label) for label in present):
            return sorted(present, key=lambda label: (float(label), label))
        return sorted(present)

    def check(self, split: str, rows: Mapping[str, list[Row]], names: list[str], drawn: Collection[str]) -> None:
        """Two labels at least, none that train has not, and in train each in two rows or more."""
        counts = Counter(row.label for row in rows[split])
        why = ", ".join(f"{count} × '{label}'" for label, count in counts.most_common(10))
        check_known(split, counts, names, drawn)
        if len(counts) == 1:
            is_single = len({row.label for of in rows.values() for row in of}) == 1
            can_change = not is_single and (split in drawn or (split == "train" and drawn))
            fix = "give rows of another label"
            fix += ", or draw another split with data.split_seed" if can_change else ""
            raise DataError(f"{split} has one label only", where="data.label", why=f"rows: {why}", fix=fix)
        if split == "train":
            _check_rare(counts, names, why)

    def counted(self, label: Any) -> Iterable[str]:
        """The label itself."""
        return (str(label),)

    def target(self, label: Any, names: list[str]) -> int:
        """Its index."""
        return names.index(label)


class Completions(Labelling):
    """A text to be written behind each text; a label is that text, and so is its target."""

    def texts(self, cells: Sequence[Any], where: str, columns: Sequence[str]) -> tuple[str, ...]:
        """The instruction and, unless it is blank, its input. Raises DataError."""
        first, *rest = super().texts(cells, where, columns)
        return first, *(text for text in rest if text.strip())

    def label(self, cell: Any, beside: Sequence[Any], where: str, column: str) -> str:
        """Text, whatever the file says; a blank one is absent."""
        return as_text(cell, where, column)

    def unknown(self, beside: Sequence[Any]) -> str:
        """Nothing was written yet."""
        return ""


class Texts(Labelling):
    """Text alone, from one column: nothing is told of it."""

    has_labels: ClassVar[bool] = False

    def texts(self, cells: Sequence[Any], where: str, columns: Sequence[str]) -> tuple[str, ...]:
        """The cell. Raises DataError, also for two columns."""
        if len(columns) != 1:
            raise DataError("a language model reads one column of text", where="data.text", fix="name one column")
        return super().texts(cells, where, columns)

    def label(self, cell: Any, beside: Sequence[Any], where: str, column: str) -> None:
        """None."""


def _check_rare(counts: Counter[str], names: list[str], why: str) -> None:
    """Raise DataError for a label of train that stands in one row only."""
    rare = [label for label in names if counts[label] < 2]
    if len(names) > _MANY and 2 * len(rare) > len(names) and all(re.fullmatch(_NUMBER, name) for name in names):
        what = f"train has {len(names)} labels that are numbers, most of them in one row: is this regression?"
        raise DataError(what, where="data.label", fix="regression is not supported; name a column of classes")
    if rare:
        what = f"train has fewer than 2 rows labelled '{rare[0]}'"
        fix = "give more rows of it, or merge it into another"
        raise DataError(what, where="data.label", why=f"rows: {why}", fix=fix)


def check_known(split: str, counts: Counter[str], names: list[str], drawn: Collection[str]) -> None:
    """Raise DataError for a label that train has not."""
    if unknown := sorted(counts.keys() - set(names)):
        what = f"{split} has the label '{unknown[0]}' ({counts[unknown[0]]} rows), which train has not"
        fix = did_you_mean(unknown[0], names)
        fix += " (or draw another split with data.split_seed)" if split in drawn else ""
        why = f"other unknown labels: {len(unknown) - 1}" if unknown[1:] else ""
        raise DataError(what, where="data.label", why=why, fix=fix)


def as_text(value: object, where: str, column: str) -> str:
    """A cell as text, the empty string if it is absent: true, false, and numbers as JSON writes them, 1.0 as 1.

    Raises:
        DataError: it holds a list or a map.
    """
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
