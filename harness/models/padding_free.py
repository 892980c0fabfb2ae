"""The layers of a Transformer on the real tokens of a batch only: in a random batch half of all tokens are padding.

    embeddings [B, T, D] -> real tokens [1, N, D] -> every layer -> [B, T, D], zero where there is padding -> head

All that a layer does token by token sees N tokens; attention keeps to each text (layout.py). Embeddings and head stay
outside, so positions, poolers and whatever else differs between model families need no special care. Before it is used
on a model, the outputs of two of its texts are compared with the plain path; a model that cannot, or does not, compute
the same keeps its padding, and a note says why.
Legend: B examples, T tokens of the longest, N real tokens of all, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import notes
from harness.machine import memory
from harness.models.layout import Layout, Unsuitable, attention, current, lay_out

Mode = Literal["auto", "always", "never"]
_NAME = "padding_free"
_ATTRIBUTE = "_padding_free"


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)


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
        if inputs.get("use_cache"):  # keys and values are kept for later tokens, by text
            return
        if self.is_proven is None:
            with _evaluating(model):
                self._prove(model, args, inputs)
        if self.is_proven:
            self._begin(lay_out(mask))

    def _begin(self, layout: Layout) -> None:
        current.set(layout)
        for config in self.configs:
            config._attn_implementation = _NAME

    def _leave(self, *_: Any) -> None:
        if current.get() is not None:
            current.set(None)
            for config in self.configs:
                config._attn_implementation = "sdpa"

    def _flatten(self, layer: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        """What a layer is given by text is given by real token; before the first layer the hidden states, too."""
        if (layout := current.get()) is None:
            return None
        if layer is self.layers[0] and (args[0] if args else inputs["hidden_states"]).shape[:2] != layout.shape:
            raise Unsuitable("the layers see other tokens than the model was given")

        def flat(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(flat(part) for part in value)
            is_by_token = isinstance(value, Tensor) and value.ndim in (2, 3) and value.shape[1] == layout.shape[1]
            return layout.flat(value) if is_by_token and value.shape[0] in (1, layout.shape[0]) else value

        return tuple(flat(value) for value in args), {name: flat(value) for name, value in inputs.items()}

    def _pad(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        layout, hidden = current.get(), output[0] if isinstance(output, tuple) else output
        hidden = layout.padded(hidden) if layout else hidden
        if self._is_proving:
            self._seen.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _prove(self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Compare both paths on the shortest and the longest text of a batch: last hidden states, and outputs."""
        mask = inputs["attention_mask"]
        lengths = mask.sum(1)
        rows = [int(lengths.argmin()), int(lengths.argmax())]
        few = {name: x[rows] if isinstance(x, Tensor) and len(x) == len(mask) else x for name, x in inputs.items()}
        few_args = [x[rows] if isinstance(x, Tensor) and len(x) == len(mask) else x for x in args]
        self._is_proving, self._seen = True, []
        try:
            results = [_first(model(*few_args, **few))]
            self._begin(lay_out(few["attention_mask"]))
            results.append(_first(model(*few_args, **few)))
            pairs = [tuple(_of_real_tokens(x, few["attention_mask"]) for x in both) for both in (self._seen, results)]
            plain = pairs[0][0]
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


def _first(output: Any) -> Tensor:
    """The first result of a model; logits of the first and last token of an answer side by side. [B, T, 2]"""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    found: Tensor = output[0]
    return found


def _of_real_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Zero where there is padding, if x has the tokens or the last of them; one output per text stays. [B, T, ...]"""
    return x * mask[:, -x.shape[1] :, None] if x.ndim == 3 else x


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
