"""Rows, and who goes where: shares for validation and test, fewer rows for quick tries."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from harness.errors import DataError

SPLITS = ("train", "validation", "test")
_BEGIN = 32
"""Characters of a normalised text that stay in memory: most texts are told apart by them."""


class Marks(NamedTuple):
    """What texts are told apart by: so much memory however long they are."""

    exact: bytes
    """Digest of the texts."""
    normalised: bytes
    """The same of the texts as duplicates are counted."""
    begin: str
    """Of the texts as duplicates are counted."""
    characters: int


def marks(texts: Sequence[str]) -> Marks:
    """Those of a row's texts."""
    normal = normalised(texts)
    exact, same = (blake2b(text.encode(), digest_size=16).digest() for text in ("\0".join(texts), normal))
    return Marks(exact, same, normal[:_BEGIN], sum(map(len, texts)))


def normalised(texts: Iterable[str]) -> str:
    """As duplicates are counted: compatibility forms, case and spacing do not matter."""
    return "\0".join(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)


@dataclass(frozen=True, slots=True)
class Row:
    """A complete row."""

    id: str
    texts: Iterable[str]
    """In memory, or read again each time."""
    marks: Marks
    label: Any
    """As `labelling.py` reads it; None where there are no labels."""
    stratum: str
    """Rows of one stratum are divided in proportion."""
    group: str
    """Empty where rows are on their own."""
    ratings: tuple[int, ...]

    @property
    def unit(self) -> str | bytes:
        """What may not be divided: rows with the same unit stay in one split."""
        return self.group or self.marks.normalised

    def part(self, begin: int, end: int) -> str:
        """Some characters of what units are ordered by: the group, or the normalised text."""
        if self.group:
            return self.group[begin:end]
        return (self.marks.begin if end <= _BEGIN else normalised(self.texts))[begin:end]


def carve(rows: list[Row], shares: dict[str, float], seed: int) -> dict[str, list[Row]]:
    """Give each split its share of the rows, the rest to train; rows of one group stay together, and without
    groups those with one text.

    Groups are shuffled as a whole, single rows within each stratum. A group goes to the first split that it brings
    nearer to its share.
    """
    units: dict[str | bytes, list[Row]] = {}
    for row in rows:
        units.setdefault(row.unit, []).append(row)
    strata: dict[str, list[str | bytes]] = {}
    for key in (row.unit for row in _ordered([of[0] for of in units.values()])):
        strata.setdefault(min("" if row.group else row.stratum for row in units[key]), []).append(key)
    side, draw = {}, random.Random(seed)
    for _, keys in sorted(strata.items()):
        draw.shuffle(keys)
        room = {split: share * sum(len(units[key]) for key in keys) for split, share in shares.items()}
        for key in keys:
            side[key] = next((split for split in shares if len(units[key]) < 2 * room[split]), "train")
            if side[key] != "train":
                room[side[key]] -= len(units[key])
    return {name: [r for r in rows if side[r.unit] == name] for name in ("train", *shares)}


def _ordered(rows: list[Row], begin: int = 0, end: int = _BEGIN) -> Iterator[Row]:
    """In the order of their groups or normalised texts; of texts, only as much is in memory as rows have in common."""
    parts = sorted((row.part(begin, end), index) for index, row in enumerate(rows))
    for part, tied in groupby(parts, key=itemgetter(0)):
        same = [rows[index] for _, index in tied]
        yield from _ordered(same, end, 2 * end) if part and len(same) > 1 else same


def limited(rows: list[Row], limit: int, seed: int, split: str) -> list[Row]:
    """At most `limit` rows in the order of the source: two of each stratum, then each stratum in proportion.

    Raises:
        DataError: `limit` is too small for two of each label.
    """
    by_label: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_label.setdefault(row.stratum, []).append(index)
    if limit < 2 * len(by_label):
        what = f"{split} has {len(by_label)} labels, too many for {limit} rows"
        raise DataError(what, where="data.limit", fix=f"allow at least {2 * len(by_label)} rows")
    draw, ranked = random.Random(seed), []
    for label, indices in sorted(by_label.items()):
        draw.shuffle(indices)
        ranked += [(rank / len(indices) if rank > 1 else 0.0, label, index) for rank, index in enumerate(indices)]
    return [rows[index] for index in sorted(index for _, _, index in sorted(ranked)[:limit])]


def check_has_rows(split: str, rows: Mapping[str, list[Row]]) -> None:
    """Raise DataError if the split is empty."""
    if not rows[split]:
        why = f"rows: {', '.join(f'{name} {len(rows[name])}' for name in SPLITS)}"
        raise DataError(f"{split} has no rows", where="data", why=why, fix="give more rows or groups")
