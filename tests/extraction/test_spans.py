"""Windows hold every context token, targets give the answer back, and the best span is the best of all."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from harness.extraction.answers import NO_ANSWER
from harness.extraction.spans import Window, best, decode, windows
from tests.tasks.test_sequence_classification import tokenizer, words

RANDOM = np.random.default_rng(0)


def window(offsets: list[tuple[int, int]], first: int = 3, row: int = 0) -> Window:
    size = first + len(offsets) + 1
    return Window(row, {"input_ids": np.zeros(size, np.int32)}, first, np.array(offsets, np.int32).reshape(-1, 2))


@pytest.mark.parametrize(("stride", "max_length"), [(0, 12), (3, 12), (7, 16), (2, 40)])
def test_windows_overlap_by_stride_and_hold_everything(stride: int, max_length: int) -> None:
    pairs = [(words(3), words(length, offset=5)) for length in (1, 5, 9, 23, 40)]
    found = list(windows(tokenizer(), pairs, max_length, stride))
    for row, (question, context) in enumerate(pairs):
        own = [one for one in found if one.row == row]
        spans = [[tuple(pair) for pair in one.offsets.tolist()] for one in own]
        expected = [(context.index(word, at), context.index(word, at) + len(word)) for word, at in places(context)]
        merged = spans[0] + [pair for part in spans[1:] for pair in part[stride:]]
        assert merged == expected
        for before, after in itertools.pairwise(spans):
            assert before[len(before) - stride :] == after[:stride]
        for one in own:
            assert len(one) <= max_length
            assert one.first == 1 + len(question.split()) + 1
            assert len(one.inputs["input_ids"]) == len(one.inputs["token_type_ids"]) == len(one)
    assert len([one for one in found if one.row == 4]) > 1


def places(context: str) -> list[tuple[str, int]]:
    at, found = 0, []
    for word in context.split():
        at = context.index(word, at)
        found.append((word, at))
        at += len(word)
    return found


def test_every_answer_of_whole_words_is_learnt_where_it_stands_whole() -> None:
    """Whatever window: the characters of the target's tokens are the answer's."""
    context = words(30, offset=2)
    found = list(windows(tokenizer(), [(words(2), context)], 14, 4))
    assert len(found) > 3
    for (_, begin), (last, at) in itertools.product(places(context), repeat=2):
        end = at + len(last)
        if begin > at:
            continue
        for one in found:
            start, stop = one.target((context[begin:end], begin))
            is_whole = one.offsets[0, 0] <= begin and end <= one.offsets[-1, 1]
            if not is_whole:
                assert (start, stop) == (0, 0)
                continue
            assert one.offsets[start - one.first, 0] == begin
            assert one.offsets[stop - one.first, 1] == end


def test_targets_at_odd_places() -> None:
    one = window([(0, 3), (4, 9), (9, 10), (12, 15)])
    assert one.target(NO_ANSWER) == (0, 0)
    assert one.target(("x" * 2, 5)) == (4, 4), "within a token: that token"
    assert one.target(("x" * 5, 4)) == (4, 4)
    assert one.target(("x" * 6, 4)) == (4, 5)
    assert one.target(("x" * 4, 11)) == (6, 6), "what it begins with is no token"
    assert one.target(("x", 10)) == (0, 0), "of what is no token nothing can be learnt"
    assert one.target(("x" * 9, 9)) == (0, 0), "it ends behind the window"
    assert window([]).target(("x", 0)) == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 5, 13])
@pytest.mark.parametrize("longest", [1, 3, 30])
@pytest.mark.parametrize("number", [1, 4, 500])
def test_the_best_spans_by_enumeration(size: int, longest: int, number: int) -> None:
    start, end = RANDOM.normal(size=size), RANDOM.normal(size=size)
    every = [(float(start[a] + end[b]), a, b) for a in range(size) for b in range(a, min(size, a + longest))]
    expected = sorted(every, key=lambda item: -item[0])[:number]
    assert best(start, end, longest, number) == expected


def test_it_finds_what_the_twenty_best_starts_and_ends_find() -> None:
    """The usual shortcut gives the same span wherever it contains the best one, and never a better one."""
    equal = 0
    for _ in range(200):
        start, end = RANDOM.normal(size=(2, 60))
        tops = [np.argsort(-of)[:20] for of in (start, end)]
        short = [(start[a] + end[b], a, b) for a in tops[0] for b in tops[1] if a <= b < a + 30]
        ((score, a, b),) = best(start, end, 30, 1)
        found = max(short, default=(-math.inf, -1, -1))
        assert score >= found[0] - 1e-12
        equal += (a, b) == found[1:]
    assert equal > 150


def decoded(threshold: float | None, null: float = -9.0) -> tuple[str, int, float, float]:
    """Two windows of `one two three` with `two` in both, and the best score in the second."""
    context = "one two  three"
    first, second = window([(0, 3), (4, 7)]), window([(4, 7), (9, 14)])
    logits = np.full((2, 2, 6), -20.0)
    logits[0, :, 0], logits[1, :, 0] = null / 2, null  # no answer: the least of both counts
    logits[0, :, 3:5] = [[0.0, 1.0], [0.0, 1.0]]
    logits[1, :, 3:5] = [[1.5, 0.0], [0.0, 1.0]]
    found = decode([(first, logits[0]), (second, logits[1])], context, 30, 20, threshold)
    return found.text, found.start, found.span_score, found.null_score


def test_the_best_span_over_all_windows_is_cut_from_the_context() -> None:
    assert decoded(None) == ("two  three", 4, 2.5, -18.0)


def test_no_answer_needs_a_higher_score_than_the_best_span() -> None:
    assert decoded(0.0, null=1.0) == ("two  three", 4, 2.5, 1.0)
    assert decoded(0.0, null=3.0) == ("", -1, 2.5, 3.0)
    assert decoded(0.6, null=3.0)[0] == "two  three"
    assert decoded(-3.0, null=0.0)[0] == ""
    assert decoded(None, null=50.0)[0] == "two  three", "where every question has an answer"


def test_the_confidence_is_the_share_among_distinct_candidates() -> None:
    """A span of two windows counts once, with its better score."""
    context, offsets = "ab cd", [(0, 2), (3, 5)]
    for threshold in (None, 0.0):
        logits = RANDOM.normal(size=(2, 2, 6))
        parts = [(window(offsets), one) for one in logits]
        scores = [max(float(one[0, 3 + a] + one[1, 3 + b]) for one in logits) for a in range(2) for b in range(a, 2)]
        null = min(float(one[0, 0] + one[1, 0]) for one in logits)
        known = scores + ([] if threshold is None else [null])
        total = sum(math.exp(score) for score in known)
        found = decode(parts, context, 30, 20, threshold)
        expected = max(scores) if threshold is None or null <= max(scores) else null
        assert found.confidence == pytest.approx(math.exp(expected) / total)


def test_spaces_around_a_span_are_no_part_of_it() -> None:
    """Some tokenizers count the space before a word as the word's."""
    logits = np.zeros((2, 6))
    logits[:, 4] = 3.0
    found = decode([(window([(0, 2), (2, 5)]), logits)], "ab cd", 30, 20, None)
    assert (found.text, found.start) == ("cd", 3)


def test_many_random_windows_never_fail() -> None:
    draw = random.Random(1)
    for _ in range(50):
        size = draw.randint(1, 40)
        logits = RANDOM.normal(size=(2, size + 4)) * draw.choice([0.0, 1.0, 1e6])
        context = "x" * (2 * size)
        one = window([(2 * i, 2 * i + 2) for i in range(size)])
        found = decode([(one, logits)], context, draw.randint(1, 50), draw.randint(1, 30), draw.choice([None, 0.0]))
        assert found.text == context[found.start : found.start + len(found.text)] if found.text else found.start == -1
        assert 0 < found.confidence <= 1
