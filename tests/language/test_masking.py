"""Masking against its definition, by enumeration and by bounds that chance exceeds once in a thousand million times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.language.masking import dynamic, static
from harness.losses import IGNORE

MASK, V = 4, 50
OTHERS = np.arange(5, V)
SPECIAL = np.arange(5)


def row(length: int, seed: int = 0) -> NDArray[np.int64]:
    """Tokens between special ones."""
    inner = np.random.default_rng(seed).integers(5, V, size=length - 2)
    return np.array([2, *inner, 3])


def is_within(count: int, number: int, share: float) -> bool:
    """Whether so many of so many are what a share makes likely: 6.2 standard deviations."""
    return abs(count - number * share) <= 6.2 * math.sqrt(number * share * (1 - share)) + 1


def test_every_token_has_one_of_three_fates_in_their_shares() -> None:
    ids = row(200_002)
    before = ids.copy()
    read, labels = dynamic(ids, ~np.isin(ids, SPECIAL), 0.15, MASK, OTHERS, 7, 3)
    np.testing.assert_array_equal(ids, before)
    chosen = labels != IGNORE
    assert not chosen[[0, -1]].any()
    np.testing.assert_array_equal(read[~chosen], ids[~chosen])
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    number = int(chosen.sum())
    assert is_within(number, 200_000, 0.15)
    masked, same = int((read[chosen] == MASK).sum()), int((read[chosen] == ids[chosen]).sum())
    assert is_within(masked, number, 0.8)
    assert is_within(same, number, 0.1 + 0.1 / len(OTHERS)), "10 % stay, and a random token may be the same one"
    assert is_within(number - masked - same, number, 0.1 - 0.1 / len(OTHERS))
    others = read[chosen][(read[chosen] != MASK) & (read[chosen] != ids[chosen])]
    assert set(others.tolist()) == set(OTHERS.tolist()), "any token but a special one"
    counts = np.bincount(others, minlength=V)[5:]
    assert all(is_within(int(count), len(others), 1 / len(OTHERS)) for count in counts)


def test_tokens_are_chosen_by_themselves() -> None:
    """Neighbours are both chosen as often as independence says; so are the same places of two rows."""
    ids = row(100_002)
    first, second = (dynamic(ids, ~np.isin(ids, SPECIAL), 0.15, MASK, OTHERS, 7, n)[1] != IGNORE for n in (0, 1))
    assert is_within(int((first[1:] & first[:-1]).sum()), 100_000, 0.15**2)
    assert is_within(int((first & second).sum()), 100_000, 0.15**2)


def test_a_draw_is_that_of_its_seed_and_row() -> None:
    ids = row(60)
    given = ids, ~np.isin(ids, SPECIAL), 0.5, MASK, OTHERS
    draws = {(seed, n): tuple(dynamic(*given, seed, n)[0]) for seed in (0, 1, 2**62) for n in range(20)}
    assert len(set(draws.values())) == 60
    assert all(draw == tuple(dynamic(*given, *key)[0]) for key, draw in draws.items())


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_chunk_is_hidden_or_nothing(seed: int) -> None:
    hidden = 0
    for number in range(3000):
        ids = row(12, number)
        read, labels = static(ids, ~np.isin(ids, SPECIAL), 0.1, MASK, seed, number)
        if (labels == IGNORE).all():
            np.testing.assert_array_equal(read, ids)
            continue
        hidden += 1
        assert read.tolist() == [2, *[MASK] * 10, 3]
        assert labels.tolist() == [IGNORE, *ids[1:-1].tolist(), IGNORE]
    assert is_within(hidden, 3000, 0.1)


def test_what_cannot_be_chosen_is_left() -> None:
    ids, nothing = row(20), np.zeros(20, dtype=bool)
    for read, labels in (dynamic(ids, nothing, 0.99, MASK, OTHERS, 0, 0), static(ids, nothing, 0.99, MASK, 0, 0)):
        np.testing.assert_array_equal(read, ids)
        assert set(labels.tolist()) == {IGNORE}
