"""Several texts in one row: logits, losses and gradients are those of single rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness import losses
from harness.batch import Batch
from harness.language import packing
from tests.toys import language_batch, language_model

LENGTHS = [7, 2, 5, 5, 1, 3, 9]
FAMILIES = ("llama", "grouped", "gpt2")


def logits_of(model: Any, laid: packing.Laid) -> torch.Tensor:
    return torch.cat([model(**laid.inputs).logits[laid.owner == text] for text in range(len(LENGTHS))])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_single_rows(family: str, attention: str) -> None:
    model: Any = language_model(family).float()
    model.set_attn_implementation(attention)
    batch = language_batch(LENGTHS)
    alone = torch.cat([model(input_ids=batch.per_token["input_ids"][i : i + 1, :n]).logits[0]
                       for i, n in enumerate(LENGTHS)])  # fmt: skip
    for capacity in (sum(LENGTHS), 12, 1):
        found = logits_of(model, packing.pack(batch, capacity, torch.float32))
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(model, packing.plain(batch)), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_single_rows(family: str) -> None:
    model: Any = language_model(family)
    found = []
    for laid in (packing.plain(batch := language_batch(LENGTHS)), packing.pack(batch, 12, torch.float64)):
        model.zero_grad()
        loss = losses.cross_entropy_sum(model(**laid.inputs).logits, laid.labels)
        loss.backward()
        assert losses.count_targets(laid.labels) == losses.count_targets(batch.per_token["labels"])
        found.append((float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


def test_another_text_in_the_row_changes_nothing() -> None:
    model: Any = language_model("llama")
    batch = language_batch(LENGTHS)
    laid = packing.pack(batch, sum(LENGTHS), torch.float64)
    assert laid.labels.shape == (1, sum(LENGTHS))
    before = model(**laid.inputs).logits
    changed = {**laid.inputs, "input_ids": torch.where(laid.owner == 0, 4, laid.inputs["input_ids"])}
    after = model(**changed).logits
    assert torch.equal(before[laid.owner != 0], after[laid.owner != 0])
    assert not torch.equal(before[laid.owner == 0], after[laid.owner == 0])


def test_rows_are_filled_and_never_overfull() -> None:
    assert packing.rows_of([7, 2, 5, 5, 1, 3, 9], 12) == [[6, 5], [0, 2], [3, 1, 4]]
    assert packing.rows_of([20, 3], 12) == [[0], [1]], "one that is longer than a row stands alone"
    assert packing.rows_of([4], 12) == [[0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_can_are_let(family: str) -> None:
    model = language_model(family).train()
    assert packing.why_not(model, language_batch([4, 2])) == ""
    assert model.training


def test_models_that_cannot_are_told() -> None:
    class NoPositions(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None: ...

    assert packing.why_not(NoPositions(), language_batch([2])) == "NoPositions takes no position_ids"
    mixing: Any = language_model("llama")
    mixing.model.layers[0].register_forward_hook(lambda _, args, output: output + output.mean(1, keepdim=True))
    assert packing.why_not(mixing, language_batch([4, 2])).startswith("logits of packed texts differ by")
    plain_mask: Any = language_model("llama")

    def refuse(_: nn.Module, args: Any, named: dict[str, torch.Tensor]) -> None:
        if named["attention_mask"].ndim != 2:
            raise ValueError("no such mask")

    plain_mask.register_forward_pre_hook(refuse, with_kwargs=True)
    assert packing.why_not(plain_mask, language_batch([4, 2])) == "LlamaForCausalLM does not take them (no such mask)"


def test_a_batch_keeps_what_it_was() -> None:
    batch = language_batch([3, 2])
    before = {name: tensor.clone() for name, tensor in batch.per_token.items()}
    packing.pack(batch, 9, torch.float32)
    assert isinstance(batch, Batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in batch.per_token.items())
