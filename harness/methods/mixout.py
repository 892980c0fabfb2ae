"""Mixout: with probability p a weight is its start value for a step (Lee et al. 2020, arXiv 1909.11299, section 3).

    w_mixed = target + (w - target) * keep / (1 - p),     keep ~ Bernoulli(1 - p),     d w_mixed / d w = keep / (1 - p)

So w_mixed is w on average, the target stays untouched, and w = target is a fixed point of every mask. The target is a
snapshot of this run's own start: the loaded weight, for a new head its initialisation. Of a LoRA layer the target is
the frozen base, so that the update is mixed: W0 + scale B A * keep / (1 - p). Masks are per element, or per unit:
`input` drops whole input units (what the paper's code does), `output` whole output units. Evaluation uses w itself.
Hazards: the gradient of the paper's code lacks the factor 1 / (1 - p); weight decay toward zero works against the pull
to the target and is off for mixed weights; with p near 1 few weights learn in a step, so take a larger learning rate.
Legend: I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import ModelError, SpecError
from harness.method import Backward, Method
from harness.models import surgery
from harness.optim import Rule, Train

_ROLES = {"head": {"head"}, "encoder": {"attention", "feed_forward"}, "all": {"attention", "feed_forward", "head"}}


def keep_factor(
    shape: tuple[int, int], p: float, units: str, like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """keep / (1 - p) for a weight [O, I]: of that shape for `element`, [1, I] for `input`, [O, 1] for `output`."""
    outputs, inputs = shape
    rows, columns = {"element": (outputs, inputs), "input": (1, inputs), "output": (outputs, 1)}[units]
    empty = torch.empty(rows, columns, dtype=like.dtype, device=like.device)
    return empty.bernoulli_(1 - p, generator=generator).div_(1 - p)


def mix(weight: Tensor, target: Tensor, factor: Tensor) -> Tensor:
    """target + (weight - target) * factor, with factor = keep / (1 - p). All broadcast to [O, I]."""
    return target + (weight - target) * factor


class Mask(nn.Module):
    """The factor of one layer: drawn anew in every forward, or held from one `draw` to the next."""

    def __init__(self, shape: tuple[int, int], p: float, units: str, scope: str, is_transposed: bool = False) -> None:
        """`shape` [O, I]; `is_transposed`: the weight is [I, O]; the other arguments as in `Mixout`."""
        super().__init__()
        self.shape, self.p, self.units, self.scope, self.is_transposed = shape, p, units, scope, is_transposed
        self.current: Tensor | None = None

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A factor of the dtype and on the device of `like`; by default from torch's global generator."""
        factor = keep_factor(self.shape, self.p, self.units, like, generator)
        return factor.T if self.is_transposed else factor

    def forward(self, like: Tensor) -> Tensor | None:
        """The factor for this forward; None: the layer is used as it is."""
        return self.draw(like) if self.scope == "forward" else self.current


class MixLinear(nn.Linear):
    """A linear layer, with its own parameters under their own names, that remembers where it started."""

    target: Tensor

    def __init__(self, linear: nn.Linear, mask: Mask) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("target", linear.weight.detach().clone(), persistent=False)  # [O, I]
        self.mask = mask
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., I] -> [..., O]. With one mask per step the weight itself is mixed around the whole backward."""
        if self.training and self.mask.scope == "forward":
            return F.linear(x, mix(self.weight, self.target, self.mask.draw(self.weight)), self.bias)
        return F.linear(x, self.weight, self.bias)


class MixConv1D(nn.Module):
    """The same of transformers' `Conv1D` (GPT-2), whose weight is [I, O]."""

    target: Tensor

    def __init__(self, layer: Any, mask: Mask) -> None:
        super().__init__()
        self.weight, self.bias, self.kind = layer.weight, layer.bias, type(layer)
        self.register_buffer("target", layer.weight.detach().clone(), persistent=False)  # [I, O]
        self.mask = mask
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., I] -> [..., O]; computed as `Conv1D` does, bit for bit."""
        weight: Tensor = self.weight
        if self.training and self.mask.scope == "forward":
            weight = mix(weight, self.target, self.mask.draw(weight))
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1)


_MIXED = (MixLinear, MixConv1D)


def _plain(layer: Any) -> nn.Module:
    """The layer without mixout, with the very parameters it has."""
    plain: Any
    with torch.device("meta"):
        if isinstance(layer, MixLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        else:
            plain = layer.kind(*reversed(layer.weight.shape))
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)  # type: ignore[no-any-return]


def _own_weights(layer: nn.Module) -> list[str]:
    """The layer's weights, without its bias and without what another method has hung on it."""
    return [name for name, _ in layer.named_parameters(recurse=False) if name.endswith("weight")]


class Mixout(Method):
    """Mixout on the linear layers of a role that train, LoRA layers included; biases are not mixed."""

    not_after: ClassVar[dict[str, str]] = {"awp": "the attack has to start from the weights, not from mixed ones"}

    p: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a weight is its start value; 0 is off."""
    layers: Literal["head", "encoder", "all"] = "head"
    """`head`: layers outside the blocks; `encoder`: attention and feed-forward layers of the blocks; `all`: both."""
    units: Literal["element", "input", "output"] = "input"
    """What is drawn: each weight, or all weights of an input or output unit at once."""
    scope: Literal["step", "forward"] = "step"
    """One mask per optimizer step, so that the cut of a batch changes nothing, or a new one in every forward."""

    _seed: int = PrivateAttr(0)
    _step: int = PrivateAttr(0)

    def off(self) -> Mixout:
        """No weight is its start value but by itself."""
        return self.model_copy(update={"p": 0.0})

    def prepare(self, model: nn.Module, train: Train, steps_per_epoch: int) -> str:
        """Put masks on what trains. Raises ModelError if nothing of the role does, SpecError for LoRA with dropout."""
        self._seed = torch.initial_seed()
        if self.p == 0:
            return "off, because p = 0"
        chosen = [name for name in surgery.layers(model) if surgery.role_of(name) in _ROLES[self.layers]]
        mixed = [name for name in chosen if self._mix(model, name)]
        if not mixed:
            what = f"no linear layer with the role '{self.layers}' trains: a frozen one is its start value already"
            raise ModelError(what, where="methods.mixout.layers", fix="take another role, or leave mixout out")
        drawn = f"{self.units} masks drawn once per {self.scope}"
        plain = sum(isinstance(model.get_submodule(name), _MIXED) for name in mixed)
        decay = "; no weight decay where they are no LoRA layers" if 0 < plain < len(mixed) else ""
        decay = "; no weight decay on them" if plain == len(mixed) else decay
        rest = f"; left out, because frozen: {len(chosen) - len(mixed)}" if len(chosen) > len(mixed) else ""
        count = f"{len(mixed)} layers such as" if len(mixed) > 1 else "1 layer,"
        return f"{count} {mixed[0]}, p = {self.p:g}, {drawn}{decay}{rest}"

    def _mix(self, model: nn.Module, name: str) -> bool:
        """Put a mask on this layer if it trains; returns whether it does."""
        layer: Any = model.get_submodule(name)
        if hasattr(layer, "update_mask"):  # a LoRA layer
            if layer.base.weight.requires_grad:
                what = f"{name} belongs to the new head, which trains whole, and has LoRA: what is its start value?"
                raise SpecError(what, where="methods.mixout.layers", fix="give lora or mixout other layers")
            if layer.dropout.p:
                what = "mixout on a LoRA layer takes the place of its dropout"
                raise SpecError(what, where="methods.lora.dropout", fix="set it to 0")
            layer.update_mask = self._mask(layer.lora_b.shape[0], layer.lora_a.shape[1])
            return True
        is_wrapped = surgery.is_wrapped(layer)
        weights = layer.parameters() if is_wrapped else map(layer.get_parameter, _own_weights(layer))
        if not any(weight.requires_grad for weight in weights):
            return False
        if is_wrapped or not surgery.is_linear(layer):
            kind = "wrapped by another method" if is_wrapped else f"a {type(layer).__name__}"
            what = f"{name} is {kind}; mixout is for plain linear layers and for methods.lora"
            raise ModelError(what, where="methods.mixout.layers", fix="take another role: head, encoder or all")
        if surgery.is_transposed(layer):
            surgery.replace(model, name, MixConv1D(layer, self._mask(*layer.weight.T.shape, is_transposed=True)))
        else:
            surgery.replace(model, name, MixLinear(layer, self._mask(*layer.weight.shape)))
        return True

    def _mask(self, outputs: int, inputs: int, *, is_transposed: bool = False) -> Mask:
        return Mask((outputs, inputs), self.p, self.units, self.scope, is_transposed)

    def optimizer_rules(self, model: nn.Module) -> dict[str, Rule]:
        """No weight decay on mixed weights: it would pull them to zero, mixout pulls them to their start."""
        mixed = [name for name, module in model.named_modules() if isinstance(module, _MIXED)]
        return {f"{name}.weight": Rule(weight_decay=0.0) for name in mixed}

    def start_step(self, step: int) -> None:
        """The masks of a step follow from the run's seed and the step: the same in every process and after a resume."""
        self._step = step

    def wrap_backward(self, backward: Backward, model: nn.Module) -> Backward:
        """With one mask per step: mix the weights in place, take the gradient, put the weights back bit for bit."""
        if self.scope == "forward" or self.p == 0:
            return backward

        def mixed() -> Tensor:
            generators: dict[torch.device, torch.Generator] = {}
            restored: list[tuple[Tensor, Tensor, Tensor]] = []  # weight, its value, factor
            masks: list[Mask] = []
            try:
                for layer in model.modules():
                    if isinstance(layer, _MIXED):
                        weight = layer.weight.detach()
                        factor = layer.mask.draw(weight, self._generator(weight.device, generators))
                        restored.append((layer.weight, weight.clone(), factor))
                        weight.copy_(mix(weight, layer.target, factor))
                    elif isinstance(mask := getattr(layer, "update_mask", None), Mask):
                        masks.append(mask)
                        like: Any = layer.lora_a
                        mask.current = mask.draw(like.detach(), self._generator(like.device, generators))
                loss = backward()
            finally:
                for parameter, value, _ in restored:
                    parameter.detach().copy_(value)
                for mask in masks:
                    mask.current = None
            for parameter, _, factor in restored:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            return loss

        return mixed

    def _generator(self, device: torch.device, known: dict[torch.device, torch.Generator]) -> torch.Generator:
        """This step's generator on a device, seeded when it is first asked for."""
        if device not in known:
            known[device] = torch.Generator(device).manual_seed((self._seed * 1_000_003 + self._step) % 2**63)
        return known[device]

    @property
    def can_merge(self) -> bool:
        """Nothing is added at inference."""
        return False

    def merge(self, model: nn.Module) -> nn.Module:
        """Back to plain linear layers, with the weights they have."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, _MIXED):
                surgery.replace(model, name, _plain(layer))
            elif hasattr(layer, "update_mask"):
                layer.update_mask = None
        return model
