"""Find, replace, freeze and count the modules of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.errors import ModelError, did_you_mean

ROLES = {
    "attention": {"attention"},
    "feed_forward": {"feed_forward"},
    "all": {"attention", "feed_forward"},
    "head": {"head"},
}

_BASES = ("base", "base_layer")


class Added(nn.Module):
    """Base of modules that a method adds beside pretrained ones: never a target of another method."""

    enabled = True
    """Off: the model computes bit for bit what it did before the module was added."""


def role_of(name: str) -> str | None:
    """The role of a layer by its place: inside a numbered block `attention` or `feed_forward`; outside, `head`.

    Embeddings and their projections have none. Follows the names transformers gives: BERT, RoBERTa, ELECTRA,
    DistilBERT, DeBERTa-v2, ALBERT, ModernBERT, GPT-2, Llama.
    """
    parts = name.lower().split(".")
    if any(part.isdigit() for part in parts):
        return "attention" if any("att" in part for part in parts) else "feed_forward"
    return None if any("embed" in part for part in parts) else "head"


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer: `nn.Linear`, or transformers' `Conv1D` (GPT-2), whose weight is transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer's weight is [I, O], as in transformers' `Conv1D`, instead of [O, I]."""
    return not isinstance(layer, nn.Linear)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by name, plain or wrapped by a method, and every `nn.MultiheadAttention` as one layer.

    Left out are layers that a method added, and those that share their weight with another layer or the embeddings.
    """
    found = dict(_layers(model, ""))
    uses = Counter(id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding))
    uses.update(id(layer.weight) for layer in found.values() if hasattr(layer, "weight"))
    return {name: layer for name, layer in found.items() if uses[id(getattr(layer, "weight", None))] < 2}


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    inside = module
    while (base := _base(inside)) is not None:
        inside = base
    if is_linear(inside) or isinstance(inside, nn.MultiheadAttention):
        yield name, module
    elif inside is module and not isinstance(module, Added):
        for child_name, child in module.named_children():
            yield from _layers(child, f"{name}.{child_name}" if name else child_name)


def is_wrapped(layer: nn.Module) -> bool:
    """Whether a method has already put itself around this layer, or in its place until it is merged."""
    return _base(layer) is not None or getattr(layer, "stands_in", False)


def _base(layer: nn.Module) -> nn.Module | None:
    """What a layer is wrapped around: `base_layer` is the word of PEFT's tuners."""
    word = "base" if isinstance(layer, Added) else "base_layer"
    return base if isinstance(base := getattr(layer, word, None), nn.Module) else None


def pretrained_name(name: str) -> str:
    """The name a parameter had before methods wrapped its layer."""
    for word in _BASES:
        name = name.replace(f".{word}.", ".")
    return name


def owner(model: nn.Module, parameter: str) -> str:
    """The module PEFT saves whole: `classifier.dense.weight` belongs to `classifier`, a new `bert.pooler` to itself."""
    inside = parameter.startswith(f"{getattr(model, 'base_model_prefix', '')}.")
    return ".".join(parameter.split(".")[: -1 if inside else 1])


def linears(model: nn.Module, targets: str | list[str], where: str = "") -> list[str]:
    """Names of the linear layers with a role (`ROLES`), or whose name ends in one of a list; `where` is for errors.

    Raises:
        ModelError: a name that matches no linear layer, a role no layer has, or a layer another method has wrapped.
    """
    known = layers(model)
    if isinstance(targets, str):
        found = [name for name in known if role_of(name) in ROLES[targets]]
        if not found:
            fix = (
                f"name layers instead, such as {', '.join([*known][:3])}" if known else "the model has no linear layer"
            )
            what = f"no linear layer of {type(model).__name__} has the role '{targets}'"
            raise ModelError(what, where=where, fix=fix)
    else:
        for target in targets:
            if not any(_ends_in(name, target) for name in known):
                last_parts = {name.rsplit(".", 1)[-1] for name in known}
                raise ModelError(
                    f"'{target}' matches no linear layer of {type(model).__name__}",
                    where=where,
                    fix=f"use a role ({', '.join(ROLES)}) or a layer name; {did_you_mean(target, last_parts)}",
                )
        found = [name for name in known if any(_ends_in(name, target) for target in targets)]
    for name in found:
        if is_wrapped(known[name]):
            wrapper = type(known[name]).__name__
            what = f"{name} is already wrapped by another method ({wrapper})"
            raise ModelError(what, where=where, fix="give them other targets")
        if any(isinstance(child, Added) for child in known[name].children()):
            what = f"{name} carries what another method added, which would be lost when {name} is replaced"
            raise ModelError(what, where=where, fix="give them other targets")
    return found


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def names_of(model: nn.Module, parameters: Iterable[Tensor]) -> set[str]:
    """The names these very parameters have in the model now, whatever was wrapped around them meanwhile."""
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch off everything that methods added: inside, the model computes bit for bit what the pretrained one did.

    The layers of PEFT's tuners included; their own switch would also change what trains. Not a prompt of PEFT, and not
    a tuner that changes the pretrained weights to start with (PiSSA, OLoRA).
    """
    added = [module for module in model.modules() if isinstance(module, Added) and module.enabled]
    tuners: list[Any] = [module for module in model.modules() if getattr(module, "disable_adapters", None) is False]
    try:
        for module in added:
            module.enabled = False
        for tuner in tuners:
            tuner._disable_adapters = True
        yield
    finally:
        for module in added:
            module.enabled = True
        for tuner in tuners:
            tuner._disable_adapters = False


def disable_dropout(model: nn.Module) -> None:
    """Switch off whatever drops at random in training, for good, in place.

    That is every module of a class called dropout (torch's, PEFT's), and every rate that a module keeps as a number and
    hands to a function, as the attention of most families of transformers does, and `nn.MultiheadAttention`.
    """
    for module in model.modules():
        is_dropout = "dropout" in type(module).__name__.lower()
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or (is_dropout and name == "p")):
                setattr(module, name, 0.0)


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


def peft_task_type(model: nn.Module) -> str | None:
    """What the PEFT library calls the task of a model, by the name of its class; None: it has no name for it."""
    known = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}
    return next((task for part, task in known.items() if part in type(model).__name__), None)
