"""LoRA: low-rank adaptation of linear layers (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    y = x W0' + b + scale * dropout(x) A' B'          scale = alpha / rank, or alpha / sqrt(rank) (rsLoRA)

W0 is frozen; A starts as U(±1/sqrt(in)) (Kaiming uniform with a = sqrt 5, as the reference code has it) and B as zero,
so that training starts at the pretrained model exactly. rsLoRA: Kalajdzievski 2023, arXiv 2312.03732. LoRA+ (Hayou et
al. 2024, arXiv 2402.12354): B learns faster than A. Hazards: with B = 0 the gradient of A is zero in the first step;
comparing ranks with alpha fixed and scale = alpha / rank also changes the effective learning rate.
Legend: B examples, T tokens, I inputs, O outputs, R rank, D width.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from harness import storage
from harness.errors import ModelError, StorageError
from harness.method import Method
from harness.models import surgery
from harness.optim import Rule, Train


class LoRALinear(surgery.Added):
    """A frozen linear layer with a trainable low-rank branch; the branch's dropout acts on its input only."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        """`base` is an `nn.Linear` or transformers' `Conv1D`; `scale` multiplies the update."""
        super().__init__()
        self.base, self.rank, self.scale = base, rank, scale
        self.dropout = nn.Dropout(dropout)
        self.update_mask: nn.Module | None = None
        """Gives, called with A, a factor on the update B A in training: [O, I], [1, I] or [O, 1]; or None."""
        outputs, inputs = reversed(self.weight.shape) if surgery.is_transposed(base) else self.weight.shape
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, inputs))  # [R, I]
        self.lora_b = nn.Parameter(self.weight.new_zeros(outputs, rank))  # [O, R]
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self._unmerged: Tensor | None = None
        base.requires_grad_(False)
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that asks a linear layer for its dtype or shape. [O, I], of Conv1D [I, O]"""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias. [O]"""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., I] -> [..., O]. Raises RuntimeError if it is trained while merged."""
        if self._unmerged is not None and self.training:
            raise RuntimeError("this LoRA layer is merged: call unmerge() before training")
        if self._unmerged is not None or not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        a, b = self.lora_a, self.lora_b
        factor = self.update_mask(a) if self.training and self.update_mask is not None else None
        if factor is not None and min(factor.shape) > 1:
            return self.base(x) + F.linear(x, factor * (self.scale * b @ a))  # type: ignore[no-any-return]
        if factor is not None:
            a, b = (a * factor, b) if factor.shape[0] == 1 else (a, b * factor)
        inner = self.scale * F.linear(self.dropout(x), a)  # [..., R]
        y: Tensor = self.base(x)
        return torch.addmm(y.flatten(0, -2), inner.flatten(0, -2), b.T).view_as(y)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W0 + scale B A in the layout and dtype of W0, the product in float32 or better."""
        wide = torch.promote_types(self.lora_a.dtype, torch.float32)
        update = self.scale * (self.lora_b.to(wide) @ self.lora_a.to(wide))  # [O, I]
        update = update.T if surgery.is_transposed(self.base) else update
        return (self.weight.to(wide) + update).to(self.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the update into the base, which is kept for `unmerge`. Merging twice changes nothing."""
        if self._unmerged is None:
            self._unmerged = self.weight.detach().clone()
            self.weight.copy_(self.merged_weight())

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base back, bit for bit: it is copied, because subtracting the update is not exact."""
        if self._unmerged is not None:
            self.weight.copy_(self._unmerged)
            self._unmerged = None

    def plain(self) -> nn.Module:
        """A linear layer of the base's own kind that computes the same."""
        self.unmerge()
        plain = copy.deepcopy(self.base)
        with torch.no_grad():
            plain.weight.copy_(self.merged_weight())  # type: ignore[operator]
        return plain.train(self.training)


class LoRAAttention(nn.Module):
    """Multi-head attention with LoRA on q, k, v and out as one unit: what `nn.MultiheadAttention` becomes.

    That module keeps q, k and v in one matrix and reads the weight of its output layer without calling it, so that
    wrapping layers inside it would leave them out silently. Models with a linear layer per projection need only
    `LoRALinear`.
    """

    stands_in = True
    # TransformerEncoderLayer asks for these to decide on a fused kernel that would bypass the projections.
    in_proj_bias, _qkv_same_embed_dim = None, False

    def __init__(self, base: nn.MultiheadAttention, rank: int, scale: float, dropout: float = 0.0) -> None:
        """Raises ModelError for keys or values of another width, extra biases or added zero attention."""
        super().__init__()
        if base.in_proj_weight is None or base.bias_k is not None or base.add_zero_attn:
            raise ModelError("nn.MultiheadAttention with kdim, vdim, add_bias_kv or add_zero_attn cannot take LoRA")
        self.num_heads, self.attention_dropout, self.batch_first = base.num_heads, base.dropout, base.batch_first
        weights = base.in_proj_weight.chunk(3)  # each [D, D]
        biases = (None,) * 3 if base.in_proj_bias is None else base.in_proj_bias.chunk(3)
        parts = dict(zip(("q", "k", "v"), zip(weights, biases, strict=True), strict=True))
        for name, (weight, bias) in (parts | {"out": (base.out_proj.weight, base.out_proj.bias)}).items():
            self.add_module(name, LoRALinear(_linear(weight, bias), rank, scale, dropout))
        self.train(base.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As `nn.MultiheadAttention`: [B, T, D] (or [T, B, D] without batch_first) -> the same, and the weights."""
        if query.ndim != 3:
            raise ValueError("attention with LoRA takes batches: inputs with three axes")
        inputs = (query, key, value) if self.batch_first else (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            self.get_submodule(name)(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, T, D/H]
            for name, x in zip(("q", "k", "v"), inputs, strict=True)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + _bias(q, k, attn_mask, key_padding_mask)
        weights = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)  # [B, H, T, T]
        mixed: Tensor = self.get_submodule("out")((weights @ v).transpose(1, 2).flatten(2))
        shown = None if not need_weights else weights.mean(1) if average_attn_weights else weights
        return (mixed if self.batch_first else mixed.transpose(0, 1)), shown

    def plain(self) -> nn.MultiheadAttention:
        """The module of torch that computes the same."""
        q, k, v, out = (self.get_submodule(name).plain() for name in ("q", "k", "v", "out"))  # type: ignore[operator]
        width, has_bias = out.in_features, q.bias is not None
        plain = nn.MultiheadAttention(
            width, self.num_heads, self.attention_dropout, has_bias, batch_first=self.batch_first,
            device=out.weight.device, dtype=out.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            plain.in_proj_weight.copy_(torch.cat([q.weight, k.weight, v.weight]))
            plain.out_proj.weight.copy_(out.weight)
            if has_bias:
                plain.in_proj_bias.copy_(torch.cat([q.bias, k.bias, v.bias]))
                plain.out_proj.bias.copy_(out.bias)
        return plain.requires_grad_(False).train(self.training)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    linear.load_state_dict({"weight": weight.detach()} | ({} if bias is None else {"bias": bias.detach()}))
    return linear


def _bias(q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor:
    """The additive bias of both masks; True, where they are boolean, means: do not look. [B, 1 or H, T, T]"""
    bias = q.new_zeros(q.shape[0], 1, q.shape[2], k.shape[2])
    for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None, :]):
        if mask is not None:
            mask = mask.unflatten(0, (q.shape[0], -1)) if mask.ndim == 3 else mask
            bias = bias + (
                bias.new_zeros(mask.shape).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask
            )
    return bias


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRA layer of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def apply(
    model: nn.Module, targets: str | list[str], rank: int, scale: float, dropout: float = 0.0
) -> dict[str, LoRALinear]:
    """Put LoRA on the layers with a role or name, in place. Returns all LoRA layers. Raises ModelError."""
    for name in surgery.linears(model, targets, "methods.lora.target_modules"):
        layer = model.get_submodule(name)
        wrap: Any = LoRAAttention if isinstance(layer, nn.MultiheadAttention) else LoRALinear
        smallest = layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else min(layer.weight.shape)  # type: ignore[arg-type]
        if rank > smallest:
            what = f"rank {rank} is larger than {name} allows (its smaller side is {smallest})"
            raise ModelError(what, where="methods.lora.rank", fix=f"use at most {smallest}")
        surgery.replace(model, name, wrap(layer, rank, scale, dropout))
    return lora_layers(model)


def remove(model: nn.Module) -> nn.Module:
    """Replace each LoRA layer, in place, by a plain one with the update merged in."""
    units = {n: m for n, m in model.named_modules() if isinstance(m, LoRAAttention)} | lora_layers(model)
    for name, unit in units.items():
        if not any(name.startswith(f"{other}.") for other in units):
            surgery.replace(model, name, unit.plain())
    return model


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter alone: A and B of every layer, by name."""
    return {f"{n}.{m}": getattr(layer, m) for n, layer in lora_layers(model).items() for m in ("lora_a", "lora_b")}


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The pretrained model alone, by the names it had before LoRA; A and B are left out."""
    own = lora_state(model).keys()
    wrapped = {f"{name}.base.": f"{name}." for name in lora_layers(model)}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in own}
    for inside, outside in wrapped.items():
        state = {name.replace(inside, outside, 1) if name.startswith(inside) else name: t for name, t in state.items()}
    return state


def save_lora_state(model: nn.Module, path: Path, merge_weights: bool = False) -> None:
    """Write the adapter alone, or with `merge_weights` the whole model as plain weights, as one safetensors file."""
    state = remove(copy.deepcopy(model)).state_dict() if merge_weights else lora_state(model)
    scales = {name: layer.scale for name, layer in lora_layers(model).items()}
    content = {name: tensor.detach().clone() for name, tensor in state.items()}  # tied weights: one copy each
    storage.write_tensors(path, content, {} if merge_weights else {"lora_scales": json.dumps(scales)})


def load_lora_state(model: nn.Module, path: Path, merge_weights: bool = False) -> None:
    """Read an adapter into the model's LoRA layers, or with `merge_weights` fold it into a model without any.

    Raises:
        StorageError: the file is not such an adapter, or is one of other layers, ranks or scales.
    """
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        scales: dict[str, float] = json.loads((file.metadata() or {}).get("lora_scales", "{}"))
    known = dict(model.named_modules())
    if not scales or not scales.keys() <= known.keys():
        odd = ", ".join(sorted(scales.keys() - known.keys())[:3]) or "no A and B at all"
        raise StorageError(f"{path} holds no LoRA of this model", why=f"it has {odd}")
    layers = lora_layers(model)
    if merge_weights:  # checked on layers that are not in the model yet
        layers = {name: _around_copy(known[name], state.get(f"{name}.lora_a"), scale) for name, scale in scales.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {f"{n}.{m}": tuple(getattr(layer, m).shape) for n, layer in layers.items() for m in ("lora_a", "lora_b")}
    if found != expected or scales != {name: layer.scale for name, layer in layers.items()}:
        why = "its layers, ranks or scales are not those of the model"
        raise StorageError(f"{path} does not fit", why=why, fix="build the model with the spec the file was saved from")
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_a.copy_(state[f"{name}.lora_a"])
            layer.lora_b.copy_(state[f"{name}.lora_b"])
            if merge_weights:
                known[name].weight.copy_(layer.merged_weight())


def _around_copy(layer: nn.Module, a: Tensor | None, scale: float) -> LoRALinear:
    """LoRA around a copy of a layer, of the rank of A."""
    return LoRALinear(copy.deepcopy(layer), 0 if a is None else len(a), scale)


class LoRA(Method):
    """LoRA on the linear layers with a role or a name."""

    rank: int = Field(default=8, ge=1)
    """Rank R of the update."""
    alpha: float = Field(default=16.0, gt=0)
    """scale = alpha / rank multiplies the update."""
    rslora: bool = False
    """scale = alpha / sqrt(rank), so that the size of the update does not shrink with the rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the input of the branch, never on the frozen path."""
    target_modules: Literal["attention", "feed_forward", "all", "head"] | Annotated[list[str], Field(min_length=1)] = (
        "attention"
    )
    """A role (`all`: attention and feed_forward), or names (a name matches the layers whose dotted name ends in it)."""
    learning_rate_ratio: float = Field(default=1.0, gt=0)
    """LoRA+: B learns with so many times `train.learning_rate`, A with that itself; the paper suggests 16."""

    @property
    def scale(self) -> float:
        """The factor on the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Wrap each target. Raises ModelError for a name or role that matches nothing, or a rank above the layer's."""
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        apply(model, targets, self.rank, self.scale, self.dropout)
        return model

    def trainable(self, model: nn.Module) -> set[str] | None:
        """The matrices A and B."""
        return set(lora_state(model))

    def prepare(self, model: nn.Module, train: Train, steps_per_epoch: int) -> str:
        """Says where it is and how fast it learns."""
        layers = lora_layers(model)
        faster = f", B learns {self.learning_rate_ratio:g} times as fast as A" if self.learning_rate_ratio != 1 else ""
        return f"{len(layers)} layers such as {next(iter(layers))}, scale {self.scale:g}{faster}"

    def optimizer_rules(self, model: nn.Module) -> dict[str, Rule]:
        """LoRA+ gives B a learning rate of its own."""
        return {f"{name}.lora_b": Rule(learning_rate_ratio=self.learning_rate_ratio) for name in lora_layers(model)}

    def merge(self, model: nn.Module) -> nn.Module:
        """Replace each LoRA layer by one plain linear layer, as fast as the pretrained one."""
        return remove(model)

    def save(self, model: nn.Module, folder: Path, base_model: str, head: set[str]) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained` reads.

        A layer of the new head that has LoRA is saved merged and whole, as PEFT saves the rest of the head: PEFT could
        not know its weight. The folder is left out where PEFT could not read it: LoRA inside `nn.MultiheadAttention`,
        on nothing but such layers, or under a prompt of PEFT.
        """
        if any(isinstance(module, LoRAAttention) for module in model.modules()) or hasattr(model, "prompt_encoder"):
            return
        parameters = dict(model.named_parameters())
        whole: dict[str, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        names = []
        for name, layer in lora_layers(model).items():
            if f"{name}.base.weight" in head:
                whole[f"{name}.weight"] = layer.merged_weight()
            else:
                names.append(name)
                tensors |= {f"{name}.lora_A.weight": layer.lora_a, f"{name}.lora_B.weight": layer.lora_b}
        for name in head:
            whole.setdefault(surgery.pretrained_name(name), parameters[name])
        if not names:
            return
        content = {f"base_model.model.{name}": tensor for name, tensor in (tensors | whole).items()}
        storage.write_tensors(folder / "adapter_model.safetensors", content)
        config = {
            "peft_type": "LORA",
            "task_type": surgery.peft_task_type(model),
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.rslora,
            "lora_dropout": self.dropout,
            "fan_in_fan_out": any(surgery.is_transposed(layer.base) for layer in lora_layers(model).values()),
            "target_modules": sorted(names),
            "modules_to_save": sorted({surgery.owner(model, name) for name in whole}) or None,
            "bias": "none",
            "inference_mode": True,
        }
        storage.write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
