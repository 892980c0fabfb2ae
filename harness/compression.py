"""A trained model made smaller without training: pruned by magnitude, or with weights and products in 8 bits.

Pruning sets the smallest weights of the blocks to zero, compared over all of them (Han et al. 2015, arXiv 1506.02626,
section 3; without the retraining that follows there). Zeros are stored and multiplied like any other number: a pruned
model is neither smaller as a file nor faster on dense kernels; only a zipped file shrinks.

int8 is torch's dynamic quantisation: of each linear layer the weight once and the input in every call become 8-bit
integers, one scale each; sums, bias and everything else stay float32 (Zafrir et al. 2019, arXiv 1910.06188, do the same
after training with it in view).

    weight   W ~ s q,        s = max|W| / 127.5,                  q in [-128, 127]
    input    x ~ t (u - z),  t = (max(x, 0) - min(x, 0)) / top,   u in [0, top], z what 0 becomes
    output   y = s t (u - z) q' + b

`top` is 127 where kernels sum pairs of products in 16 bits (x86 without VNNI), else 255. Hazard: the scale of an input
is that of the whole batch, so that a prediction depends a little on the texts beside it and on their padding.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as pruning

from harness.errors import ModelError
from harness.models import surgery
from harness.specs.schema import Compression

MIB = 2**20


def check(settings: Compression, model: nn.Module) -> None:
    """Before training. Raises ModelError if a variant could not be made of this model, or not by this torch."""
    roles = {surgery.role_of(name) for name in surgery.layers(model)}
    if settings.prune and not roles & surgery.ROLES["all"]:
        what = f"{type(model).__name__} has no linear layer in a block: nothing to prune"
        raise ModelError(what, where="compression.prune", fix="leave it out: compression.prune=[]")
    off = "leave it out: compression.int8=false"
    if settings.int8 and not any(map(surgery.is_linear, model.modules())):
        what = f"{type(model).__name__} has no linear layer: nothing to quantise"
        raise ModelError(what, where="compression.int8", fix=off)
    if settings.int8 and torch.backends.quantized.engine == "none":
        raise ModelError("this build of torch has no int8 kernels", where="compression.int8", fix=off)


def prunable(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weights that pruning compares: those of attention and feed-forward layers, as owner and parameter name.

    Left out are layers a method is still wrapped around, modules it added, and weights that several layers share.
    """
    return [
        weight
        for name, layer in surgery.layers(model).items()
        if surgery.role_of(name) in surgery.ROLES["all"] and not surgery.is_wrapped(layer)
        for weight in _weights(layer)
    ]


def _weights(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    if surgery.is_linear(layer):
        return [(layer, "weight")]
    projections = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of nn.MultiheadAttention
    used = [(layer, name) for name in projections if getattr(layer, name) is not None]
    return [*used, (layer.get_submodule("out_proj"), "weight")]


def prune(model: nn.Module, share: float) -> nn.Module:
    """A copy whose smallest weights, compared over all blocks, are zero. Raises ModelError if there are none."""
    pruned = copy.deepcopy(model)
    chosen = prunable(pruned)
    if not chosen:
        raise ModelError("every linear layer is still wrapped by a method that cannot be merged: nothing to prune")
    pruning.global_unstructured(chosen, pruning.L1Unstructured, amount=share)
    for owner, parameter in chosen:
        pruning.remove(owner, parameter)
    return pruned


def quantise(model: nn.Module) -> nn.Module:
    """A copy on the CPU whose linear layers compute in int8; the rest of it in float32."""
    quantised = in_float32_on_cpu(model)
    for name, layer in list(quantised.named_modules()):
        if surgery.is_linear(layer) and surgery.is_transposed(layer):
            surgery.replace(quantised, name, _as_linear(layer))
    with _without_notice_of_removal():
        from torch.ao.quantization import quantize_dynamic

        quantize_dynamic(quantised, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return quantised


def in_float32_on_cpu(model: nn.Module) -> nn.Module:
    """A copy there, in evaluation mode."""
    return copy.deepcopy(model).cpu().float().eval()


def _as_linear(layer: Any) -> nn.Linear:
    """The `nn.Linear` that computes what transformers' `Conv1D` does; torch quantises no other class."""
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs)
    linear.load_state_dict({"weight": layer.weight.detach().T, "bias": layer.bias.detach()})
    return linear.eval()


@contextmanager
def _without_notice_of_removal() -> Iterator[None]:
    """torch 2.13 announces that this will move to another package, torchao; the pinned torch has it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"torch\.ao\.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, .* are deprecated", UserWarning)
        yield


class _Meter:
    """A file that keeps nothing but the number of bytes, plain and zipped."""

    def __init__(self) -> None:
        self.size = self.zipped = 0
        self.zlib = zlib.compressobj(6)

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.zipped += len(self.zlib.compress(data))
        return len(data)

    def flush(self) -> None:
        pass


def sizes(model: nn.Module) -> tuple[float, float]:
    """MiB of the state as `torch.save` writes it (safetensors has no packed int8 layers), and of that zipped."""
    meter: Any = _Meter()
    with _without_notice_of_removal():
        torch.save(model.state_dict(), meter)
    return meter.size / MIB, (meter.zipped + len(meter.zlib.flush())) / MIB


def share_of_zeros(model: nn.Module) -> float:
    """Zeros among all numbers of the state, 8-bit ones included."""
    zeros = count = 0
    for tensor in _numbers(model):
        zeros += tensor.numel() - int(tensor.count_nonzero())
        count += tensor.numel()
    return zeros / count


def _numbers(model: nn.Module) -> Iterator[Tensor]:
    for value in model.state_dict().values():
        for tensor in value if isinstance(value, tuple) else (value,):  # a packed layer: weight and bias
            if isinstance(tensor, Tensor) and tensor.is_quantized:
                yield tensor.int_repr()
            elif isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim:
                yield tensor
