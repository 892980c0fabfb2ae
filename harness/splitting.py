"""Rows, and who goes where: shares for validation and test, fewer rows for quick tries, labels that train knows."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from harness.errors import DataError, did_you_mean

SPLITS = ("train", "validation", "test")
_NUMBER = r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_MANY = 10
"""More numbers than a rating has steps: labels of which most are rare are measurements."""


@dataclass(frozen=True)
class Row:
    """A complete row as text; `group` is empty where rows are on their own."""

    id: str
    texts: tuple[str, ...]
    label: str
    group: str
    ratings: tuple[int, ...]

    @cached_property
    def normalised(self) -> str:
        """The text as duplicates are counted: compatibility forms, case and spacing do not matter."""
        return "\0".join(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in self.texts)

    @property
    def unit(self) -> str:
        """What may not be divided: rows with the same unit stay in one split."""
        return self.group or self.normalised


def carve(rows: list[Row], shares: dict[str, float], seed: int) -> dict[str, list[Row]]:
    """Give each split its share of the rows, the rest to train; rows of one group stay together, and without
    groups those with one text.

    Groups are shuffled as a whole, single rows within each label. A group goes to the first split that it brings
    nearer to its share.
    """
    units: dict[str, list[Row]] = {}
    for row in rows:
        units.setdefault(row.unit, []).append(row)
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
    return {name: [r for r in rows if side[r.unit] == name] for name in ("train", *shares)}


def limited(rows: list[Row], limit: int, seed: int, split: str) -> list[Row]:
    """At most `limit` rows in the order of the source: two of each label, then each label in proportion.

    Raises:
        DataError: `limit` is too small for two of each label.
    """
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


def ordered_labels(train: list[Row], order: list[str] | None) -> list[str]:
    """The labels of train: in the order of the source if it has one, by number if all are numbers, else sorted."""
    present = {row.label for row in train}
    if order is not None:
        return [label for label in order if label in present]
    if all(re.fullmatch(_NUMBER, label) for label in present):
        return sorted(present, key=lambda label: (float(label), label))
    return sorted(present)


def check_labels(rows: dict[str, list[Row]], labels: list[str], drawn: Collection[str]) -> None:
    """Raise DataError, with counts, for a split that cannot be learnt from or judged on.

    `drawn`: the splits that are shares of train, which another seed would fill with other rows.
    """
    is_single = len({row.label for split in rows.values() for row in split}) == 1
    sizes = ", ".join(f"{name} {len(rows[name])}" for name in SPLITS)
    for name in SPLITS:
        counts = Counter(row.label for row in rows[name])
        why = ", ".join(f"{count} × '{label}'" for label, count in counts.most_common(10))
        if not counts:
            raise DataError(f"{name} has no rows", where="data", why=f"rows: {sizes}", fix="give more rows or groups")
        if unknown := sorted(counts.keys() - set(labels)):
            what = f"{name} has the label '{unknown[0]}' ({counts[unknown[0]]} rows), which train has not"
            fix = did_you_mean(unknown[0], labels)
            fix += " (or draw another split with data.split_seed)" if name in drawn else ""
            why = f"other unknown labels: {len(unknown) - 1}" if unknown[1:] else ""
            raise DataError(what, where="data.label", why=why, fix=fix)
        if len(counts) == 1:
            can_change = not is_single and (name in drawn or (name == "train" and drawn))
            fix = "give rows of another label"
            fix += ", or draw another split with data.split_seed" if can_change else ""
            raise DataError(f"{name} has one label only", where="data.label", why=f"rows: {why}", fix=fix)
        if name == "train" and (rare := [label for label in labels if counts[label] < 2]):
            if len(labels) > _MANY and 2 * len(rare) > len(labels) and all(re.fullmatch(_NUMBER, x) for x in labels):
                what = f"train has {len(labels)} labels that are numbers, most of them in one row: is this regression?"
                fix = "regression is not supported; name a column of classes"
                raise DataError(what, where="data.label", fix=fix)
            what, why = f"train has fewer than 2 rows labelled '{rare[0]}'", f"rows: {why}"
            raise DataError(what, where="data.label", why=why, fix="give more rows of it, or merge it into another")
