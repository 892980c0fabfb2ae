from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from harness.errors import ModelError, SpecError
from harness.methods.bottleneck_adapter import Bottleneck, BottleneckAdapter, remove
from harness.methods.lora import LoRA
from harness.models import surgery
from harness.optim import Train, parameter_groups
from tests.test_train import SETTINGS
from tests.toys import ALL_FAMILIES, classifier, deviation, random_batch

INPUTS = random_batch([5, 9, 3]).per_token


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "bottleneck_adapter" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return model


LAYOUTS = ["houlsby", "pfeiffer", "parallel"]
NO_PLACE = {  # models that normalise before the sub-layer have no LayerNorm around the sum; ALBERT's has no seam inside
    "pfeiffer": ("modernbert", "gpt2", "llama"),
    "parallel": ("albert",),
    "houlsby": (),
}


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("after", [["feed_forward"], ["attention"], ["attention", "feed_forward"]])
def test_training_starts_at_the_pretrained_model_exactly(family: str, layout: Any, after: Any) -> None:
    method = BottleneckAdapter(size=4, after=after, layout=layout)
    if family in NO_PLACE[layout]:
        with pytest.raises(ModelError, match=f"has a place known here for layout {layout}"):
            method.edit_model(classifier(family))
        return
    adapted = method.edit_model(classifier(family))
    assert torch.equal(adapted(**INPUTS).logits, classifier(family)(**INPUTS).logits)
    blocks = 1 if family == "albert" else 2
    assert len(method.trainable(adapted) or ()) == blocks * len(after) * 4
    for name in method.trainable(adapted) or ():
        assert adapted.get_parameter(name).shape in {(4,), (16,), (4, 16), (16, 4)}
    changed = randomised(adapted)(**INPUTS).logits
    assert deviation(changed, classifier(family)(**INPUTS).logits) > 1e-4
    with surgery.disabled(adapted):
        assert torch.equal(adapted(**INPUTS).logits, classifier(family)(**INPUTS).logits)
    assert torch.equal(adapted(**INPUTS).logits, changed)


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
    with pytest.raises(ModelError, match=r"methods\.bottleneck_adapter\.layout: no block of Sequential"):
        BottleneckAdapter().edit_model(model)


@pytest.mark.parametrize(
    ("init", "low", "high"), [("near_identity", 1e-5, 0.05), ("he", 0.3, 9.0), ("xavier", 0.2, 9.0)]
)
def test_how_far_from_identity_an_adapter_starts(init: str, low: float, high: float) -> None:
    """At D = 384 and M = 64, relative to the hidden state."""
    torch.manual_seed(0)
    adapter = Bottleneck(384, 64, "relu", init=init)
    hidden = torch.randn(100, 384)
    ratio = float(adapter(hidden).detach().norm() / hidden.norm())
    assert low < ratio < high
    assert not adapter.down.bias.any()
    assert not adapter.up.bias.any()
    spread = {"near_identity": 0.01 * 0.8796, "he": (2 / 384) ** 0.5, "xavier": (2 / (384 + 64)) ** 0.5}[init]
    assert float(adapter.down.weight.detach().std()) == pytest.approx(spread, rel=0.02)
    assert init != "near_identity" or float(adapter.down.weight.detach().abs().max()) <= 0.02


def test_scaling_multiplies_the_whole_of_delta() -> None:
    torch.manual_seed(0)
    plain, scaled = Bottleneck(8, 4, init="he"), Bottleneck(8, 4, init="he", scaling=4.0)
    nn.init.ones_(plain.up.bias)
    scaled.load_state_dict(plain.state_dict())
    hidden = torch.randn(5, 8)
    assert torch.equal(scaled(hidden), 4 * plain(hidden))


def test_a_size_by_reduction_factor() -> None:
    adapted = BottleneckAdapter(reduction_factor=3).edit_model(classifier())
    assert adapted.get_parameter("bert.encoder.layer.0.output.dropout.bottleneck_adapter.down.bias").shape == (5,)
    with pytest.raises(SpecError, match=r"methods\.bottleneck_adapter: size and reduction_factor are both given"):
        BottleneckAdapter(size=4, reduction_factor=3).edit_model(classifier())
    with pytest.raises(SpecError, match=r"methods\.bottleneck_adapter\.after: the same sub-layer stands twice"):
        BottleneckAdapter(after=["attention", "attention"]).edit_model(classifier())
    note = BottleneckAdapter(reduction_factor=3).prepare(adapted, Train.model_validate(SETTINGS), 3)
    assert note == "houlsby, 5 of 16 units, at 2 places such as bert.encoder.layer.0.output.dropout"


def test_adapters_have_their_own_weight_decay() -> None:
    method = BottleneckAdapter(size=4, weight_decay=0.7)
    model = method.edit_model(classifier())
    groups = parameter_groups(model, Train.model_validate(SETTINGS), method.optimizer_rules(model))
    names = {id(p): name for name, p in model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert {d for n, d in decays.items() if "adapter" in n} == {0.7, 0.0}
    assert all(decays[n] == 0.7 for n in decays if n.endswith(("down.weight", "up.weight")))
    assert decays["classifier.weight"] == 0.1


SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("family", "options", "layout", "after"),
    [
        ("megatron-bert", {}, "parallel", "attention"),
        ("megatron-bert", {}, "parallel", "feed_forward"),
        ("roberta-prelayernorm", {"pad_token_id": 0}, "parallel", "attention"),
        ("roberta-prelayernorm", {"pad_token_id": 0}, "pfeiffer", "attention"),
        ("mpnet", {"pad_token_id": 0}, "houlsby", "attention"),
        ("mobilebert", {"embedding_size": 16, "intra_bottleneck_size": 8}, "houlsby", "feed_forward"),
        ("mobilebert", {"embedding_size": 16, "intra_bottleneck_size": 8}, "parallel", "feed_forward"),
    ],
)
def test_a_place_where_the_formula_would_be_another_is_refused(
    family: str, options: dict[str, Any], layout: Any, after: Any
) -> None:
    """Models that normalise before a sub-layer, inside it, or narrow it."""
    config = AutoConfig.for_model(family, vocab_size=50, num_labels=3, **SMALL, **options)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="has a place known here for layout"):
        BottleneckAdapter(size=4, layout=layout, after=[after]).edit_model(model)


def test_what_would_be_lost_in_merging_is_refused() -> None:
    adapter = BottleneckAdapter(size=4)
    with pytest.raises(ModelError, match=r"another method \(LoRALinear\) stands where the adapter would hang"):
        adapter.edit_model(LoRA(rank=2, target_modules="feed_forward").edit_model(classifier("albert")))
    with pytest.raises(ModelError, match="ffn_output carries what another method added"):
        LoRA(rank=2, target_modules="feed_forward").edit_model(adapter.edit_model(classifier("albert")))
    encoder: Any = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2)
    with pytest.raises(ModelError, match=r"another method \(LoRAAttention\)"):
        BottleneckAdapter(after=["attention"]).edit_model(LoRA(rank=2).edit_model(copy.deepcopy(encoder)))
    with pytest.raises(ModelError, match="carries what another method added"):
        LoRA(rank=2).edit_model(BottleneckAdapter(after=["attention"]).edit_model(encoder))
