"""Spans of a context: the windows that a model reads of it, what is learnt in each, and how an answer is read off.

A context that does not fit beside its question is read in windows that overlap by `stride` tokens; BERT's own code
(`run_squad.py` of google-research/bert) moves on by `doc_stride` tokens instead. Legend: T tokens of a window, C those
of them that are the context's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.extraction.answers import Answer

_AT_ONCE = 256
"""Questions that are turned into tokens at once: what a tokenizer returns takes many times the memory of a window."""


@dataclass(frozen=True)
class Window:
    """What a model reads at once: a question and a part of its context."""

    row: int
    """Of the question in its split."""
    inputs: dict[str, NDArray[np.int32]]
    """Model inputs by name. [T]"""
    first: int
    """Place of the first context token."""
    offsets: NDArray[np.int32]
    """First and last character, the last one excluded, of every context token. [C, 2]"""

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    def target(self, answer: Answer) -> tuple[int, int]:
        """Places of the first and last token of an answer; (0, 0) if it does not stand whole in this window."""
        begin, end = answer[1], answer[1] + len(answer[0])
        if begin < 0 or not len(self.offsets) or begin < self.offsets[0, 0] or end > self.offsets[-1, 1]:
            return 0, 0
        first = int(np.searchsorted(self.offsets[:, 1], begin, side="right"))  # the first token that ends after it
        last = int(np.searchsorted(self.offsets[:, 0], end, side="left")) - 1  # the last one that begins before its end
        return (self.first + first, self.first + last) if first <= last else (0, 0)


@dataclass(frozen=True)
class Found:
    """The answer to one question."""

    text: str
    start: int
    """Its first character in the context; -1: there is no answer."""
    span_score: float
    """Logits of start and end of the best span."""
    null_score: float
    """The same of the first token, the least over the windows: one that holds the answer speaks against it."""
    confidence: float


def windows(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int, stride: int) -> Iterator[Window]:
    """The windows of questions and contexts, in order; a fast tokenizer, and questions that leave room for `stride`."""
    for begin in range(0, len(pairs), _AT_ONCE):
        questions, contexts = zip(*pairs[begin : begin + _AT_ONCE], strict=True)
        read = tokenizer(
            list(questions), list(contexts), truncation="only_second", max_length=max_length, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True, return_attention_mask=True, verbose=False,
        )  # fmt: skip
        of, offsets = read.pop("overflow_to_sample_mapping"), read.pop("offset_mapping")
        for number, row in enumerate(of):
            inputs = {name: np.array(values[number], dtype=np.int32) for name, values in read.items()}
            context = [place for place, part in enumerate(read.sequence_ids(number)) if part == 1]
            own = np.array([offsets[number][place] for place in context], dtype=np.int32).reshape(-1, 2)
            yield Window(begin + row, inputs, context[0] if context else 0, own)


def best(
    start: NDArray[np.float64], end: NDArray[np.float64], longest: int, number: int
) -> list[tuple[float, int, int]]:
    """The best spans of a window: start plus end logit, first and last token, a <= b < a + longest.

    All spans are compared, of equal ones the first is taken. start, end: [C]
    """
    first = np.repeat(np.arange(len(start)), min(longest, len(start)))
    last = first + np.tile(np.arange(min(longest, len(start))), len(start))
    first, last = first[last < len(start)], last[last < len(start)]
    scores = start[first] + end[last]
    if len(scores) > number:  # a partial sort, and whatever equals the last one that is kept
        limit = -np.partition(-scores, number - 1)[number - 1]
        kept = np.flatnonzero(~(scores < limit))
        scores, first, last = scores[kept], first[kept], last[kept]
    order = np.argsort(-scores, kind="stable")[:number]
    return [(float(scores[i]), int(first[i]), int(last[i])) for i in order]


def decode(
    parts: Sequence[tuple[Window, NDArray[np.float64]]],
    context: str,
    longest: int,
    number: int,
    threshold: float | None,
) -> Found:
    """The best span over all windows of a question, or no answer.

    Args:
        parts: the question's windows with their logits, start and end. [2, T]
        context: what it is cut from, by characters.
        longest: tokens of an answer at most.
        number: candidates that the confidence is a share among (softmax of their scores).
        threshold: there is no answer if that scores higher than the best span by more; None: there is always one.
    """
    spans: dict[tuple[int, int], float] = {}
    for window, logits in parts:
        own = logits[:, window.first : window.first + len(window.offsets)]
        for score, first, last in best(own[0], own[1], longest, number):
            place = int(window.offsets[first, 0]), int(window.offsets[last, 1])
            spans[place] = max(score, spans.get(place, score))
    null = min(float(logits[0, 0] + logits[1, 0]) for _, logits in parts)
    ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:number]
    (begin, end), score = ranked[0]
    scores = np.array([*(one for _, one in ranked), *([] if threshold is None else [null])])
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    if threshold is not None and null - score > threshold:
        return Found("", -1, score, null, float(shares[-1]))
    text = context[begin:end]
    return Found(text.strip(), begin + len(text) - len(text.lstrip()), score, null, float(shares[0]))
