"""Kneser-Ney: sums to one, the formula by hand, and nltk's own where its discounts are the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.language import kneser_ney
from harness.language.kneser_ney import KneserNey, Trigrams, discounts, unigram

V = 7


def sequence(length: int, seed: int = 0) -> list[int]:
    """Some tokens often, the last one never."""
    draw = np.random.default_rng(seed)
    return list(map(int, draw.integers(0, V - 1, length) * draw.integers(0, 2, length)))


def trigrams(tokens: list[int]) -> Trigrams:
    padded = np.array([V, V, *tokens])
    return Trigrams(padded[:-2], padded[1:-1], padded[2:])


def distribution(model: KneserNey, u: int, v: int) -> NDArray[np.float64]:
    return model.probabilities(Trigrams(np.full(V, u), np.full(V, v), np.arange(V)))


@pytest.mark.parametrize("length", [1, 5, 60, 2000])
def test_probabilities_sum_to_one_after_any_two_tokens_and_none_is_zero(length: int) -> None:
    model = KneserNey(trigrams(sequence(length)), V)
    for u in range(V + 1):
        for v in range(V + 1):
            found = distribution(model, u, v)
            assert found.sum() == pytest.approx(1, abs=1e-12)
            assert (found > 0).all()


def by_hand(tokens: list[int], u: int, v: int, w: int) -> float:
    """The formula of the module, over dictionaries of n-grams."""
    padded = [V, V, *tokens]
    three = Counter(zip(padded, padded[1:], padded[2:], strict=False))
    two = Counter((b, c) for _, b, c in three)
    one = Counter(c for _, c in two)

    def cut(counts: Counter[object]) -> list[float]:
        n = [sum(count == k for count in counts.values()) for k in range(5)]
        y = n[1] / (n[1] + 2 * n[2])
        return [0.0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]

    def mixed(counts: Counter[object], gram: object, same: dict[object, int], d: list[float], lower: float) -> float:
        total = sum(same.values())
        if not total:
            return lower
        taken = sum(d[min(count, 3)] for count in same.values())
        return (counts[gram] - d[min(counts[gram], 3)] + taken * lower) / total

    halves = [0.0, 0.5, 0.5, 0.5]
    lower = mixed(one, w, dict(one), halves, 1 / V)  # type: ignore[arg-type]
    lower = mixed(two, (v, w), {g: c for g, c in two.items() if g[0] == v}, halves, lower)  # type: ignore[arg-type]
    same = {g: c for g, c in three.items() if g[:2] == (u, v)}
    return mixed(three, (u, v, w), same, cut(three), lower)  # type: ignore[arg-type]


def test_it_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens have too few counts of counts for the lower orders: there half a count is taken, as documented."""
    tokens = sequence(300)
    real, calls = discounts, []

    def first_only(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        calls.append(1)
        return real(counts) if len(calls) == 1 else np.array([0.0, 0.5, 0.5, 0.5])

    monkeypatch.setattr(kneser_ney, "discounts", first_only)
    model = KneserNey(trigrams(tokens), V)
    for u, v in ((0, 0), (1, 0), (3, 2), (V, V), (V, tokens[0]), (6, 6), (0, 6)):
        assert distribution(model, u, v) == pytest.approx([by_hand(tokens, u, v, w) for w in range(V)], rel=1e-12)


def test_discounts_by_hand() -> None:
    """n1..n4 = 8, 4, 2, 1: Y = 8 / 16; D = 1 - 2Y/2, 2 - 3Y/2, 3 - 4Y/2."""
    counts = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4] + [9] * 3)
    assert discounts(counts).tolist() == [0, 0.5, 1.25, 2.0]
    assert discounts(np.array([5, 6])).tolist() == [0, 0.5, 0.5, 0.5]


def test_against_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    """nltk takes one discount and stops at the unigrams: the same where ours are made so."""
    from nltk.lm import KneserNeyInterpolated

    tokens = sequence(400, seed=3)
    padded = [V, V, *tokens]
    words = [str(token) for token in padded]
    grams = [tuple(words[i : i + n]) for n in (1, 2, 3) for i in range(3 - n, len(words) - n + 1)]
    reference = KneserNeyInterpolated(3, discount=0.1)
    reference.fit([grams], vocabulary_text=[str(token) for token in range(V)])
    given = iter([0.1, 0.1, 0.0])
    monkeypatch.setattr(kneser_ney, "discounts", lambda counts: np.array([0.0, *[next(given)] * 3]))
    model = KneserNey(trigrams(tokens), V)
    seen = {(u, v) for u, v, _ in zip(padded, padded[1:], padded[2:], strict=False) if u != V}
    for u, v in sorted(seen):
        expected = [reference.score(str(w), (str(u), str(v))) for w in range(V)]
        assert distribution(model, u, v) == pytest.approx(expected, abs=1e-12)


def test_unigram_by_hand() -> None:
    found = unigram(np.array([0, 0, 1]), np.array([0, 1, 2]), 4)
    assert found.tolist() == [3 / 7, 2 / 7, 1 / 7]


def test_a_large_vocabulary_fits_into_the_keys() -> None:
    """Three tokens of a vocabulary of two million are one number."""
    size = 2_000_000
    top = np.array([size - 1] * 3)
    assert KneserNey(Trigrams(top, top, top), size).probabilities(Trigrams(top, top, top))[0] > 0.5
