"""Yardsticks for taggers on the same test sentences: what a score has to beat. All are fitted on the training split.

Each word its most frequent tag there; the names of train, found again by their words; and logistic regression on a
word's spelling and that of its neighbours.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.data.dataset import Example, Splits
from harness.data.entities import lenient
from harness.predictions import Tagged
from harness.registry import build

Words = tuple[str, ...]


def of_tags(splits: Splits) -> Mapping[str, Callable[[], dict[str, float]]]:
    """entity_f1 and tag_accuracy on the whole test split, by name."""
    test = splits.test.examples
    return {
        "most frequent tag of each word": lambda: score(test, most_frequent(splits), splits.labels),
        "list of the names in train": lambda: score(test, listed_names(splits), splits.labels),
        "logistic regression on spelling": lambda: score(test, _logistic(splits), splits.labels),
    }


def score(examples: Sequence[Example], predicted: list[list[int]], labels: list[str]) -> dict[str, float]:
    """entity_f1 and tag_accuracy of predicted tags, sentence by sentence."""
    tags = np.array([tag for example in examples for tag in example.label[1]], dtype=np.int64)
    flat = np.array([tag for sentence in predicted for tag in sentence], dtype=np.int64)
    found = Tagged(tags, np.eye(len(labels))[flat], labels, [example.label[0] for example in examples], [])
    return {key: build("metric", key, {}).compute(found)[key] for key in ("entity_f1", "tag_accuracy")}


def most_frequent(splits: Splits) -> list[list[int]]:
    """Of each word, whatever its case, the tag it has most often in train; `O` for words that train has not."""
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for words, tags in _labels(splits.train.examples):
        for word, tag in zip(words, tags, strict=True):
            counts[word.casefold()][tag] += 1
    best = {word: min(found, key=lambda tag: (-found[tag], tag)) for word, found in counts.items()}
    return [[best.get(word.casefold(), 0) for word in words] for words, _ in _labels(splits.test.examples)]


def listed_names(splits: Splits) -> list[list[int]]:
    """Words that are an entity wherever they stand in train more often than not, the longest first, with the type
    that they have most often.
    """
    listed: defaultdict[Words, Counter[str]] = defaultdict(Counter)
    sentences = [(_folded(words), tags) for words, tags in _labels(splits.train.examples)]
    for words, tags in sentences:
        for one in lenient([splits.labels[tag] for tag in tags]):
            listed[words[one.start : one.end]][one.type] += 1
    longest = max(map(len, listed), default=0)
    seen = Counter(part for words, _ in sentences for part in _parts(words, longest) if part in listed)
    names = {
        part: min(types, key=lambda type: (-types[type], type))
        for part, types in listed.items()
        if 2 * sum(types.values()) > seen[part]
    }
    return [_find(_folded(words), names, longest, splits.labels) for words, _ in _labels(splits.test.examples)]


def _find(words: Words, names: Mapping[Words, str], longest: int, labels: list[str]) -> list[int]:
    tags, place = [0] * len(words), 0
    while place < len(words):
        size = next((n for n in range(min(longest, len(words) - place), 0, -1) if words[place : place + n] in names), 0)
        if size:
            type = names[words[place : place + size]]
            inside = [labels.index(f"I-{type}")] * (size - 1)
            tags[place : place + size] = [labels.index(f"B-{type}"), *inside]
        place += max(1, size)
    return tags


def _parts(words: Words, longest: int) -> list[Words]:
    return [words[a : a + n] for a in range(len(words)) for n in range(1, min(longest, len(words) - a) + 1)]


def _folded(words: Words) -> Words:
    return tuple(word.casefold() for word in words)


def _labels(examples: Sequence[Example]) -> list[tuple[Words, tuple[int, ...]]]:
    return [example.label for example in examples]


def _logistic(splits: Splits) -> list[list[int]]:
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = DictVectorizer()
    known = vectors.fit_transform([f for words, _ in _labels(splits.train.examples) for f in _features(words)])
    tags = [tag for _, tags in _labels(splits.train.examples) for tag in tags]
    model = LogisticRegression(max_iter=200)
    model.fit(known, tags)
    test = [words for words, _ in _labels(splits.test.examples)]
    guesses = iter(model.predict(vectors.transform([f for words in test for f in _features(words)])).tolist())
    return [[next(guesses) for _ in words] for words in test]


def _features(words: Sequence[str]) -> list[dict[str, Any]]:
    """Of each word: itself, its end, its shape, and the two words on each side."""
    padded = ["<<", "<", *(word.casefold() for word in words), ">", ">>"]
    return [
        {
            "-2": padded[i], "-1": padded[i + 1], "word": padded[i + 2], "+1": padded[i + 3], "+2": padded[i + 4],
            "end": padded[i + 2][-3:], "shape": _shape(word),
        }
        for i, word in enumerate(words)
    ]  # fmt: skip


def _shape(word: str) -> str:
    """`Xx` of `Paris`, `d` of `1998`, `X.` of `J.`: kinds of characters, repeats once."""
    kinds = ["X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word]
    return "".join(kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before)
