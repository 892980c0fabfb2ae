"""Random generators: seed all of them, capture and restore them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of Python's, NumPy's and torch's generators (CPU and every CUDA device)."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch: Tensor
    cuda: list[Tensor]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> RandomState:
    """The state of every generator, to be given back to `restore`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy_state: Any = np.random.get_state(legacy=False)
    return RandomState(random.getstate(), numpy_state, torch.get_rng_state(), cuda)


def restore(state: RandomState) -> None:
    """Put every generator back to a captured state."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)
