"""The real tokens of a batch in one row, and attention that keeps each text to itself.

Texts of similar length are taken together, padded to the longest of their group: attention is a small part of a layer's
work, and many small products would cost more than the padding. Legend: B texts, T tokens of the longest, N real tokens
of all, D width, H heads; b texts of a group, t tokens of its longest.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.batch import cut
from harness.models.dropout import dropout as drop

_GROUP_TOKENS = 24
"""What one more group in attention costs, in tokens."""
_REFUSED = ("softcap", "sliding_window", "s_aux", "position_bias")
"""What attention would have to do, and does not here."""


class Unsuitable(RuntimeError):
    """A model cannot run on real tokens only; the message says why."""


@dataclass(frozen=True)
class Group:
    """Texts that attention takes together."""

    tokens: Tensor
    """Where their tokens are among the N; padding repeats a text's first token. [b * t]"""
    size: tuple[int, int]
    """b texts, t tokens of the longest."""
    bias: Tensor | None
    """-inf where a key is padding; None: there is none. [b, 1, 1, t]"""


@dataclass(frozen=True)
class Layout:
    """Where the real tokens of a batch are, and how attention groups them."""

    shape: tuple[int, int]
    """B and T."""
    real: Tensor
    """Where they are among B * T. [N]"""
    groups: list[Group]
    back: Tensor
    """Where each of the N is among the tokens of all groups. [N]"""

    def flat(self, x: Tensor) -> Tensor:
        """[B, T, ...] or [1, T, ...] -> [1, N, ...]"""
        whole: Tensor = x.expand(self.shape[0], *x.shape[1:])
        return whole.flatten(0, 1).index_select(0, self.real).unsqueeze(0)

    def padded(self, x: Tensor) -> Tensor:
        """[1, N, D] -> [B, T, D]"""
        rows: Tensor = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[2:])
        return rows.index_copy(0, self.real, x[0]).view(*self.shape, *x.shape[2:])


current: ContextVar[Layout | None] = ContextVar("layout", default=None)
"""The layout of the batch that a model is computing just now; None: it sees padding."""


def lay_out(mask: Tensor) -> Layout:
    """The layout of a batch with this attention mask, 1 for real tokens. [B, T]"""
    lengths = mask.sum(1).tolist()
    starts = (mask.sum(1).cumsum(0) - mask.sum(1)).cpu()
    groups, back, filled = [], torch.empty(sum(lengths), dtype=torch.long), 0
    for rows in cut(lengths, sum(lengths) * len(lengths), _GROUP_TOKENS):
        longest = max(lengths[row] for row in rows)
        place = torch.arange(longest)
        is_real = place < torch.tensor([lengths[row] for row in rows])[:, None]  # [b, t]
        tokens = (starts[rows][:, None] + place * is_real).flatten()
        back[tokens[is_real.flatten()]] = filled + torch.arange(len(tokens))[is_real.flatten()]
        bias = torch.zeros(is_real.shape).masked_fill_(~is_real, -math.inf)[:, None, None].to(mask.device)
        groups.append(Group(tokens.to(mask.device), (len(rows), longest), None if bool(is_real.all()) else bias))
        filled += len(tokens)
    real = mask.flatten().nonzero().squeeze(1)
    return Layout((mask.shape[0], mask.shape[1]), real, groups, back.to(mask.device))


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of the current layout's texts, each to itself; the interface of transformers' attention functions.

    query: [1, H, N, D/H]; key, value: the same, or with a divisor of H -> [1, N, H, D/H]. Raises Unsuitable.
    """
    layout, groups = current.get(), query.shape[1] // key.shape[1]
    if groups > 1:  # grouped queries (Ainslie et al. 2023, arXiv 2305.13245): neighbours share keys and values
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    odd = [name for name in _REFUSED if others.get(name) is not None]
    if layout is None or odd or query.shape != key.shape or query.shape[:1] + query.shape[2:3] != (1, len(layout.back)):
        raise Unsuitable(f"attention of another kind{' with ' + ', '.join(odd) if odd else ''}")
    is_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query * scaling, key, value))  # [N, H, D/H]
    parts = []
    for group in layout.groups:
        b, t = group.size
        qs, ks, vs = (x.index_select(0, group.tokens).unflatten(0, (b, t)).transpose(1, 2) for x in (q, k, v))
        scores = qs @ ks.transpose(-2, -1)  # [b, H, t, t]
        if group.bias is not None:
            scores = scores + group.bias.to(scores.dtype)
        if is_causal:
            scores = scores + scores.new_full((t, t), -math.inf).triu(1)
        mixed = drop(scores.softmax(-1), dropout) @ vs
        parts.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).index_select(0, layout.back).unsqueeze(0), None
