"""Dropout that does not cost more than the matrix products beside it: on a CPU torch draws each element on its own.

Srivastava et al. 2014, JMLR 15. An element is kept when 16 random bits are below a threshold, four elements to a draw:
p is met to the nearest multiple of 2^-16, and the scale is that of the p that is met, so the mean is exact. All bits
come from torch's generator: capturing and restoring it repeats the masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p); any shape.

    Elsewhere than on a CPU it is torch's own.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p, training)
    kept = round((1 - p) * _LEVELS)
    if not training or kept == _LEVELS:
        return x
    return x * _mask(x, kept)


def _mask(x: Tensor, kept: int) -> Tensor:
    """1 / (1 - p) where an element is kept, else 0; of the shape and dtype of `x`."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)  # uniform over all 2^16 values
    mask = torch.empty(x.shape, dtype=x.dtype)
    torch.lt(bits, kept - _LEVELS // 2, out=mask)
    return mask.mul_(_LEVELS / max(kept, 1))


class Dropout(nn.Dropout):
    """`nn.Dropout` with these masks."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape -> the same."""
        return dropout(input, self.p, self.training)


def install(model: nn.Module) -> None:
    """Make every `nn.Dropout` of a model one of these; hooks, and what methods hung on it, stay."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
