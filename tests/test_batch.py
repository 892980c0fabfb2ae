from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.batch import cut
from tests.toys import random_batch


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 200), st.integers(0, 100))
def test_every_row_is_in_exactly_one_micro_batch_and_none_passes_the_budget(
    lengths: list[int], budget: int, overhead: int
) -> None:
    cuts = cut(lengths, budget, overhead)
    assert sorted(itertools.chain(*cuts)) == list(range(len(lengths)))
    assert all(len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget for rows in cuts)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 30))
def test_no_cut_of_the_sorted_rows_is_cheaper(lengths: list[int], budget: int, overhead: int) -> None:
    def cost(cuts: list[list[int]]) -> int:
        return sum(len(part) * max(part) + overhead for part in cuts)

    ordered = sorted(lengths)
    possible = []
    for marks in itertools.product([False, True], repeat=len(ordered) - 1):
        ends = [i + 1 for i, mark in enumerate(marks) if mark]
        parts = [ordered[a:b] for a, b in itertools.pairwise([0, *ends, len(ordered)])]
        if all(len(part) == 1 or len(part) * max(part) <= budget for part in parts):
            possible.append(cost(parts))
    assert cost([[lengths[row] for row in rows] for rows in cut(lengths, budget, overhead)]) == min(possible)


def test_the_longest_micro_batch_comes_first() -> None:
    lengths = [3, 50, 20, 7, 48]
    longest = [max(lengths[row] for row in rows) for rows in cut(lengths, 60, 0)]
    assert longest == sorted(longest, reverse=True)


def test_a_part_is_padded_no_further_than_its_longest_row() -> None:
    batch = random_batch([3, 9, 5])
    part = batch.take([0, 2])
    assert part.per_token["input_ids"].shape == (2, 5)
    assert torch.equal(part.per_token["input_ids"][1], batch.per_token["input_ids"][2, :5])


def test_the_shards_of_all_processes_are_the_batch_and_of_even_length() -> None:
    batch = random_batch([3, 9, 5, 8, 1, 4, 7])
    shards = [batch.shard(rank, 3) for rank in range(3)]
    assert sorted(itertools.chain(*(shard.lengths.tolist() for shard in shards))) == sorted(batch.lengths.tolist())
    assert max(len(shard) for shard in shards) - min(len(shard) for shard in shards) <= 1


def test_a_process_may_get_nothing_of_a_small_batch() -> None:
    assert len(random_batch([3]).shard(1, 2)) == 0
