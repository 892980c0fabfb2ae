"""Adversarial weight perturbation: take the gradient where the weights would hurt most, and step from where they are.

    1. g = gradient of the whole batch at w;   2. v from g by a rule;   3. gradient of the same batch at w + v;
    4. back to w, bit for bit;   5. clip, optimizer step, schedule step, once, with the gradient of 3.

    relative   v = gamma |w| g / |g|, per tensor                       Wu et al. 2020, arXiv 2004.05884, section 4
    box        r = adv_lr (|w| + e) g / (|g| + e), e = 1e-6, cut elementwise to ±adv_eps |w|: the rule of Kaggle's NLP
               solutions. With adv_lr much larger than adv_eps it is v = adv_eps |w| sign(g) almost everywhere.
    sam        v = rho g / |g| with one norm over all attacked tensors Foret et al. 2021, arXiv 2010.01412, eq. 2

Both passes see the same micro-batches, the same dropout and the same mixout masks. A tensor with |w| = 0, |g| = 0 or
a gradient that is not finite does not move. Only what trains is attacked: with LoRA at its start B = 0 has radius zero
and A has gradient zero, so `relative` and `box` attack the head alone until B has grown (`sam` moves B at once); the
frozen weights are never attacked, their gradient is what LoRA saves. Hazards: an active step costs a second forward and
backward and the memory of what is attacked; running out of memory in one pass cuts that pass finer, and then dropout
differs between the passes; running out while perturbing, outside the passes, ends the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from harness import seeding
from harness.errors import ModelError, SpecError
from harness.method import Backward, Method
from harness.models import surgery
from harness.optim import Train

_SETTINGS = {"relative": {"gamma"}, "box": {"adv_lr", "adv_eps"}, "sam": {"rho"}}
_TINY = 1e-6


def relative(weights: list[Tensor], grads: list[Tensor], gamma: float) -> list[Tensor]:
    """v = gamma |w| g / |g| for each tensor. Invariant to the scale of the gradient."""
    return _scaled(grads, gamma * _norms(weights), _norms(grads))


def box(weights: list[Tensor], grads: list[Tensor], adv_lr: float, adv_eps: float) -> list[Tensor]:
    """v = adv_lr (|w| + e) g / (|g| + e), cut elementwise to ±adv_eps |w|: a weight that is zero does not move."""
    moves = _scaled(grads, adv_lr * (_norms(weights) + _TINY), _norms(grads), _TINY)
    for v, w in zip(moves, weights, strict=True):
        bound = w.abs().mul_(adv_eps)
        torch.minimum(v, bound, out=v)
        torch.maximum(v, bound.neg_(), out=v)
    return moves


def sam(weights: list[Tensor], grads: list[Tensor], rho: float) -> list[Tensor]:
    """v = rho g / |g| with the norm of all gradients together."""
    norm = torch.linalg.vector_norm(_norms(grads)).expand(len(grads))
    return _scaled(grads, torch.full_like(norm, rho), norm)


def _norms(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of each. [n]"""
    return torch.stack(torch._foreach_norm(tensors))


def _scaled(grads: list[Tensor], sizes: Tensor, norms: Tensor, tiny: float = 0.0) -> list[Tensor]:
    """size * grad / (norm + tiny) of each, and zero where the norm is zero or not finite. sizes, norms: [n]"""
    usable = norms.isfinite() & (norms > 0)
    factors = torch.where(usable, sizes / (norms + tiny), 0.0)
    moves = list(torch._foreach_mul(grads, list(factors.unbind())))
    for move, is_usable in zip(moves, usable.tolist(), strict=True):
        if not is_usable:  # 0 * inf is nan
            move.zero_()
    return moves


def is_active(step: int, steps_per_epoch: int, start_epoch: int, start: float, stop: float, every: int) -> bool:
    """Whether a step (from 0) attacks: from `start_epoch` (from 1), in steps ceil(start n) <= i < ceil(stop n) of the n
    of an epoch, every so many of them.
    """
    epoch, index = divmod(step, steps_per_epoch)
    first, end = (math.ceil(round(share * steps_per_epoch, 9)) for share in (start, stop))
    return epoch + 1 >= start_epoch and first <= index < end and (index - first) % every == 0


class AWP(Method):
    """Adversarial weight perturbation of the trainable weights of a role."""

    rule: Literal["relative", "box", "sam"] = "relative"
    """How the perturbation follows from the gradient; `harness methods awp` has the formulas."""
    gamma: float = Field(default=0.01, ge=0)
    """relative: |v| / |w| of each tensor; 0 is off."""
    adv_lr: float = Field(default=1.0, ge=0)
    """box: |r| / |w| before the cut; 0 is off."""
    adv_eps: float = Field(default=0.01, ge=0)
    """box: no weight moves by more than this share of itself; 0 is off."""
    rho: float = Field(default=0.05, ge=0)
    """sam: |v| over all attacked tensors; 0 is off."""
    layers: Literal["attention", "feed_forward", "encoder", "head", "embeddings", "all"] = "all"
    """What is attacked. `encoder`: both parts of the blocks; `all`: encoder and head, of `sam` embeddings as well.
    `relative` and `box` move matrices only, `sam` biases and normalisation weights too."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of each epoch's steps after which attacks begin."""
    stop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each epoch's steps after which they end."""
    start_epoch: int = Field(default=1, ge=1)
    """The first epoch with attacks, counted from 1."""
    every: int = Field(default=1, ge=1)
    """Attack every so many of these steps."""

    _steps_per_epoch: int = PrivateAttr(1)
    _step: int = PrivateAttr(0)
    _observed: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def is_active(self, step: int) -> bool:
        """Whether this step (counted from 0) attacks."""
        return is_active(step, self._steps_per_epoch, self.start_epoch, self.start, self.stop, self.every)

    def is_off(self) -> bool:
        """Whether the size of the perturbation is zero: then a step costs and does what it does without AWP."""
        return any(getattr(self, name) == 0 for name in _SETTINGS[self.rule])

    def off(self) -> AWP:
        """Without size."""
        return self.model_copy(update=dict.fromkeys(_SETTINGS[self.rule], 0.0))

    def always(self) -> AWP:
        """An attack in every step. Raises SpecError for a schedule without steps."""
        self._check_schedule()
        return self.model_copy(update={"start": 0.0, "stop": 1.0, "start_epoch": 1, "every": 1})

    def attacked(self, model: nn.Module) -> list[str]:
        """Names of the parameters that are attacked."""
        embeddings = {n for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
        roles = {"encoder": {"attention", "feed_forward"}, "all": {"attention", "feed_forward", "head"}}
        wanted = roles.get(self.layers, {self.layers}) | ({"embeddings", None} if self._takes_everything() else set())
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and (parameter.ndim >= 2 or self.rule == "sam")
            and ("embeddings" if name.rpartition(".")[0] in embeddings else surgery.role_of(name)) in wanted
        ]

    def _takes_everything(self) -> bool:
        return self.rule == "sam" and self.layers == "all"

    def prepare(self, model: nn.Module, train: Train, steps_per_epoch: int) -> str:
        """Raises SpecError for settings without effect, ModelError if nothing of the role trains."""
        others = set().union(*_SETTINGS.values()) - _SETTINGS[self.rule]
        if dead := {name for name in others if getattr(self, name) != type(self).model_fields[name].default}:
            where, what = f"methods.awp.{min(dead)}", f"has no effect with rule: {self.rule}"
            raise SpecError(what, where=where, fix=f"take it out (~{where}), or take its rule ({_rules()})")
        self._check_schedule()
        self._steps_per_epoch = steps_per_epoch
        steps = train.total_steps(steps_per_epoch)
        if not (active := sum(self.is_active(step) for step in range(steps))):
            what = f"never active in {steps} steps, {steps_per_epoch} an epoch"
            raise SpecError(what, where="methods.awp", fix="start earlier (start, start_epoch), or train longer")
        if not (names := self.attacked(model)):
            what = f"nothing with the role '{self.layers}' trains, and only what trains is attacked"
            raise ModelError(what, where="methods.awp.layers", fix="take another role, or leave awp out")
        return self._describe(model, names, f"{active} of {steps} steps")

    def _check_schedule(self) -> None:
        if self.start >= self.stop:
            what = f"{self.start:g} is not below stop ({self.stop:g}): no step lies between them"
            raise SpecError(what, where="methods.awp.start", fix="start earlier or stop later in the epoch")

    def _describe(self, model: nn.Module, names: list[str], when: str) -> str:
        if self.is_off():
            return "off, because the size of its perturbation is 0"
        size = ", ".join(f"{name} = {getattr(self, name):g}" for name in sorted(_SETTINGS[self.rule]))
        note = f"rule {self.rule}, {size}, attacks {len(names)} tensors in {when}, which cost up to twice as much"
        zero = sum(not model.get_parameter(name).any() for name in names) if self.rule != "sam" else 0
        return f"{note}; {zero} of them are zero now and do not move until they have grown" if zero else note

    def start_step(self, step: int) -> None:
        """The schedule counts optimizer steps."""
        self._step = step

    def wrap_backward(self, backward: Backward, model: nn.Module) -> Backward:
        """Gradient, perturb, gradient again, restore. The loss it returns is that at w."""
        names = set(self.attacked(model))
        targets = [p for name, p in model.named_parameters() if name in names]
        others = [p for name, p in model.named_parameters() if name not in names and p.requires_grad]

        def adversarial() -> Tensor:
            self._observed = {}
            if self.is_off() or not self.is_active(self._step):
                return backward()
            random_state = seeding.capture()
            with _frozen(others):  # the first pass needs the gradient of what is attacked, and no more
                loss = backward()
            moved = [p for p in targets if p.grad is not None]
            v = self._perturbation([p.detach() for p in moved], [p.grad for p in moved if p.grad is not None])
            seeding.restore(random_state)
            with _moved(moved, v):
                self._observed = {"adversarial_loss": backward()}
            return loss

        return adversarial

    def _perturbation(self, weights: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        if self.rule == "relative":
            return relative(weights, grads, self.gamma)
        return box(weights, grads, self.adv_lr, self.adv_eps) if self.rule == "box" else sam(weights, grads, self.rho)

    def observed(self) -> dict[str, Tensor]:
        """`adversarial_loss` in active steps: the loss at w + v."""
        return self._observed


def _rules() -> str:
    return "; ".join(f"{rule}: {', '.join(sorted(names))}" for rule, names in _SETTINGS.items())


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _moved(parameters: list[nn.Parameter], moves: list[Tensor]) -> Iterator[None]:
    """Inside, the weights are w + v, in the memory of v; afterwards they are w, whatever happened: untouched."""
    values = [parameter.data for parameter in parameters]
    torch._foreach_add_(moves, values)
    try:
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.data = move
        yield
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
