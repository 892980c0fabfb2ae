"""What training holds in memory: an estimate from sizes alone, and what fits a small GPU because of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.assembly import Assembled
    from harness.specs.schema import Spec

_GIB = 1024**3
_LINEAR, _ATTENTION = 34, 5
"""Bytes that a layer keeps per token for each unit of its width, and for each head and token of the text."""
_RESERVED_GIB = 0.6
"""What CUDA's context and its libraries' workspaces take before the first tensor."""


def estimate(assembled: Assembled, spec: Spec, precision: str) -> dict[str, float]:
    """GiB on the device: weights, gradients and AdamW's two moments in float32, and activations of one micro-batch.

    Activations per layer and token: 34 D + 5 H T bytes at 2 bytes per value, twice that in float32 (Korthikanti et al.
    2022, arXiv 2205.05198, section 4.1), for T = the task's longest text. Kernels' workspaces come on top; attention
    that does not keep its probabilities, and methods that freeze the lower layers, need less.
    """
    config: Any = assembled.model.config
    width = getattr(config, "hidden_size", 0)
    layers = getattr(config, "num_hidden_layers", 0)
    heads = getattr(config, "num_attention_heads", 0)
    length = min(spec.train.micro_batch_tokens, getattr(next(iter(spec.task.values())), "max_length", 512))
    bytes_per_value = 1 if precision in ("bf16", "fp16") else 2
    per_token = layers * (_LINEAR * width + _ATTENTION * heads * length) * bytes_per_value
    parts = {
        "weights": assembled.count.total * 4 / _GIB,
        "gradients": assembled.count.trainable * 4 / _GIB,
        "optimizer": assembled.count.trainable * 8 / _GIB,
        "activations": per_token * spec.train.micro_batch_tokens / _GIB,
    }
    return {**parts, "total": sum(parts.values())}


def tokens_that_fit(parts: Mapping[str, float], micro_batch_tokens: int, gib: float) -> int:
    """How many tokens a micro-batch may have on a GPU of `gib`, by an `estimate` at `micro_batch_tokens`; 0: none."""
    left = gib - _RESERVED_GIB - sum(parts[key] for key in ("weights", "gradients", "optimizer"))
    return max(0, int(left / parts["activations"] * micro_batch_tokens)) if parts["activations"] else 0
