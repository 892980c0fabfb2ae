"""Find, replace, freeze and count the modules of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from harness.errors import ModelError, did_you_mean

ROLES = ("attention", "feed_forward", "all")


def role_of(name: str) -> str | None:
    """The role of a linear layer by its place: inside a numbered block `attention` or `feed_forward`, else None.

    Follows the names transformers gives: BERT, RoBERTa, ELECTRA, DistilBERT, DeBERTa, ALBERT, ModernBERT, Llama.
    """
    parts = name.split(".")
    if not any(part.isdigit() for part in parts):
        return None
    return "attention" if any("att" in part.lower() for part in parts) else "feed_forward"


def linears(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Names of the linear layers with a role (`attention`, `feed_forward`, `all`), or whose name ends in one of a list.

    Raises:
        ModelError: a name that matches no linear layer, or a role no layer has.
    """
    known = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(targets, str) and targets in ROLES:
        wanted = {"attention", "feed_forward"} if targets == "all" else {targets}
        found = [name for name in known if role_of(name) in wanted]
        if not found:
            raise ModelError(f"no linear layer of {type(model).__name__} has the role '{targets}'", fix=_layers(known))
        return found
    names = [targets] if isinstance(targets, str) else targets
    for target in names:
        if not any(_ends_in(name, target) for name in known):
            last_parts = {name.rsplit(".", 1)[-1] for name in known}
            raise ModelError(
                f"target_modules: '{target}' matches no linear layer of {type(model).__name__}",
                fix=f"use a role ({', '.join(ROLES)}) or a layer name; {did_you_mean(target, last_parts)}",
            )
    return [name for name in known if any(_ends_in(name, target) for target in names)]


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _layers(known: list[str]) -> str:
    return f"name layers instead, such as {', '.join(known[:3])}" if known else "the model has no nn.Linear at all"


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The numbered blocks of a model: every item of every `nn.ModuleList`, with its name."""
    return [
        (f"{name}.{child_name}" if name else child_name, child)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for child_name, child in module.named_children()
    ]


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of the one called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def freeze_except(model: nn.Module, names: Iterable[str]) -> None:
    """Let only these parameters train."""
    kept = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; `share` is the trainable part of what full fine-tuning would train."""

    total: int
    trainable: int
    pretrained: int

    @property
    def share(self) -> float:
        """Trainable parameters against those of full fine-tuning (the model before any method touched it)."""
        return self.trainable / self.pretrained


def count_parameters(model: nn.Module, pretrained: int) -> ParameterCount:
    """Count a model's parameters; `pretrained` is the number before any method touched it."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCount(total, sum(p.numel() for p in model.parameters() if p.requires_grad), pretrained)
