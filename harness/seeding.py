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
    """The state of Python's, NumPy's and torch's generators: on the CPU, and on this process's GPU if it has one."""

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
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    numpy_state: Any = np.random.get_state(legacy=False)
    return RandomState(random.getstate(), numpy_state, torch.get_rng_state(), cuda)


def restore(state: RandomState) -> None:
    """Put every generator back to a captured state."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    for device in state.cuda:
        torch.cuda.set_rng_state(device)


def to_hex(state: Tensor) -> str:
    """A generator's state (bytes) as text."""
    return bytes(state.cpu().numpy()).hex()


def from_hex(text: str) -> Tensor:
    """The reverse of `to_hex`."""
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def to_json(state: RandomState) -> dict[str, Any]:
    """A captured state as values that JSON can hold."""
    numpy_state = {**state.numpy, "state": {**state.numpy["state"], "key": state.numpy["state"]["key"].tolist()}}
    return {
        "python": state.python,
        "numpy": numpy_state,
        "torch": to_hex(state.torch),
        "cuda": [to_hex(device) for device in state.cuda],
    }


def from_json(values: dict[str, Any]) -> RandomState:
    """The reverse of `to_json`."""
    version, internal, gauss = values["python"]
    inner = values["numpy"]["state"]
    numpy_state = {**values["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}}
    cuda = [from_hex(device) for device in values["cuda"]]
    return RandomState((version, tuple(internal), gauss), numpy_state, from_hex(values["torch"]), cuda)
