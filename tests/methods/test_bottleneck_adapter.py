from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.methods.bottleneck_adapter import BottleneckAdapter, remove
from tests.toys import FAMILIES, classifier, deviation, random_batch

INPUTS = random_batch([5, 9, 3]).per_token


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "bottleneck_adapter" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("after", [["feed_forward"], ["attention", "feed_forward"]])
def test_training_starts_at_the_pretrained_model_exactly(family: str, after: Any) -> None:
    adapted = BottleneckAdapter(size=4, after=after).edit_model(classifier(family))
    assert torch.equal(adapted(**INPUTS).logits, classifier(family)(**INPUTS).logits)
    assert len(BottleneckAdapter.trainable(BottleneckAdapter(), adapted) or ()) == 2 * len(after) * 4


def delta(adapter: Any, hidden: Tensor) -> Tensor:
    """W_up gelu(W_down h + b_down) + b_up, in plain matrix products."""
    inner = hidden @ adapter.down.weight.T + adapter.down.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    result: Tensor = inner @ adapter.up.weight.T + adapter.up.bias
    return result


def test_bert_layer_by_the_published_layout() -> None:
    """out = LayerNorm(z + delta(z) + x) after attention and after feed-forward, written out by hand."""
    model: Any = randomised(BottleneckAdapter(size=4, after=["attention", "feed_forward"]).edit_model(classifier()))
    layer = model.bert.encoder.layer[0]
    seen: dict[str, Any] = {}
    for name, module in (("attention", layer.attention.output), ("feed_forward", layer.output)):
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args, out)}))
    model(**INPUTS)
    for name, module in (("attention", layer.attention.output), ("feed_forward", layer.output)):
        (hidden, residual), out = seen[name]
        z = hidden @ module.dense.weight.T + module.dense.bias
        adapter = module.dropout.bottleneck_adapter
        expected = module.LayerNorm(z + delta(adapter, z) + residual)
        assert deviation(out, expected) < 1e-10
        assert float(delta(adapter, z).detach().abs().max()) > 1e-2


def test_distilbert_feed_forward_by_the_published_layout() -> None:
    model: Any = randomised(BottleneckAdapter(size=4).edit_model(classifier("distilbert")))
    block = model.distilbert.transformer.layer[0]
    seen: dict[str, Any] = {}
    block.ffn.register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
    block.output_layer_norm.register_forward_hook(lambda m, args, out: seen.update(sum=args[0]))
    model(**INPUTS)
    inner = seen["x"] @ block.ffn.lin1.weight.T + block.ffn.lin1.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    z = inner @ block.ffn.lin2.weight.T + block.ffn.lin2.bias
    expected = z + delta(block.ffn.bottleneck_adapter, z) + seen["x"]
    assert deviation(seen["sum"], expected) < 1e-10


def test_parameter_count() -> None:
    adapted = BottleneckAdapter(size=4).edit_model(classifier())
    names = BottleneckAdapter().trainable(adapted) or set()
    assert sum(adapted.get_parameter(name).numel() for name in names) == 2 * (2 * 4 * 16 + 4 + 16)


def test_a_copy_has_adapters_of_its_own() -> None:
    adapted = randomised(BottleneckAdapter(size=4).edit_model(classifier()))
    twin = copy.deepcopy(adapted)
    before = twin(**INPUTS).logits
    with torch.no_grad():
        for name in BottleneckAdapter().trainable(adapted) or set():
            adapted.get_parameter(name).zero_()
    assert torch.equal(twin(**INPUTS).logits, before)
    assert not torch.equal(adapted(**INPUTS).logits, before)


@pytest.mark.parametrize("layout", ["houlsby", "pfeiffer", "parallel"])
def test_removal_restores_the_model_bit_for_bit(layout: Any) -> None:
    model = randomised(
        BottleneckAdapter(size=4, after=["attention", "feed_forward"], layout=layout).edit_model(classifier())
    )
    twin = copy.deepcopy(model)
    assert not torch.equal(model(**INPUTS).logits, classifier()(**INPUTS).logits)
    remove(model)
    assert not torch.equal(twin(**INPUTS).logits, classifier()(**INPUTS).logits)
    remove(twin)
    assert torch.equal(twin(**INPUTS).logits, classifier()(**INPUTS).logits)
    assert torch.equal(model(**INPUTS).logits, classifier()(**INPUTS).logits)
    assert model.state_dict().keys() == classifier().state_dict().keys()


def test_applying_twice_is_an_error_not_a_second_adapter() -> None:
    with pytest.raises(ModelError, match="already has a bottleneck_adapter"):
        BottleneckAdapter(size=4).edit_model(BottleneckAdapter(size=4).edit_model(classifier()))


def test_a_model_without_a_place_is_an_error() -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(4, 4)]))
    with pytest.raises(ModelError, match=r"methods\.bottleneck_adapter: no block of Sequential"):
        BottleneckAdapter().edit_model(model)
