"""Sentences whose words have tags: what the rows of a tagger's data are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from harness import notes
from harness.data import entities
from harness.data.entities import OUTSIDE, as_bio, kind
from harness.data.labelling import Labelling, as_text, check_known
from harness.data.splitting import Row
from harness.errors import DataError

_LISTS = "write a list of words and a list of as many tags in each row, or a .conll file"
_WORD = re.compile(
    r"(?:\b[^\W\d_]\.)+"  # initials: J. and U.S.
    r"|\b(?:Inc|Ltd|Co|Corp|Dr|Mr|Mrs|Ms|Prof|St)\."
    r"|\d+(?:[.,:/]\d+)*"  # 1,000.5 and 3/10/1998
    r"|\w+(?:[-'’]\w+)*"
    r"|[^\w\s]"
)


class Tags(Labelling):
    """Words and their tags in BIO. A label is the words and the tags of a sentence, a target the words and the indices
    of the tags; the text of a row is its words with spaces between them.
    """

    def texts(self, cells: Sequence[Any], where: str, columns: Sequence[str]) -> tuple[str, ...]:
        """The words with spaces between them; a cell of text, as `harness predict` reads it, as it is."""
        if len(columns) > 1:
            raise DataError("words stand in one column", where="data.text", fix=f"name one: {columns[0]}")
        (cell,), (column,) = cells, columns
        if not isinstance(cell, list | tuple):
            return (as_text(cell, where, column),)
        return (" ".join(as_text(word, where, column) for word in cell),)

    def label(self, cell: Any, beside: Sequence[Any], where: str, column: str) -> tuple[tuple[str, ...], ...] | None:
        """Words and tags, the latter in BIO whatever the scheme of the source; None: the row has none.

        Raises:
            DataError: no lists, lists of different lengths, or a tag that is none.
        """
        words = beside[0]
        if not words or not cell:
            return None
        if not isinstance(words, list | tuple) or not isinstance(cell, list | tuple):
            is_list = isinstance(words, list | tuple)
            what = f"column '{column}' holds no list of tags" if is_list else "the text is no list of words"
            raise DataError(what, where=where, fix=_LISTS)
        if len(words) != len(cell):
            raise DataError(f"{len(words)} words, but {len(cell)} tags", where=where, fix="write one tag for each word")
        for number, (word, tag) in enumerate(zip(words, cell, strict=True), 1):
            if not isinstance(tag, str) or not entities.is_tag(tag):
                raise _no_tag(tag, f"word {number}, '{word}',", where, column)
        if (tags := as_bio(cell)) != tuple(cell):
            notes.note("tags that are not BIO (such as an I- at the start of an entity, E- or S-) are turned into BIO")
        return tuple(as_text(word, where, column) for word in words), tags

    def unknown(self, beside: Sequence[Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The words, each `O`."""
        words = words_of(beside[0])
        return words, (0,) * len(words)

    def stratum(self, label: Any) -> str:
        """The type of the first entity: every split gets sentences of each in proportion."""
        return next((kind(tag) for tag in label[1] if tag != OUTSIDE), "") if label else ""

    def names(self, train: list[Row], order: list[str] | None) -> list[str]:
        """`O`, then `B-` and `I-` of each type of train: in the order of the source if it has one, else sorted."""
        present = {kind(tag) for row in train for tag in row.label[1]} - {""}
        known = dict.fromkeys(map(kind, order)) if order else sorted(present)
        types = [type for type in known if type in present]
        return [OUTSIDE, *(f"{letter}-{type}" for type in types for letter in "BI")]

    def check(self, split: str, rows: Mapping[str, list[Row]], names: list[str], drawn: Collection[str]) -> None:
        """An entity at least, and no type that train has not."""
        counts = Counter(tag for row in rows[split] for tag in set(row.label[1]))
        check_known(split, counts, names, drawn)
        if set(counts) <= {OUTSIDE}:
            fix = "give sentences with entities: tags that begin with B-"
            raise DataError(f"{split} has no entity", where="data.label", why=f"{counts[OUTSIDE]} rows", fix=fix)

    def counted(self, label: Any) -> Iterable[str]:
        """The tag of every word."""
        tags: Iterable[str] = label[1]
        return tags

    def target(self, label: Any, names: list[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The words, and the indices of their tags."""
        words, tags = label
        return words, tuple(names.index(tag) for tag in tags)


def words_of(cell: Any) -> tuple[str, ...]:
    """The words of a cell: its own if it is a list, else those of a text, punctuation by itself."""
    if isinstance(cell, list | tuple):
        return tuple(map(str, cell))
    return tuple(_WORD.findall(str(cell)))


def _no_tag(tag: Any, of: str, where: str, column: str) -> DataError:
    if isinstance(tag, int):
        fix = "write the names of the tags; numbers are read only where the source says what they mean"
        return DataError(f"column '{column}': {of} has the number {tag} for a tag", where=where, fix=fix)
    fix = "a tag is O, or B- or I- and a type, such as B-PER"
    return DataError(f"column '{column}': {of} has '{tag}', which is no tag", where=where, fix=fix)
