"""Tagged made from a seed."""

from __future__ import annotations

import numpy as np

from harness.predictions import Tagged

TYPES = ["PER", "LOC", "macro"]


def names_of(types: list[str]) -> list[str]:
    return ["O", *(f"{letter}-{type}" for type in types for letter in "BI")]


def tagged(gold: list[list[str]], predicted: list[list[str]], types: list[str]) -> Tagged:
    """These tags and these predicted ones, nearly without doubt; the words are w0, w1, ..."""
    names = names_of(types)
    place = {name: i for i, name in enumerate(names)}
    true, guess = ([place[tag] for tags in side for tag in tags] for side in (gold, predicted))
    words = [tuple(f"w{i}" for i in range(len(tags))) for tags in gold]
    rows = [{"id": str(i), "text": " ".join(of)} for i, of in enumerate(words)]
    scores = 5.0 * np.eye(len(names))[guess] if guess else np.zeros((0, len(names)))
    return Tagged(np.array(true, dtype=np.int64), scores, names, words, rows)


def random_tagged(seed: int, sentences: int = 30, types: list[str] = TYPES, skill: float = 0.6) -> Tagged:
    """Random tags, most of them malformed; a share of `skill` of the words is right."""
    draw = np.random.default_rng(seed)
    names = names_of(types)
    gold = [[names[i] for i in draw.integers(len(names), size=draw.integers(1, 15))] for _ in range(sentences)]
    guess = [[tag if draw.random() < skill else names[draw.integers(len(names))] for tag in tags] for tags in gold]
    return tagged(gold, guess, types)
