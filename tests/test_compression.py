from __future__ import annotations

import copy
import io
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from harness.compression import check, prunable, prune, quantise, share_of_zeros, sizes
from harness.errors import ModelError
from harness.models.surgery import role_of
from harness.specs.schema import Compression
from tests.toys import FAMILIES, VOCABULARY, classifier, deviation, random_batch

INPUTS = random_batch([7, 5, 2]).per_token


def gpt2() -> nn.Module:
    """Its blocks have `Conv1D` where others have `nn.Linear`."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_labels": 3}
    config = GPT2Config(**small, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    model: nn.Module = GPT2ForSequenceClassification(config)
    return model.eval()


def model_of(family: str) -> nn.Module:
    return gpt2() if family == "gpt2" else classifier(family).float()


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**INPUTS).logits
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
@pytest.mark.parametrize("share", [0.3, 0.77])
def test_pruning_zeroes_exactly_the_smallest_weights_of_all_blocks_together(family: str, share: float) -> None:
    model = model_of(family)
    before = state(model)
    names = [n for n, tensor in before.items()
             if tensor.ndim == 2 and role_of(n.rpartition(".")[0]) in ("attention", "feed_forward")]  # fmt: skip
    together = torch.cat([before[name].flatten() for name in names])
    smallest = together.abs().topk(round(share * len(together)), largest=False).indices
    expected = together.index_fill(0, smallest, 0.0)
    after = state(prune(model, share))
    assert torch.equal(torch.cat([after[name].flatten() for name in names]), expected)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - set(names))
    assert after.keys() == before.keys()
    assert same(state(model), before)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_int8_weights_are_within_half_a_step_and_the_model_runs(family: str) -> None:
    model = model_of(family)
    before = state(model)
    quantised = quantise(model)
    layers = {n: m for n, m in quantised.named_modules() if type(m).__module__.endswith("dynamic.modules.linear")}
    assert len(layers) >= 2 * 4
    assert not any(isinstance(module, nn.Linear) for module in quantised.modules())
    for name, layer in layers.items():
        packed: Tensor = layer.weight()
        plain = before[f"{name}.weight"]
        plain = plain.T if family == "gpt2" and name != "score" else plain
        assert packed.q_scale() == pytest.approx(float(plain.abs().max()) / 127.5)
        assert deviation(packed.dequantize(), plain) <= packed.q_scale() / 2 * (1 + 1e-4)
    assert 0 < deviation(logits(quantised), logits(model)) < 0.02
    assert same(state(model), before)


def by_hand(x: Tensor, weight: Tensor, bias: Tensor, top: int) -> Tensor:
    """y = s t (u - z) q' + b, in float64. x: [B, I], weight: [O, I] -> [B, O]"""
    x, weight, bias = x.double(), weight.double(), bias.double()
    s = weight.abs().max() / 127.5
    q = (weight / s).round().clamp(-128, 127)
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    t = (high - low) / top
    z = (-low / t).round()
    u = (x / t + z).round().clamp(0, top)
    return s * t * (u - z) @ q.T + bias


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_an_int8_layer_computes_the_published_formula(shift: float) -> None:
    """With 7 or 8 bits for its input, as the processor's kernels have it."""
    torch.manual_seed(1)
    layer, x = nn.Linear(24, 10), torch.randn(6, 24) + shift
    with torch.inference_mode():
        found = quantise(nn.Sequential(layer))(x).double()
    errors = [deviation(found, by_hand(x, layer.weight, layer.bias, top)) for top in (127, 255)]
    assert min(errors) < 1e-5
    assert 1e-3 < deviation(found, layer(x).double()) < 0.1


def test_attention_of_torch_is_pruned_and_stays_float() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.MultiheadAttention(16, 2), nn.Linear(16, 16)])})
    assert [name for _, name in prunable(model)] == ["in_proj_weight", "weight", "weight"]
    assert round(share_of_zeros(prune(model, 0.5)) * 16 * (5 * 16 + 5)) == 640 + 4 * 16  # half, and zero biases
    attention: Any = quantise(model).get_submodule("layers.0")
    x = torch.randn(3, 1, 16)
    assert torch.equal(attention(x, x, x)[0], model.get_submodule("layers.0")(x, x, x)[0])


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = nn.ModuleDict({"layer": nn.ModuleList([first, second, nn.Linear(8, 8)])})
    assert [id(owner) for owner, _ in prunable(model)] == [id(model.get_submodule("layer.2"))]
    pruned = prune(model, 0.25)
    assert [int((m.weight == 0).sum()) for m in pruned.modules() if isinstance(m, nn.Linear)] == [0, 0, 16]


def test_int8_is_smaller_and_pruned_is_smaller_only_when_zipped() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(256, 256)])})
    (plain, plain_zipped), (pruned, pruned_zipped) = sizes(model), sizes(prune(model, 0.5))
    assert plain == pytest.approx(256 * 257 * 4 / 2**20, rel=0.02)
    assert pruned == plain
    assert pruned_zipped < 0.75 * plain_zipped < 0.75 * plain
    assert sizes(quantise(model))[0] < 0.3 * plain


def test_sizes_are_those_of_the_file() -> None:
    model, file = classifier(), io.BytesIO()
    torch.save(model.state_dict(), file)
    content = file.getvalue()
    size, zipped = sizes(model)
    assert size * 2**20 == pytest.approx(len(content), rel=0.01)
    assert zipped * 2**20 == pytest.approx(len(zlib.compress(content, 6)), rel=0.01)


def test_zeros_are_counted_among_all_numbers() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)[0, :3] = 0.0
        layer.bias.fill_(1.0)
    assert share_of_zeros(layer) == pytest.approx(3 / 10)
    assert share_of_zeros(quantise(nn.Sequential(layer))) == pytest.approx(3 / 10)


@pytest.mark.parametrize(
    ("asked", "model", "message"),
    [
        ({"prune": [0.5], "int8": False}, nn.Sequential(nn.Embedding(3, 3)), r"compression\.prune: .*nothing to prune"),
        ({"prune": [], "int8": True}, nn.Sequential(nn.Embedding(3, 3)), r"compression\.int8: .*nothing to quantise"),
    ],
)
def test_a_model_without_such_layers_is_refused(asked: dict[str, Any], model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check(Compression(**asked), model)
    check(Compression(prune=[], int8=False), model)
    check(Compression(**asked), classifier())
