"""The contract of a fine-tuning method: settings, and hooks that do nothing unless overridden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from harness.optim import Rule, Train
from harness.settings import Settings

Backward = Callable[[], Tensor]
"""REPLACES every `.grad` with the exact gradient of the current batch over all processes, and returns its loss.

The loss is a detached tensor of shape [] on the device: no step waits for the device unless something is logged.
"""


class Method(Settings):
    """One fine-tuning method: its settings are its fields. Methods apply from top to bottom of the spec's map."""

    not_after: ClassVar[dict[str, str]] = {}
    """Methods that must not stand above this one in the map, each with the reason; such a spec is refused."""

    @property
    def starts_pretrained(self) -> bool:
        """Whether it promises that the edited model computes what the pretrained one does until something is learnt."""
        return True

    def off(self) -> Method | None:
        """The same method at strength zero: a step with it is a step without it. None: no setting of it says that."""
        return None

    def always(self) -> Method:
        """The same method, active in every step if it acts in some only: what a rehearsal of a few steps takes."""
        return self

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Add or replace modules, in place or not, and return the model. Raises ModelError where nothing matches."""
        return model

    def trainable(self, model: nn.Module) -> set[str] | None:
        """Names of the parameters this method trains instead of the pretrained ones; None where it leaves them alone.

        As soon as one method of a run names its own, everything else but the task's head is frozen.
        """
        return None

    def prepare(self, model: nn.Module, train: Train, steps_per_epoch: int) -> str:
        """Called once, when every method has edited the model and what trains is decided.

        May replace modules as long as every parameter keeps its name. Returns what the method will do in this run, for
        people; "" where the table of parameters says it all. Raises UserError where it would do nothing.
        """
        return ""

    def optimizer_rules(self, model: nn.Module) -> dict[str, Rule]:
        """What the optimizer does differently for some parameters, by name."""
        return {}

    def start_step(self, step: int) -> None:
        """Called before each optimizer step (counted from 0): what is random per step is drawn here."""

    def wrap_backward(self, backward: Backward, model: nn.Module) -> Backward:
        """Return a `Backward` that calls the given one; this is how methods compose."""
        return backward

    def observed(self) -> dict[str, Tensor]:
        """What the last step showed beside its loss, as `train/<name>`; detached tensors of shape []."""
        return {}

    @property
    def can_merge(self) -> bool:
        """Whether `merge` folds anything into plain weights."""
        return type(self).merge is not Method.merge

    def merge(self, model: nn.Module) -> nn.Module:
        """Fold what was added into plain weights, as far as the method allows, and return the model."""
        return model

    def save(self, model: nn.Module, folder: Path, base_model: str, head: set[str]) -> None:
        """Write what was learnt, and the head's parameters, in the format the field reads. Default: nothing."""
