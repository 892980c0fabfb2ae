"""LoRA: low-rank adaptation of linear layers (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    y = x W0' + b + scale * dropout(x) A' B'          scale = alpha / rank

W0 is frozen; A starts as U(±1/sqrt(in)) (Kaiming uniform with a = sqrt 5, as the reference code has it) and B as zero,
so that training starts at the pretrained model exactly. Hazards: with B = 0 the gradient of A is zero in the first
step; comparing ranks with alpha fixed also changes the effective learning rate (arXiv 2312.03732).
Legend: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from harness import storage, surgery
from harness.errors import ModelError
from harness.method import Method


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank branch; the branch's dropout acts on its input only."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base = base
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))  # [R, I]
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))  # [O, R]
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        base.requires_grad_(False)
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that asks a linear layer for its dtype or shape. [O, I]"""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias. [O]"""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., I] -> [..., O]."""
        return self.base(x) + self.scale * F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)  # type: ignore[no-any-return]

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same: W = W0 + scale B A, the product in float32 or better."""
        plain = nn.Linear(
            self.base.in_features, self.base.out_features, bias=self.base.bias is not None, device="meta"
        ).to_empty(device=self.base.weight.device)
        plain = plain.to(self.base.weight.dtype)
        wide = torch.promote_types(self.lora_a.dtype, torch.float32)
        with torch.no_grad():
            delta = self.scale * (self.lora_b.to(wide) @ self.lora_a.to(wide))
            plain.weight.copy_(self.base.weight.to(wide) + delta)
            if self.base.bias is not None:
                plain.bias.copy_(self.base.bias)
        return plain.requires_grad_(False).train(self.training)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRA layer of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


class LoRA(Method):
    """LoRA on the linear layers with a role or a name."""

    rank: int = Field(default=8, ge=1)
    """Rank R of the update."""
    alpha: float = Field(default=16.0, gt=0)
    """scale = alpha / rank multiplies the update."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the input of the branch, never on the frozen path."""
    target_modules: Literal["attention", "feed_forward", "all"] | Annotated[list[str], Field(min_length=1)] = (
        "attention"
    )
    """A role, or names (a name matches the layers whose dotted name ends in it)."""

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Wrap each target. Raises ModelError for a name or role that matches nothing, or a rank above the layer's."""
        for name in surgery.linears(model, self.target_modules):
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear)
            if self.rank > min(base.in_features, base.out_features):
                raise ModelError(
                    f"rank {self.rank} is larger than {name} allows ({base.in_features} -> {base.out_features})",
                    where="methods.lora.rank",
                    fix=f"use at most {min(base.in_features, base.out_features)}",
                )
            surgery.replace(model, name, LoRALinear(base, self.rank, self.alpha, self.dropout))
        return model

    def trainable(self, model: nn.Module) -> set[str] | None:
        """The matrices A and B."""
        return {f"{name}.{matrix}" for name in lora_layers(model) for matrix in ("lora_a", "lora_b")}

    def merge(self, model: nn.Module) -> nn.Module:
        """Replace each LoRA layer by one plain linear layer, as fast as the pretrained one."""
        for name, layer in lora_layers(model).items():
            surgery.replace(model, name, layer.merged())
        return model

    def save(self, model: nn.Module, folder: Path, base_model: str, head: set[str]) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        layers = lora_layers(model)
        parameters = dict(model.named_parameters())
        tensors = {name: parameters[name] for name in head}
        for name, layer in layers.items():
            tensors |= {f"{name}.lora_A.weight": layer.lora_a, f"{name}.lora_B.weight": layer.lora_b}
        content = {f"base_model.model.{k}": v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(content, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        storage.apply_umask(folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS" if "SequenceClassification" in type(model).__name__ else None,
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(layers),
            "modules_to_save": sorted({_owner(model, name) for name in head}) or None,
            "bias": "none",
            "inference_mode": True,
        }
        storage.write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")


def _owner(model: nn.Module, parameter: str) -> str:
    """The module PEFT saves whole: `classifier.dense.weight` belongs to `classifier`, a new `bert.pooler` to itself."""
    inside = parameter.startswith(f"{getattr(model, 'base_model_prefix', '')}.")
    return ".".join(parameter.split(".")[: -1 if inside else 1])
