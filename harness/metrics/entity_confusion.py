"""Which types of entities are taken for which: those with exactly the words of a true one, missed, and invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import heatmap
from harness.data.entities import Entity, lenient
from harness.metric import Metric
from harness.predictions import Tagged
from harness.storage import write_json

NOTHING = "(none)"


class EntityConfusion(Metric[Tagged]):
    """Rows are true types, columns predicted ones. In the last column stand true entities whose words are no predicted
    entity (missed), in the last row predicted entities whose words are no true one (invented). One with a wrong end is
    missed and invented; how many true ones are so stands beside the counts, as `wrong_ends`.
    """

    def write(self, predictions: Tagged, folder: Path) -> None:
        """entity_confusion.json (`types`, `counts`, `wrong_ends`), .html (hover, no network needed) and .png."""
        names, counts, ends = [*predictions.types, NOTHING], confusion(predictions), wrong_ends(predictions)
        facts = {"types": names, "counts": counts.tolist(), "wrong_ends": ends}
        write_json(folder / "entity_confusion.json", facts)
        title = f"Entities · {counts[:-1].sum():,} true ones in {len(predictions.words):,} sentences"
        heatmap.write(heatmap.Matrix(title, names, counts, "type", "entities"), folder / "entity_confusion")


def confusion(predictions: Tagged) -> NDArray[np.int64]:
    """True type (row) by predicted type (column), each with nothing as the last. [types + 1, types + 1]"""
    place = {type: i for i, type in enumerate([*predictions.types, NOTHING])}
    counts = np.zeros((len(place), len(place)), dtype=np.int64)
    for gold, found in _sentences(predictions):
        by_words = {one[1:]: one.type for one in found}
        for one in gold:
            counts[place[one.type], place[by_words.pop(one[1:], NOTHING)]] += 1
        for type in by_words.values():
            counts[-1, place[type]] += 1
    return counts


def wrong_ends(predictions: Tagged) -> dict[str, int]:
    """Missed entities of each type that share a word with a predicted one of the same type."""
    counts = dict.fromkeys(predictions.types, 0)
    for gold, found in _sentences(predictions):
        taken = {one[1:] for one in found}
        for one in gold:
            near = any(o.type == one.type and o.start < one.end and one.start < o.end for o in found)
            counts[one.type] += near and one[1:] not in taken
    return counts


def _sentences(predictions: Tagged) -> list[tuple[list[Entity], list[Entity]]]:
    both = (predictions.by_sentence(tags) for tags in (predictions.tags, predictions.predicted))
    return [(lenient(true), lenient(guess)) for true, guess in zip(*both, strict=True)]
