"""Units are put in the order of their texts, of which only the beginnings are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from harness.data import splitting
from harness.data.splitting import Row, marks, normalised

LONG = st.builds("".join, st.lists(st.sampled_from(["a" * 31, "a", "b", "Ö", "é" * 70]), min_size=1, max_size=9))


def row(text: str, group: str = "") -> Row:
    return Row("", (text,), marks((text,)), None, "", group, ())


@given(st.lists(LONG, unique_by=lambda text: normalised((text,))))
def test_texts_with_the_same_beginning_are_ordered_by_the_rest(texts: list[str]) -> None:
    ordered = [normalised(one.texts) for one in splitting._ordered([row(text) for text in texts])]
    assert ordered == sorted(normalised((text,)) for text in texts)


@given(st.sets(LONG))
def test_groups_are_ordered_by_their_names(groups: set[str]) -> None:
    rows = [row(f"text of {number}", group) for number, group in enumerate(groups)]
    assert [one.group for one in splitting._ordered(rows)] == sorted(groups)


def test_a_text_is_not_read_where_its_beginning_tells_it_apart() -> None:
    reads = []

    @dataclass
    class Watched:
        text: str

        def __iter__(self) -> Iterator[str]:
            reads.append(self.text)
            return iter([self.text])

    texts = [f"{i} {'x' * 50}" for i in range(9)] + ["x" * 50, "x" * 51]
    rows = [Row("", Watched(text), marks((text,)), None, "", "", ()) for text in texts]
    sides = splitting.carve(rows, {"test": 0.3}, seed=0)
    assert sorted(map(len, sides.values())) == [3, 8]
    assert reads == ["x" * 50, "x" * 51]
