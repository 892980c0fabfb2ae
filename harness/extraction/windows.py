"""Long sequences in overlapping windows of whole words, and which window is responsible for which word."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

Window = tuple[int, int]
"""Its first word, and the one after its last."""


def lay(sizes: Sequence[int], room: int, overlap: int) -> list[Window]:
    """Windows that hold every word, each of at most `room` tokens; a word that is longer than that stands alone.

    Neighbours share as many words as `overlap` tokens hold.

    Args:
        sizes: tokens of each word.
        room: tokens of a window.
        overlap: less than half of `room`.
    """
    found: list[Window] = []
    start = end = 0
    while end < len(sizes):
        start = _back(sizes, end, overlap) if found else 0
        while start < end and sum(sizes[start : end + 1]) > room:  # the overlap gives way to a long word
            start += 1
        used, end = sum(sizes[start : end + 1]), end + 1
        while end < len(sizes) and used + sizes[end] <= room:
            used, end = used + sizes[end], end + 1
        found.append((start, end))
    return found


def _back(sizes: Sequence[int], end: int, overlap: int) -> int:
    """The first of the words before `end` that together have at most `overlap` tokens."""
    start, used = end, 0
    while start > 0 and used + sizes[start - 1] <= overlap:
        start, used = start - 1, used + sizes[start - 1]
    return start


def owners(sizes: Sequence[int], windows: Sequence[Window]) -> list[int]:
    """The window of each word that shows the most tokens on its poorer side; of equal ones the first.

    Where a window begins or ends with the sequence, nothing is missing on that side.
    """
    before = [0, *accumulate(sizes)]
    best: list[tuple[float, int]] = [(-1.0, 0)] * len(sizes)
    for number, (start, end) in enumerate(windows):
        for word in range(start, end):
            left = before[word] - before[start] if start else float("inf")
            right = before[end] - before[word + 1] if end < len(sizes) else float("inf")
            best[word] = max(best[word], (min(left, right), -number))
    return [-number for _, number in best]
