"""The estimate of memory, against what autograd really keeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from harness.results import footprint
from harness.specs import spec


def kept_bytes(model: Any, inputs: dict[str, Tensor]) -> int:
    """Bytes of all storages that one forward keeps for its backward, without the weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}
    alive: list[Any] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # an address must not be used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(seen.values())


@pytest.mark.parametrize(("width", "layers", "heads", "length"), [(384, 2, 12, 128), (256, 4, 4, 64), (384, 2, 12, 32)])
def test_activations_are_what_autograd_keeps(width: int, layers: int, heads: int, length: int) -> None:
    """Korthikanti's count, within a quarter: it leaves out embeddings, head and what a kernel may drop or add."""
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=length,
    )  # fmt: skip
    model = BertForSequenceClassification(config).train()
    ids = torch.randint(0, 50, (4, length))
    given = [f"train.micro_batch_tokens={4 * length}", f"task.sequence_classification.max_length={length}"]
    count = SimpleNamespace(total=sum(p.numel() for p in model.parameters()), trainable=10)
    assembled: Any = SimpleNamespace(model=model, count=count)
    found = footprint.estimate(assembled, spec.load("full_finetune", given), "no")
    measured = kept_bytes(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}) / 1024**3
    assert found["activations"] == pytest.approx(measured, rel=0.25)
    assert found["weights"] == pytest.approx(sum(p.numel() * 4 for p in model.parameters()) / 1024**3)
    assert found["gradients"] + found["optimizer"] == pytest.approx(10 * 12 / 1024**3)
    half = footprint.estimate(assembled, spec.load("full_finetune", given), "bf16")
    assert half["activations"] == pytest.approx(found["activations"] / 2)


def test_what_fits_is_what_is_left_for_activations() -> None:
    parts = {"weights": 1.0, "gradients": 0.5, "optimizer": 1.0, "activations": 0.2, "total": 2.7}
    assert footprint.tokens_that_fit(parts, 1000, 4.0) == int((4.0 - 0.6 - 2.5) / 0.2 * 1000)
    assert footprint.tokens_that_fit(parts, 1000, 3.0) == 0
    assert footprint.tokens_that_fit(parts | {"activations": 0.0}, 1000, 4.0) == 0
