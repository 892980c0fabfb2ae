"""Save and restore what a run trains: safetensors only, nothing that could execute code when read."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import storage
from harness.errors import StorageError

WEIGHTS = "trained.safetensors"


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters and the persistent buffers, copied to the host, by name."""
    persistent = model.state_dict()
    kept: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in kept.items()}


def save(state: dict[str, Tensor], folder: Path) -> Path:
    """Write `trained.safetensors`, whole or not at all. Raises StorageError."""
    path = folder / WEIGHTS
    storage.write_tensors(path, state)
    return path


def load(folder: Path) -> dict[str, Tensor]:
    """Read `trained.safetensors`. Raises StorageError."""
    try:
        return dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read {folder / WEIGHTS}", why=str(error)) from error


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put saved values back, in place. Raises StorageError if they are not those of what this model trains."""
    expected = trained_state(model).keys()
    if expected != state.keys():
        odd = sorted(expected ^ state.keys())[:3]
        raise StorageError("these weights belong to another model or other methods", why=f"differing: {', '.join(odd)}")
    model.load_state_dict(state, strict=False)
