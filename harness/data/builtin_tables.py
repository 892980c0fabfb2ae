"""Built-in data as tables: what PyPI packages carry, and what is made from a seed."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.catalogue import builtin, instructions, landmarks
from harness.data import conll, synthetic_entities
from harness.data.splitting import SPLITS
from harness.data.synthetic_entities import Sentences
from harness.data.tables import Parts, Table

RATED_LABELS = {1: ["negative", "positive"], 2: ["negative", "neutral", "positive"]}


def _read_rated(name: str, cuts: list[float]) -> Table:
    labels, cells = RATED_LABELS[len(cuts)], []
    for row in builtin.ratings(name):
        label = labels[-1] if row.mean > cuts[-1] else labels[0] if row.mean < cuts[0] else labels[-2]
        facts = {"text": row.text, "label": label, "document": row.document, "id": row.id, "ratings": row.ratings}
        cells.append((f"{builtin.PREFIX}{name}, sentence {row.id}", facts))
    return Table(["text", "label", "document"], cells, labels, is_rated=True)


def parts(name: str, cuts: list[float], sentences: Sentences) -> Parts:
    """The parts of a built-in by its name: `cuts` for rated sentences, `sentences` for `ner`. Raises DataError."""
    if name == "ner":
        return {part: partial(_made, sentences, part) for part in SPLITS}
    if name == "instructions":
        return {"train": _read_instructions}
    if name in landmarks.NAMES:
        return {"train": partial(_made_up, name)}
    if name in builtin.CORPORA:
        return {"train": _read_news}
    return {"train": partial(_read_rated, name, cuts)}


def _made(sentences: Sentences, part: str) -> Table:
    return Table(list(conll.COLUMNS), synthetic_entities.make(sentences, part))


def _read_instructions() -> Table:
    """500 pairs made from a seed; `kind` is which of seven tasks."""
    made = enumerate(instructions.pairs(), 1)
    facts = [(i, {"prompt": pair.prompt, "completion": pair.completion, "kind": pair.kind}) for i, pair in made]
    return Table(["prompt", "completion", "kind"], [(f"builtin:instructions, pair {i}", fact) for i, fact in facts])


def _made_up(name: str) -> Table:
    rows = landmarks.rows(name)
    return Table(landmarks.COLUMNS, [(f"{builtin.PREFIX}{name}, question {row['id']}", row) for row in rows])


def _read_news() -> Table:
    """One row per article; some have no text."""
    rows = [(f"{builtin.PREFIX}news, article {row['id']}", dict[str, Any](row)) for row in builtin.articles()]
    return Table(["text", "title", "id"], rows)
