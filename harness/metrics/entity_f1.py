"""Precision, recall and F1 of entities: one counts as found if its type and all its words are right.

Two readings of tags that are not well-formed. `entity_f1` reads an `I-` without a word of its type before it as the
beginning of an entity, as `conlleval` does (Tjong Kim Sang and De Meulder 2003) and seqeval by default;
`entity_f1_strict` as no entity at all (IOB2; seqeval's mode='strict', scheme=IOB2). They are equal where a model does
not make such tags. No entity goes over the end of a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from harness.data.entities import Reading, lenient, strict
from harness.markdown import text_table
from harness.metric import Metric, key_suffixes
from harness.predictions import Tagged
from harness.storage import write_json, write_text

_RESERVED = ("macro", "strict", "macro_strict")


class EntityF1(Metric[Tagged]):
    """Over all entities, their mean over types (`macro`), and of each type (`entity_f1_PER`).

    A division by zero counts as 0. Types without a true or a predicted entity are left out of the mean over types.
    """

    produces: ClassVar[tuple[str, ...]] = (
        "entity_f1",
        "entity_precision",
        "entity_recall",
        "entity_f1_macro",
        "entity_precision_macro",
        "entity_recall_macro",
        "entity_f1_strict",
        "entity_precision_strict",
        "entity_recall_strict",
        "entity_f1_macro_strict",
    )

    def compute(self, predictions: Tagged) -> dict[str, float]:
        """Both readings; the values by type are those of `conlleval`."""
        counted = counts(predictions, lenient)
        values = {f"entity_{name}": value for name, value in _scores(*_sum(counted)).items()}
        values |= {f"entity_{name}_macro": value for name, value in _macro(counted).items()}
        by_definition = counts(predictions, strict)
        values |= {f"entity_{name}_strict": value for name, value in _scores(*_sum(by_definition)).items()}
        values["entity_f1_macro_strict"] = _macro(by_definition)["f1"]
        for type, suffix in zip(counted, key_suffixes(list(counted), _RESERVED), strict=True):
            values |= {f"entity_{name}_{suffix}": value for name, value in _scores(*counted[type]).items()}
        return values

    def write(self, predictions: Tagged, folder: Path) -> None:
        """entity_report.txt for people and entity_report.json for tools: each type with how many there are."""
        counted = counts(predictions, lenient)
        types = [{"type": type, **_scores(*of), "support": of[1], "predicted": of[2]} for type, of in counted.items()]
        _, support, claimed = _sum(counted)
        means: dict[str, dict[str, Any]] = {"micro": _scores(*_sum(counted)), "macro": _macro(counted)}
        by_definition = {"micro": _scores(*_sum(counts(predictions, strict)))}
        for of in means.values():
            of |= {"support": support, "predicted": claimed}
        write_json(folder / "entity_report.json", {"types": types, **means, "strict": by_definition})
        rows = [[str(one["type"]), *_cells(one)] for one in types]
        rows += [[name, *_cells(of)] for name, of in means.items()]
        table = text_table(["", "precision", "recall", "f1", "support", "predicted"], rows)
        write_text(folder / "entity_report.txt", f"{table}\nstrict IOB2: f1 {by_definition['micro']['f1']:.4f}\n")


Counts = tuple[int, int, int]
"""Entities that are right, true ones, predicted ones."""


def counts(predictions: Tagged, reading: Reading) -> dict[str, Counts]:
    """Those of each type, pooled over all sentences."""
    hits: Counter[str] = Counter()
    support: Counter[str] = Counter()
    claimed: Counter[str] = Counter()
    guesses = predictions.by_sentence(predictions.predicted)
    for true, guess in zip(predictions.by_sentence(predictions.tags), guesses, strict=True):
        gold, found = set(reading(true)), set(reading(guess))
        hits.update(one.type for one in gold & found)
        support.update(one.type for one in gold)
        claimed.update(one.type for one in found)
    return {type: (hits[type], support[type], claimed[type]) for type in predictions.types}


def _sum(counted: Mapping[str, Counts]) -> Counts:
    hits, support, claimed = (sum(of[i] for of in counted.values()) for i in range(3))
    return hits, support, claimed


def _scores(hits: int, support: int, claimed: int) -> dict[str, float]:
    return {
        "f1": 2 * hits / max(1, support + claimed),
        "precision": hits / max(1, claimed),
        "recall": hits / max(1, support),
    }


def _macro(counted: Mapping[str, Counts]) -> dict[str, float]:
    scores = [_scores(*of) for of in counted.values() if of[1] or of[2]]
    return {name: sum(one[name] for one in scores) / max(1, len(scores)) for name in ("f1", "precision", "recall")}


def _cells(of: Mapping[str, Any]) -> list[str]:
    return [*(f"{of[name]:.4f}" for name in ("precision", "recall", "f1")), f"{of['support']}", f"{of['predicted']}"]
