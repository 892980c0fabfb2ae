"""Yardsticks for answers that are spans of a context: what reading without understanding reaches. None is fitted.

A span drawn at random; the sentence that shares most words with the question; of that sentence the longest run of
capitalised words and numbers that the question does not name.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.data.dataset import Example, Splits
from harness.predictions import Spans
from harness.registry import build

_SENTENCE = re.compile(r"[^.!?]+(?:[.!?](?!\s|$)[^.!?]*)*[.!?]*")
_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_LONGEST = 5
"""Words of a span at random."""


def of_answers(splits: Splits) -> Mapping[str, Callable[[], dict[str, float]]]:
    """Each gives `squad_f1` and `squad_exact_match` on the whole test split."""
    test = splits.test.examples
    known: dict[str, Callable[[Example], str]] = {"random span": random_span}
    known |= {"sentence with most words of the question": similar_sentence, "names and numbers in it": longest_name}
    if splits.labels:
        known["no answer"] = lambda _: ""
    return {name: lambda answer=answer: score(test, answer) for name, answer in known.items()}  # type: ignore[misc]


def score(examples: Sequence[Example], answer: Callable[[Example], str]) -> dict[str, float]:
    """The metric of what is answered to each."""
    texts, size = [answer(example) for example in examples], len(examples)
    references = [[text for text, _ in example.label] for example in examples]
    predictions = Spans(texts, [-1] * size, references, np.zeros((size, 2)), np.zeros(size), [{}] * size)
    found: dict[str, float] = build("metric", "squad", {}).compute(predictions)
    return {key: found[key] for key in ("squad_f1", "squad_exact_match")}


def random_span(example: Example) -> str:
    """One to five words of the context in a row, drawn by its question."""
    context = example.pair or ""
    words = list(_WORD.finditer(context))
    if not words:
        return context
    seed = hashlib.sha256(f"{example.text}\0{context}".encode()).digest()
    draw = random.Random(seed)
    first = draw.randrange(len(words))
    last = min(len(words), first + draw.randint(1, _LONGEST)) - 1
    return context[words[first].start() : words[last].end()]


def similar_sentence(example: Example) -> str:
    """The first of those with most different words of the question."""
    asked = set(_WORD.findall(example.text.lower()))
    sentences = [found[0].strip() for found in _SENTENCE.finditer(example.pair or "")] or [example.pair or ""]
    return max(sentences, key=lambda sentence: len(asked & set(_WORD.findall(sentence.lower()))))


def longest_name(example: Example) -> str:
    """In that sentence; the whole of it if it has none."""
    sentence, asked = similar_sentence(example), set(_WORD.findall(example.text.lower()))
    runs: list[list[re.Match[str]]] = [[]]
    for word in _WORD.finditer(sentence):
        if word[0][0].isupper() or word[0][0].isdigit():
            runs[-1] += [word] if word[0].lower() not in asked else []
        elif runs[-1]:
            runs.append([])
    longest = max(runs, key=len)
    return sentence[longest[0].start() : longest[-1].end()] if longest else sentence
