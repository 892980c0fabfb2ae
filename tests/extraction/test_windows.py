from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from harness.extraction import windows


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int]:
    room = draw(st.integers(1, 20))
    sizes = draw(st.lists(st.integers(0, 24), min_size=1, max_size=60))
    return sizes, room, draw(st.integers(0, (room - 1) // 2))


@given(cases())
def test_every_word_is_in_windows_that_fit(case: tuple[list[int], int, int]) -> None:
    sizes, room, overlap = case
    found = windows.lay(sizes, room, overlap)
    assert found[0][0] == 0 and found[-1][1] == len(sizes)
    for (start, end), (following, last) in itertools.pairwise(found):
        assert start < following <= end < last
        assert sum(sizes[following:end]) <= overlap
        assert (
            sum(sizes[following - 1 : end]) > overlap
            or sum(sizes[following - 1 : end + 1]) > room
            or (following - 1 == start)
        )
    for start, end in found:
        assert sum(sizes[start:end]) <= room or end - start == 1 or sizes[end - 1] > room


@given(cases())
def test_a_word_belongs_to_the_window_with_the_most_context(case: tuple[list[int], int, int]) -> None:
    """By the definition: the smaller number of tokens to an edge of the window that is not one of the sentence."""
    sizes, room, overlap = case
    found = windows.lay(sizes, room, overlap)
    owners = windows.owners(sizes, found)
    assert len(owners) == len(sizes)
    for word, owner in enumerate(owners):

        def context(window: windows.Window, word: int = word) -> float:
            start, end = window
            if not start <= word < end:
                return -1.0
            sides = [sum(sizes[start:word])] if start > 0 else []
            sides += [sum(sizes[word + 1 : end])] if end < len(sizes) else []
            return min(sides, default=float("inf"))

        assert context(found[owner]) == max(map(context, found)) >= 0


def test_by_hand() -> None:
    assert windows.lay([1] * 10, 6, 2) == [(0, 6), (4, 10)]
    assert windows.owners([1] * 10, [(0, 6), (4, 10)]) == [0] * 5 + [1] * 5
    assert windows.lay([3, 9, 2], 5, 2) == [(0, 1), (1, 2), (2, 3)]
    assert windows.lay([2, 2], 5, 1) == [(0, 2)]
