"""Every layout against two witnesses: AdapterHub (tests/fixtures/make_adapterhub.py) and the published formula.

Houlsby et al. 2019 (arXiv 1902.00751), Pfeiffer et al. 2020 (2005.00247), He et al. 2022 (2110.04366), with x the input
of a sub-layer, z its output and LN the LayerNorm after it:

    houlsby    LN(z + d(z) + x)        pfeiffer    LN(z + d(LN(z + x)) + x)        parallel    LN(z + d(x) + x)
    d(h) = s (W_up f(W_down h + b_down) + b_up)

Legend: B texts, T tokens, D width, E width of a head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.methods.bottleneck_adapter import BottleneckAdapter
from tests.fixtures.filling import filling
from tests.toys import VOCABULARY, classifier, deviation, random_batch

HUB: dict[str, Any] = json.loads((Path(__file__).parents[1] / "fixtures" / "adapterhub.json").read_text("utf-8"))
FAMILIES = ("bert", "distilbert")
INPUTS = random_batch([5, 9, 3]).per_token
HEADS, WIDTH, INNER, SIZE = 2, 16, 24, 4
EVERY_CASE = pytest.mark.parametrize(
    "case",
    HUB["cases"],
    ids=lambda case: "-".join(
        [case["family"], case["layout"], *case["after"], f"{case['scaling']:g}", case["non_linearity"]]
    ),
)


def float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def filled(family: str) -> nn.Module:
    model = classifier(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(filling(name, tuple(parameter.shape)))
    return model


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by the names of the reference, filled."""
    found: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        *parts, last = path.split(".")
        if last == "bottleneck_adapter":
            number = next(i for i, part in enumerate(parts) if part.isdigit())
            in_attention = any("att" in part or part == "sa_layer_norm" for part in parts[number:])
            place = f"layer{parts[number]}.{'attention' if in_attention else 'feed_forward'}"
            found |= {f"{place}.{name}": parameter for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in found.items():
            parameter.copy_(filling(name, tuple(parameter.shape)))
    return found


def adapted(case: dict[str, Any]) -> nn.Module:
    """The toy classifier edited by the method with the settings of the case that differ from houlsby's."""
    settings = {"layout": case["layout"]} if case["layout"] != "houlsby" else {}
    settings |= {"scaling": case["scaling"]} if case["scaling"] != 1 else {}
    method = BottleneckAdapter(size=SIZE, after=case["after"], non_linearity=case["non_linearity"], **settings)
    return method.edit_model(filled(case["family"]))


# The names transformers gives the parts of a block, by their part in the computation.
_NAMES: dict[str, dict[str, str]] = {
    "bert": {
        "blocks": "bert.encoder.layer", "pooler": "bert.pooler.dense",
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "o": "attention.output.dense", "inner": "intermediate.dense", "outer": "output.dense",
        "attention": "attention.output.LayerNorm", "feed_forward": "output.LayerNorm",
    },
    "distilbert": {
        "blocks": "distilbert.transformer.layer", "pooler": "pre_classifier",
        "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin",
        "o": "attention.out_lin", "inner": "ffn.lin1", "outer": "ffn.lin2",
        "attention": "sa_layer_norm", "feed_forward": "output_layer_norm",
    },
}  # fmt: skip


class ByHand:
    """A case in matrix products, from nothing but the filled weights. `adapters` has the parameters used so far."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.family: str = case["family"]
        self.names = _NAMES[self.family]
        self.adapters: dict[str, Tensor] = {}

    def linear(self, name: str, hidden: Tensor, width: int) -> Tensor:
        """hidden: [..., D] -> [..., width]."""
        return hidden @ filling(f"{name}.weight", (width, hidden.shape[-1])).T + filling(f"{name}.bias", (width,))

    def layer_norm(self, name: str, hidden: Tensor) -> Tensor:
        centred = hidden - hidden.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return normed * filling(f"{name}.weight", (WIDTH,)) + filling(f"{name}.bias", (WIDTH,))

    def embedded(self) -> Tensor:
        """-> [B, T, D]."""
        name, ids = f"{self.family}.embeddings", INPUTS["input_ids"]
        hidden = filling(f"{name}.word_embeddings.weight", (VOCABULARY, WIDTH))[ids]
        hidden = hidden + filling(f"{name}.position_embeddings.weight", (512, WIDTH))[: ids.shape[1]]
        if self.family == "bert":
            hidden = hidden + filling(f"{name}.token_type_embeddings.weight", (2, WIDTH))[0]
        return self.layer_norm(f"{name}.LayerNorm", hidden)

    def attention(self, block: str, hidden: Tensor) -> Tensor:
        """hidden: [B, T, D] -> [B, T, D]."""
        q, k, v = (self.linear(f"{block}.{self.names[part]}", hidden, WIDTH) for part in "qkv")
        padding = INPUTS["attention_mask"][:, None] == 0  # [B, 1, T]
        heads = []
        for one in torch.arange(WIDTH).chunk(HEADS):
            scores = q[..., one] @ k[..., one].mT / len(one) ** 0.5  # [B, T, T]
            heads.append(scores.masked_fill(padding, -torch.inf).softmax(-1) @ v[..., one])  # [B, T, E]
        return self.linear(f"{block}.{self.names['o']}", torch.cat(heads, -1), WIDTH)

    def feed_forward(self, block: str, hidden: Tensor) -> Tensor:
        """hidden: [B, T, D] -> [B, T, D]."""
        inner = gelu(self.linear(f"{block}.{self.names['inner']}", hidden, INNER))
        return self.linear(f"{block}.{self.names['outer']}", inner, WIDTH)

    def delta(self, place: str, hidden: Tensor) -> Tensor:
        """d(h), hidden: [B, T, D] -> [B, T, D]."""
        shapes = {"down.weight": (SIZE, WIDTH), "down.bias": (SIZE,), "up.weight": (WIDTH, SIZE), "up.bias": (WIDTH,)}
        new = {f"{place}.{name}": filling(f"{place}.{name}", shape) for name, shape in shapes.items()}
        down, down_bias, up, up_bias = (tensor.requires_grad_() for tensor in new.values())
        self.adapters |= new
        inner = hidden @ down.T + down_bias
        inner = gelu(inner) if self.case["non_linearity"] == "gelu" else inner.clamp(min=0)
        scaled: Tensor = self.case["scaling"] * (inner @ up.T + up_bias)
        return scaled

    def end(self, layer: int, sublayer: str, x: Tensor, z: Tensor) -> Tensor:
        """The published formula: what leaves a sub-layer that turned x into z, both [B, T, D]."""
        name = f"{self.names['blocks']}.{layer}.{self.names[sublayer]}"
        if sublayer in self.case["after"]:
            read = {"houlsby": z, "pfeiffer": self.layer_norm(name, z + x), "parallel": x}[self.case["layout"]]
            z = z + self.delta(f"layer{layer}.{sublayer}", read)
        return self.layer_norm(name, z + x)

    def logits(self) -> Tensor:
        """-> [B, labels]."""
        hidden = self.embedded()
        for layer in (0, 1):
            block = f"{self.names['blocks']}.{layer}"
            hidden = self.end(layer, "attention", hidden, self.attention(block, hidden))
            hidden = self.end(layer, "feed_forward", hidden, self.feed_forward(block, hidden))
        pooled = self.linear(self.names["pooler"], hidden[:, 0], WIDTH)
        pooled = pooled.tanh() if self.family == "bert" else pooled.clamp(min=0)
        return self.linear("classifier", pooled, 3)


def gelu(inner: Tensor) -> Tensor:
    return inner * 0.5 * (1 + torch.erf(inner / 2**0.5))


def agrees(case: dict[str, Any], logits: Tensor, parameters: dict[str, Any]) -> None:
    """Logits and gradients are the reference's below 1e-10."""
    assert deviation(logits, float64(case["logits"])) < 1e-10
    logits.square().sum().backward()
    for name, gradient in case["gradients"].items():
        assert deviation(parameters[name].grad, float64(gradient)) < 1e-10, name


@EVERY_CASE
def test_the_method_agrees_with_adapterhub(case: dict[str, Any]) -> None:
    model = adapted(case)
    parameters = adapter_parameters(model)
    assert len(parameters) == 2 * len(case["after"]) * 4
    agrees(case, model(**INPUTS).logits, parameters)


@EVERY_CASE
def test_adapterhub_agrees_with_the_published_formula(case: dict[str, Any]) -> None:
    by_hand = ByHand(case)
    agrees(case, by_hand.logits(), by_hand.adapters)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_references_start_from_the_same_model(family: str) -> None:
    """Two versions of transformers and the plain computation here: one model without adapters."""
    expected = float64(HUB["plain"][family])
    assert deviation(filled(family)(**INPUTS).logits, expected) < 1e-12
    assert deviation(ByHand({"family": family, "after": []}).logits(), expected) < 1e-12


def test_the_references_have_the_inputs_of_the_toys() -> None:
    assert {name: tensor.tolist() for name, tensor in INPUTS.items()} == HUB["inputs"]


def test_no_two_references_are_alike() -> None:
    """Every layout, place, scaling and non-linearity moves the logits: agreement with one is not agreement with all."""
    results = [float64(logits) for logits in [*HUB["plain"].values(), *(case["logits"] for case in HUB["cases"])]]
    assert min(deviation(one, other) for i, one in enumerate(results) for other in results[:i]) > 1e-2


@EVERY_CASE
def test_the_references_have_gradients_of_every_adapter(case: dict[str, Any]) -> None:
    places = [f"layer{layer}.{place}" for layer in (0, 1) for place in case["after"]]
    kinds = ["bias"] if case["non_linearity"] == "relu" else ["weight", "bias"]
    expected = {f"{place}.{projection}.{kind}" for place in places for projection in ("down", "up") for kind in kinds}
    assert case["gradients"].keys() == expected
    assert all(float64(gradient).abs().max() > 1e-3 for gradient in case["gradients"].values())
