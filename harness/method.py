"""The contract of a fine-tuning method: settings, and hooks that do nothing unless overridden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from harness.settings import Settings

Backward = Callable[[], Tensor]
"""REPLACES every `.grad` with the exact gradient of the current batch over all processes, and returns its loss.

The loss is a detached tensor of shape [] on the device: no step waits for the device unless something is logged.
"""


class Method(Settings):
    """One fine-tuning method: its settings are its fields. Methods apply from top to bottom of the spec's map."""

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Add or replace modules, in place or not, and return the model. Raises ModelError where nothing matches."""
        return model

    def trainable(self, model: nn.Module) -> set[str] | None:
        """Names of the parameters this method trains instead of the pretrained ones; None where it leaves them alone.

        As soon as one method of a run names its own, everything else but the task's head is frozen.
        """
        return None

    def start_step(self, step: int) -> None:
        """Called before each optimizer step (counted from 0): what is random per step is drawn here."""

    def wrap_backward(self, backward: Backward, model: nn.Module) -> Backward:
        """Return a `Backward` that calls the given one; this is how methods compose."""
        return backward

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold what was added into plain weights, as far as the method allows, and return the model."""
        return model

    def save(self, model: nn.Module, folder: Path, base_model: str, head: set[str]) -> None:
        """Write what was learnt, and the head's parameters, in the format the field reads. Default: nothing."""
