"""Sequential bottleneck adapters by forward hooks (Houlsby et al. 2019, arXiv 1902.00751, section 2.1).

    z = sublayer(x);   out = LayerNorm(z + delta(z) + x),   delta(h) = W_up f(W_down h + b_down) + b_up

The adapter stands after the sub-layer's dropout and before the residual sum. W_up starts as zero, so that training
starts at the pretrained model exactly; the LayerNorms stay frozen. Hazard: an adapter cannot be merged, it costs two
matrix products per block at inference. Legend: B examples, T tokens, D width, M bottleneck size.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness import surgery
from harness.errors import ModelError
from harness.method import Method

NAME = "bottleneck_adapter"

# Where a block's sub-layer ends, after its dropout and before the residual sum: the first that a block has.
_ENDS = {
    "attention": ("attention.output.dropout", "attention.output_dropout", "attention", "attn", "self_attn"),
    "feed_forward": ("output.dropout", "ffn_output", "ffn", "mlp"),
}
_NON_LINEARITIES: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Bottleneck(nn.Module):
    """delta(h) = W_up f(W_down h + b_down) + b_up; 2 M D + M + D parameters."""

    def __init__(self, width: int, size: int, non_linearity: str, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.non_linearity = _NON_LINEARITIES[non_linearity]()
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [B, T, D] -> [B, T, D]."""
        return self.up(self.dropout(self.non_linearity(self.down(hidden))))  # type: ignore[no-any-return]


def _add_adapter(module: nn.Module, inputs: Any, output: Any) -> Any:
    """The hook: z -> z + delta(z). It finds the adapter through the module, so that it survives deepcopy and pickle."""
    adapter = module.get_submodule(NAME)
    if isinstance(output, tuple):
        return (output[0] + adapter(output[0]), *output[1:])
    return output + adapter(output)


def insert(module: nn.Module, adapter: Bottleneck) -> RemovableHandle:
    """Register the adapter as a sub-module and add its output to the module's. Raises ModelError if there is one."""
    if hasattr(module, NAME):
        raise ModelError(f"this module already has a {NAME}", fix="remove it first")
    module.add_module(NAME, adapter)
    return module.register_forward_hook(_add_adapter)


def remove(module: nn.Module, handle: RemovableHandle) -> None:
    """Undo `insert`: afterwards the model computes bit for bit what it did before."""
    handle.remove()
    delattr(module, NAME)


def ends(model: nn.Module, after: list[str]) -> dict[str, nn.Module]:
    """The modules after which adapters go, by name.

    Raises:
        ModelError: no block of the model has a place for one of them.
    """
    found: dict[str, nn.Module] = {}
    for sublayer in after:
        here: dict[str, nn.Module] = {}
        for block_name, block in surgery.blocks(model):
            inside = dict(block.named_modules())
            end = next((end for end in _ENDS[sublayer] if end in inside), None)
            if end is not None:
                here[f"{block_name}.{end}"] = inside[end]
        if not here:
            raise ModelError(
                f"no block of {type(model).__name__} ends a {sublayer} sub-layer in a way known here",
                where=f"methods.{NAME}.after",
                fix=f"known ends: {', '.join(_ENDS[sublayer])}",
            )
        found |= here
    return found


class BottleneckAdapter(Method):
    """A bottleneck after the attention and/or the feed-forward sub-layer of every block."""

    size: int = Field(default=64, ge=1)
    """Units M of the bottleneck."""
    after: list[Literal["attention", "feed_forward"]] = Field(default=["feed_forward"], min_length=1, max_length=2)
    """The sub-layers that get one."""
    non_linearity: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """f."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the bottleneck."""

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Insert the adapters. Raises ModelError where the model has no place for them."""
        width = model.get_parameter(next(name for name, p in model.named_parameters() if p.ndim == 2)).shape[-1]
        width = getattr(getattr(model, "config", None), "hidden_size", width)
        like = next(model.parameters())
        for module in ends(model, list(self.after)).values():
            adapter = Bottleneck(width, self.size, self.non_linearity, self.dropout)
            insert(module, adapter.to(device=like.device, dtype=like.dtype).train(module.training))
        return model

    def trainable(self, model: nn.Module) -> set[str] | None:
        """Both projections of every adapter."""
        return {name for name, _ in model.named_parameters() if f".{NAME}." in name}


__all__ = ["Bottleneck", "BottleneckAdapter", "ends", "insert", "remove"]
