"""The layers of a Transformer on the real tokens of a batch only: in a random batch half of all tokens are padding.

    embeddings [B, T, D] -> real tokens [1, N, D] -> every layer -> [B, T, D], zero where there is padding -> head

All that a layer does token by token sees N tokens; attention sees groups of texts of similar length, padded to the
longest of the group. Embeddings and head stay outside, so positions, poolers and whatever else differs between model
families need no special care. Before it is used on a model, the outputs of two of its texts are compared with the plain
path; a model that cannot, or does not, compute the same keeps its padding, and a note says why.
Legend: B examples, T tokens of the longest, N real tokens of all, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import memory, notes
from harness.batch import cut
from harness.dropout import dropout as drop

Mode = Literal["auto", "always", "never"]
_NAME = "padding_free"
_GROUP_TOKENS = 24
"""What one more group in attention costs, in tokens."""
_ATTRIBUTE = "_padding_free"
_REFUSED = ("softcap", "sliding_window", "s_aux", "position_bias")
"""What attention would have to do, and does not here."""


class _Unsuitable(RuntimeError):
    """This model cannot run without padding; the message says why."""


@dataclass(frozen=True)
class _Group:
    """Texts that attention takes together."""

    tokens: Tensor
    """Where their tokens are among the N; padding repeats a text's first token. [b * t]"""
    size: tuple[int, int]
    """b texts, t tokens of the longest."""
    bias: Tensor | None
    """-inf where a key is padding; None: there is none. [b, 1, 1, t]"""


@dataclass(frozen=True)
class _Layout:
    """Where the real tokens of a batch are."""

    shape: tuple[int, int]
    """B and T."""
    real: Tensor
    """Where they are among B * T. [N]"""
    groups: list[_Group]
    back: Tensor
    """Where each of the N is among the tokens of all groups. [N]"""

    def flat(self, x: Tensor) -> Tensor:
        """[B, T, ...] or [1, T, ...] -> [1, N, ...]"""
        whole: Tensor = x.expand(self.shape[0], *x.shape[1:])
        return whole.flatten(0, 1).index_select(0, self.real).unsqueeze(0)

    def padded(self, x: Tensor) -> Tensor:
        """[1, N, D] -> [B, T, D]"""
        rows: Tensor = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[2:])
        return rows.index_copy(0, self.real, x[0]).view(*self.shape, *x.shape[2:])


_current: ContextVar[_Layout | None] = ContextVar("layout", default=None)


def _lay_out(mask: Tensor) -> _Layout:
    """The layout of a batch with this attention mask, 1 for real tokens. [B, T]"""
    lengths = mask.sum(1).tolist()
    starts = (mask.sum(1).cumsum(0) - mask.sum(1)).cpu()
    groups, back, filled = [], torch.empty(sum(lengths), dtype=torch.long), 0
    for rows in cut(lengths, sum(lengths) * len(lengths), _GROUP_TOKENS):
        longest = max(lengths[row] for row in rows)
        place = torch.arange(longest)
        is_real = place < torch.tensor([lengths[row] for row in rows])[:, None]  # [b, t]
        tokens = (starts[rows][:, None] + place * is_real).flatten()
        back[tokens[is_real.flatten()]] = filled + torch.arange(len(tokens))[is_real.flatten()]
        bias = torch.zeros(is_real.shape).masked_fill_(~is_real, -math.inf)[:, None, None].to(mask.device)
        groups.append(_Group(tokens.to(mask.device), (len(rows), longest), None if bool(is_real.all()) else bias))
        filled += len(tokens)
    real = mask.flatten().nonzero().squeeze(1)
    return _Layout((mask.shape[0], mask.shape[1]), real, groups, back.to(mask.device))


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of the current layout's texts, each to itself; the interface of transformers' attention functions.

    query, key, value: [1, H, N, D/H] -> [1, N, H, D/H]
    """
    layout = _current.get()
    odd = [name for name in _REFUSED if others.get(name) is not None]
    if layout is None or odd or query.shape != key.shape or query.shape[:1] + query.shape[2:3] != (1, len(layout.back)):
        raise _Unsuitable(f"attention of another kind{' with ' + ', '.join(odd) if odd else ''}")
    is_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query * scaling, key, value))  # [N, H, D/H]
    parts = []
    for group in layout.groups:
        b, t = group.size
        qs, ks, vs = (x.index_select(0, group.tokens).unflatten(0, (b, t)).transpose(1, 2) for x in (q, k, v))
        scores = qs @ ks.transpose(-2, -1)  # [b, H, t, t]
        if group.bias is not None:
            scores = scores + group.bias.to(scores.dtype)
        if is_causal:
            scores = scores + scores.new_full((t, t), -math.inf).triu(1)
        mixed = drop(scores.softmax(-1), dropout) @ vs
        parts.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).index_select(0, layout.back).unsqueeze(0), None


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)


class PaddingFree:
    """What one model needs to run without padding: its layers, and whether it was shown to compute the same."""

    def __init__(self, model: nn.Module, mode: Mode) -> None:
        """`auto`: on a CPU. `always`: on every device."""
        _register()
        self.mode = mode
        self.layers = _layers(model)
        self.configs = _configs(model)
        self.is_proven: bool | None = None
        """None: not tried yet."""
        if mode == "never":
            self.is_proven = False
        elif why := _unsuitable(model, self.layers, self.configs):
            self._refuse(why)
        self._is_proving = False
        self._seen: list[Tensor] = []

    def _refuse(self, why: str) -> None:
        self.is_proven = False
        notes.note(f"layers run with padding: {why}")

    def is_on(self, model: nn.Module) -> bool:
        """Whether padding costs nothing inside `running`, as far as is known before it is tried."""
        is_here = self.mode == "always" or next(model.parameters()).device.type == "cpu"
        return is_here and self.is_proven is not False

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Inside, forward passes of the model run its layers on real tokens only."""
        if not self.is_on(model):
            yield
            return
        hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
            *(layer.register_forward_pre_hook(self._flatten, with_kwargs=True) for layer in self.layers),
            self.layers[-1].register_forward_hook(self._pad),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        if self._is_proving or self.is_proven is False or mask is None or mask.ndim != 2 or bool(mask.all()):
            return
        if self.is_proven is None:
            with _evaluating(model):
                self._prove(model, args, inputs)
        if self.is_proven:
            self._begin(_lay_out(mask))

    def _begin(self, layout: _Layout) -> None:
        _current.set(layout)
        for config in self.configs:
            config._attn_implementation = _NAME

    def _leave(self, *_: Any) -> None:
        if _current.get() is not None:
            _current.set(None)
            for config in self.configs:
                config._attn_implementation = "sdpa"

    def _flatten(self, layer: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        """What a layer is given by text is given by real token; before the first layer the hidden states, too."""
        if (layout := _current.get()) is None:
            return None
        if layer is self.layers[0] and (args[0] if args else inputs["hidden_states"]).shape[:2] != layout.shape:
            raise _Unsuitable("the layers see other tokens than the model was given")

        def flat(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(flat(part) for part in value)
            is_by_token = isinstance(value, Tensor) and value.ndim in (2, 3) and value.shape[1] == layout.shape[1]
            return layout.flat(value) if is_by_token and value.shape[0] in (1, layout.shape[0]) else value

        return tuple(flat(value) for value in args), {name: flat(value) for name, value in inputs.items()}

    def _pad(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        layout, hidden = _current.get(), output[0] if isinstance(output, tuple) else output
        if self._is_proving:
            self._seen.append(hidden)
        if layout is None:
            return output
        if self._is_proving:
            self._seen[-1] = layout.padded(hidden)
        return (layout.padded(hidden), *output[1:]) if isinstance(output, tuple) else layout.padded(hidden)

    def _prove(self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Compare both paths on the shortest and the longest text of a batch: last hidden states, and outputs."""
        mask = inputs["attention_mask"]
        lengths = mask.sum(1)
        rows = [int(lengths.argmin()), int(lengths.argmax())]
        few = {name: x[rows] if isinstance(x, Tensor) and len(x) == len(mask) else x for name, x in inputs.items()}
        few_args = [x[rows] if isinstance(x, Tensor) and len(x) == len(mask) else x for x in args]
        self._is_proving, self._seen = True, []
        try:
            results = [model(*few_args, **few)[0]]
            self._begin(_lay_out(few["attention_mask"]))
            results.append(model(*few_args, **few)[0])
            plain, free = (seen * few["attention_mask"][..., None] for seen in self._seen)
            pairs = [(plain, free), tuple(results)]
            error = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)
            self.is_proven = error <= _tolerance(plain)
            if not self.is_proven:
                self._refuse(f"without it outputs differ by {error:.1g} of the largest")
        except Exception as error:  # of a model's own code there is no list of what it raises
            if memory.ran_out(error):
                raise
            self._refuse(f"{type(model).__name__} does not run without ({str(error).splitlines()[0]})")
        finally:
            self._leave()
            self._is_proving, self._seen = False, []


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers a Transformer runs one after the other; [] where there is not exactly one list of that length."""
    number = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    found = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == number]
    return found[0] if len(found) == 1 else []


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration that a part of the model reads its kind of attention from."""
    found = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None
    }
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def _unsuitable(model: nn.Module, layers: list[nn.Module], configs: list[Any]) -> str:
    """Why a model cannot run without padding, as far as it can be seen without running it; or ""."""
    kind, config = type(model).__name__, getattr(model, "config", None)
    kinds = {getattr(one, "_attn_implementation", None) for one in configs}
    if kinds != {"sdpa"}:
        return f"{kind} has no attention function that could be replaced"
    if any(getattr(config, name, None) for name in ("sliding_window", "local_attention")):
        return f"{kind} has layers that see a part of the text only"
    if not layers:
        return f"{kind} does not have its layers in one list"
    return ""


def _tolerance(x: Tensor) -> float:
    """What rounding may make of a difference, as a share of the largest entry."""
    is_low = torch.is_autocast_enabled(x.device.type) or x.dtype in (torch.float16, torch.bfloat16)
    return 5e-2 if is_low else 1e-4


def attach(model: nn.Module, mode: Mode) -> None:
    """Let a model, and its copies, run without padding inside `running`; after all methods have edited it."""
    setattr(model, _ATTRIBUTE, PaddingFree(model, mode))


def is_on(model: nn.Module) -> bool:
    """Whether padding costs nothing inside `running`, as far as is known before it is tried."""
    own: PaddingFree | None = getattr(model, _ATTRIBUTE, None)
    return own is not None and own.is_on(model)


def running(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, forward passes of the model run its layers on real tokens only, if it was attached and can."""
    own: PaddingFree | None = getattr(model, _ATTRIBUTE, None)
    return nullcontext() if own is None else own.running(model)


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Inside, what is run decides whether `is_on` stays true, and changes nothing else."""
    with running(model), _evaluating(model):
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
