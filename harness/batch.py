"""A batch, and how it is cut. Legend: B examples, T tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The examples of one optimizer step (or a part of them), padded on the right to the longest."""

    lengths: Tensor
    """Real tokens of each example. [B]"""
    per_token: dict[str, Tensor]
    """Model inputs and token labels, padded. [B, T]"""
    per_example: dict[str, Tensor]
    """Labels and the like. [B, ...]"""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: list[int]) -> Batch:
        """These examples, padded no further than the longest of them."""
        lengths = self.lengths[rows]
        longest = int(lengths.max()) if rows else 0
        return Batch(
            lengths,
            {name: tensor[rows, :longest] for name, tensor in self.per_token.items()},
            {name: tensor[rows] for name, tensor in self.per_example.items()},
        )

    def shard(self, rank: int, world: int) -> Batch:
        """The examples of one process: every `world`-th in order of length, so that the work is even."""
        return self if world == 1 else self.take(self.by_length()[rank::world])

    def by_length(self) -> list[int]:
        """Row numbers, shortest example first; equal lengths keep their order."""
        return [int(row) for row in torch.argsort(self.lengths, stable=True)]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; lengths stay on the host, where batches are cut."""
        return Batch(
            self.lengths,
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.per_token.items()},
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.per_example.items()},
        )


FEWEST = 1 << 40
"""An overhead beside which padding is nothing."""


def overhead_tokens(device: torch.device) -> int:
    """What one more forward and backward costs, in tokens.

    On a CPU short micro-batches pay off. On a GPU launching kernels costs more than padding: there a batch is cut only
    where memory demands it.
    """
    return 64 if device.type == "cpu" else 16_384


def cut(lengths: list[int], budget: int, overhead: int) -> list[list[int]]:
    """Cut a batch into micro-batches of at most `budget` padded tokens at the least cost.

    A micro-batch costs rows x longest + `overhead` tokens (what one more forward and backward is worth). Sorted by
    length the cheapest cut is one into runs, found by dynamic programming over the B examples. An example longer
    than the budget stands alone. `FEWEST` as overhead: as few micro-batches as the budget allows.

    Returns:
        Row numbers of each micro-batch, longest micro-batch first, so that memory peaks at the start.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best: list[float] = [0.0]
    start: list[int] = [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        first = max(0, end - max(1, budget // max(1, longest)))
        costs = [best[i] + (end - i) * longest + overhead for i in range(first, end)]
        cheapest = min(range(len(costs)), key=costs.__getitem__)
        best.append(costs[cheapest])
        start.append(first + cheapest)
    cuts, end = [], len(order)
    while end > 0:
        cuts.append(order[start[end] : end])
        end = start[end]
    return cuts
