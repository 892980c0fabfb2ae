"""Bottleneck adapters by forward hooks, in the three published layouts.

    delta(h) = scaling * (W_up f(W_down h + b_down) + b_up),    x: input of the sub-layer, z: its output after dropout

    houlsby    out = LayerNorm(z + delta(z) + x)                   Houlsby et al. 2019, arXiv 1902.00751, section 2.1
    pfeiffer   out = LayerNorm(z + delta(LayerNorm(z + x)) + x)    Pfeiffer et al. 2020, arXiv 2005.00247; 2005.00052
    parallel   out = LayerNorm(z + delta(x) + x)                   He et al. 2021, arXiv 2110.04366; scaled: scaling 4

In models that normalise before a sub-layer there is no LayerNorm around the sum; there `houlsby` and `parallel` apply.
With init=identity W_up starts as zero, so that training starts at the pretrained model exactly; the LayerNorms stay
frozen. Hazard: an adapter cannot be merged, it costs two matrix products per block at inference.
Legend: B examples, T tokens, D width, M bottleneck size.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from harness.errors import ModelError, SpecError
from harness.method import Method
from harness.models import surgery
from harness.optim import Rule, Train

NAME = "bottleneck_adapter"
_NON_LINEARITIES: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}

# The module of a block that takes the hook: the first of these paths that it has.
_PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "houlsby": {  # where the sub-layer ends, after its dropout and before the residual sum
        "attention": ("attention.output.dropout", "attention.output_dropout", "attention", "attn", "self_attn"),
        "feed_forward": ("output.dropout", "ffn_output", "ffn", "mlp"),
    },
    "pfeiffer": {  # the LayerNorm around the residual sum
        "attention": ("attention.output.LayerNorm", "attention.LayerNorm", "sa_layer_norm"),
        "feed_forward": ("output.LayerNorm", "output_layer_norm", "full_layer_layer_norm"),
    },
    "parallel": {  # BERT's kin: the module that adds the residual x; others: the whole sub-layer
        "attention": ("attention.output", "attention", "attn", "self_attn"),
        "feed_forward": ("output", "ffn", "mlp"),
    },
}


class Bottleneck(surgery.Added):
    """delta(h); 2 M D + M + D parameters."""

    def __init__(
        self, width: int, size: int, non_linearity: str = "gelu", dropout: float = 0.0, scaling: float = 1.0,
        init: str = "identity",
    ) -> None:  # fmt: skip
        """`non_linearity`, `scaling` and `init` as in `BottleneckAdapter`."""
        super().__init__()
        self.down = nn.Linear(width, size)
        self.non_linearity = _NON_LINEARITIES[non_linearity]()
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(size, width)
        self.scaling = scaling
        self.handle: Any = None
        if init == "identity":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
            return
        for linear in (self.down, self.up):
            if init == "near_identity":
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            elif init == "he":
                nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [B, T, D] -> [B, T, D]."""
        return self.scaling * self.up(self.dropout(self.non_linearity(self.down(hidden))))  # type: ignore[no-any-return]


# The hooks find their adapter through the module they hang on, so that they survive deepcopy and pickle.


def _after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Houlsby: z -> z + delta(z)."""
    return _add(module, output, output[0] if isinstance(output, tuple) else output)


def _beside(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Parallel, on a whole sub-layer: z -> z + delta(x)."""
    return _add(module, output, args[0] if args else kwargs["hidden_states"])


def _add(module: nn.Module, output: Any, hidden: Tensor) -> Any:
    adapter: Any = getattr(module, NAME)
    if not adapter.enabled:
        return output
    return (output[0] + adapter(hidden), *output[1:]) if isinstance(output, tuple) else output + adapter(hidden)


def _residual(module: nn.Module, args: Any) -> Any:
    """Parallel, on a module that is called with (hidden, x) and adds x: x -> x + delta(x)."""
    adapter: Any = getattr(module, NAME)
    return (args[0], args[1] + adapter(args[1]), *args[2:]) if adapter.enabled else args


def _around(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Pfeiffer, on the LayerNorm: LN(z + x) -> LN(z + x + delta(LN(z + x)))."""
    adapter: Any = getattr(module, NAME)
    return module.forward(args[0] + adapter(output)) if adapter.enabled else output


def insert(module: nn.Module, adapter: Bottleneck, layout: str = "houlsby") -> None:
    """Register the adapter and its hook in a place that `places` found. Raises ModelError if it has one already."""
    if hasattr(module, NAME):
        raise ModelError(f"this module already has a {NAME}", fix="remove it first")
    if surgery.is_wrapped(module):
        what = (
            f"another method ({type(module).__name__}) stands where the adapter would hang, and goes when it is merged"
        )
        raise ModelError(what, where=f"methods.{NAME}", fix="give them other targets, or take another layout")
    module.add_module(NAME, adapter)
    if layout == "pfeiffer":
        adapter.handle = module.register_forward_hook(_around)
    elif layout == "parallel" and _adds_residual(module):
        adapter.handle = module.register_forward_pre_hook(_residual)
    else:
        hook = _after if layout == "houlsby" else _beside
        adapter.handle = module.register_forward_hook(hook, with_kwargs=True)


def remove(model: nn.Module) -> None:
    """Undo every `insert`: afterwards the model computes bit for bit what it did before."""
    for module in list(model.modules()):
        if isinstance(adapter := getattr(module, NAME, None), Bottleneck):
            adapter.handle.remove()
            delattr(module, NAME)


def places(model: nn.Module, sublayers: list[str], layout: str, width: int) -> dict[str, nn.Module]:
    """The modules that take an adapter of this width, by name.

    Raises:
        ModelError: no block of the model has a place for one of the sub-layers.
    """
    found: dict[str, nn.Module] = {}
    for sublayer in sublayers:
        here: dict[str, nn.Module] = {}
        for block_name, block in surgery.blocks(model):
            inside = dict(block.named_modules())
            place = next((path for path in _PLACES[layout][sublayer] if path in inside), None)
            if place is not None and _fits(inside, place, layout, width):
                here[f"{block_name}.{place}"] = inside[place]
        if not here:
            raise ModelError(
                f"no block of {type(model).__name__} has a place known here for layout {layout} at {sublayer}",
                where=f"methods.{NAME}.layout",
                fix=f"take another layout ({', '.join(_PLACES)}) or `after`; "
                f"known places: {', '.join(_PLACES[layout][sublayer])}",
            )
        found |= here
    return found


def _fits(inside: dict[str, nn.Module], place: str, layout: str, width: int) -> bool:
    """Whether the formula of the layout holds at this place; `inside` are the modules of the block by name."""
    module, (parent, _, last) = inside[place], place.rpartition(".")
    dense = getattr(inside[parent] if last in ("dropout", "LayerNorm") else module, "dense", None)
    if isinstance(module, nn.ModuleList) or getattr(dense, "out_features", width) != width:  # MobileBERT
        return False
    if layout == "pfeiffer":  # `attention.LayerNorm` beside `attention.output` is the one before the sub-layer (ESM)
        return place != "attention.LayerNorm" or "attention.output" not in inside
    if layout == "parallel" and (surgery.is_linear(module) or last == "output"):  # not a part of the sub-layer alone
        return _adds_residual(module)
    arguments = inspect.signature(module.forward).parameters  # BLOOM's `mlp` adds the residual itself
    norms = [name for name, _ in module.named_children() if "norm" in name.lower() and name[:2] not in ("q_", "k_")]
    return "residual" not in arguments and not norms


def _adds_residual(module: nn.Module) -> bool:
    """Whether the module is called with (hidden, x) and normalises their sum, as BERT's `output`."""
    return hasattr(module, "LayerNorm") and hasattr(module, "dense") and not hasattr(module, "query")


class BottleneckAdapter(Method):
    """A bottleneck at the attention and/or the feed-forward sub-layer of every block."""

    size: int | None = Field(default=None, ge=1)
    """Units M of the bottleneck; null: 64, or what `reduction_factor` says."""
    reduction_factor: float | None = Field(default=None, ge=1)
    """Instead of a size: M = D / factor."""
    after: list[Literal["attention", "feed_forward"]] = Field(default=["feed_forward"], min_length=1, max_length=2)
    """The sub-layers that get one."""
    layout: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """What it reads and where its output is added; `harness methods bottleneck_adapter` has the formulas."""
    scaling: float = Field(default=1.0, gt=0)
    """Factor on delta; the scaled parallel adapter has 4."""
    non_linearity: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """f."""
    init: Literal["identity", "near_identity", "he", "xavier"] = "identity"
    """`identity`: W_up = 0; `near_identity`: both N(0, 0.01) truncated at 2 sd (Houlsby); `he`, `xavier`: both so."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the bottleneck."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay of W_down and W_up; null: `train.weight_decay`."""
    learning_rate_ratio: float = Field(default=1.0, gt=0)
    """The adapters' learning rate, as a multiple of `train.learning_rate`."""

    @property
    def starts_pretrained(self) -> bool:
        """Only with W_up = 0."""
        return self.init == "identity"

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Insert the adapters. Raises ModelError where the model has no place, SpecError for anything given twice."""
        if self.reduction_factor and self.size:
            what = "size and reduction_factor are both given, and both say how many units there are"
            raise SpecError(what, where=f"methods.{NAME}", fix=f"take one of them out: ~methods.{NAME}.size")
        if len(set(self.after)) < len(self.after):
            raise SpecError("the same sub-layer stands twice", where=f"methods.{NAME}.after", fix="name each once")
        width = model.get_parameter(next(name for name, p in model.named_parameters() if p.ndim == 2)).shape[-1]
        width = getattr(getattr(model, "config", None), "hidden_size", width)
        size = max(1, int(width / self.reduction_factor)) if self.reduction_factor else self.size or 64
        like = next(model.parameters())
        for module in places(model, [*self.after], self.layout, width).values():
            adapter = Bottleneck(width, size, self.non_linearity, self.dropout, self.scaling, self.init)
            insert(module, adapter.to(device=like.device, dtype=like.dtype).train(module.training), self.layout)
        return model

    def trainable(self, model: nn.Module) -> set[str] | None:
        """Both projections of every adapter."""
        return {name for name, _ in model.named_parameters() if f".{NAME}." in name}

    def prepare(self, model: nn.Module, train: Train, steps_per_epoch: int) -> str:
        """Says where the adapters are, and of which size."""
        found = {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}
        first, adapter = next(iter(found.items()))
        layout = self.layout if self.scaling == 1 else f"{self.layout} x {self.scaling:g}"
        units = f"{adapter.down.out_features} of {adapter.down.in_features} units"
        return f"{layout}, {units}, at {len(found)} places such as {first.removesuffix(f'.{NAME}')}"

    def optimizer_rules(self, model: nn.Module) -> dict[str, Rule]:
        """The adapters' own learning rate and weight decay."""
        rule = Rule(self.learning_rate_ratio, self.weight_decay)
        return dict.fromkeys(self.trainable(model) or (), rule)
