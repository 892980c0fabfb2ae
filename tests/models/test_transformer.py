"""`builtin:transformer` against torch's own layers with the same weights, and under the methods."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from harness import checkpoint, registry
from harness.methods.bottleneck_adapter import Bottleneck
from harness.models import padding_free, surgery, transformer
from harness.models.model import Architecture, Model
from harness.models.transformer import Block, Kind

KINDS = get_args(Kind)
SIZES = Architecture(layers=2, d_model=16, heads=2, ffn=24, max_length=12, dropout=0.0)
MODEL = Model(name="builtin:transformer", revision=None, architecture=SIZES)
ROTARY = MODEL.model_copy(update={"architecture": SIZES.model_copy(update={"positions": "rotary"})})
LENGTHS = [4, 9, 7]


def build(kind: Kind = "causal_lm", model: Model = MODEL) -> transformer.Transformer:
    torch.manual_seed(0)
    built = transformer.build(model, kind, vocab_size=50, num_labels=3, pad_token_id=0)
    for parameter in built.parameters():  # biases too, so that each of them matters
        nn.init.normal_(parameter, std=0.3)
    return built.double().eval()


def batch(*, left: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens and mask, padded on the right, or on the left."""
    ids = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    both = ids * mask, mask
    if not left:
        return both
    first, second = (torch.stack([row.roll(9 - n) for row, n in zip(x, LENGTHS, strict=True)]) for x in both)
    return first, second


def torchs(block: Block) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of ours."""
    layer = nn.TransformerEncoderLayer(
        16, 2, 24, dropout=0.0, activation="gelu", norm_first=True, batch_first=True, dtype=torch.float64
    )
    inputs = (block.attention.query, block.attention.key, block.attention.value)
    pairs = [
        (layer.self_attn.in_proj_weight, torch.cat([one.weight for one in inputs])),
        (layer.self_attn.in_proj_bias, torch.cat([one.bias for one in inputs])),
    ]
    for its, own in (
        (layer.self_attn.out_proj, block.attention.out), (layer.linear1, block.ffn.inner),
        (layer.linear2, block.ffn.out), (layer.norm1, block.attention_norm), (layer.norm2, block.ffn_norm),
    ):  # fmt: skip
        pairs += [(its.weight, own.weight), (its.bias, own.bias)]  # type: ignore[list-item]
    with torch.no_grad():
        for its_weight, own_weight in pairs:
            its_weight.copy_(own_weight)
    return layer.eval()


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm"])
def test_a_block_is_torchs(kind: Kind) -> None:
    model, (_, mask) = build(kind), batch()
    hidden = expected = torch.randn(3, 9, 16, dtype=torch.float64)
    is_causal = kind == "causal_lm"
    looks = mask.bool()[:, None, None, :].expand(3, 1, 9, 9)
    looks = looks.tril() if is_causal else looks
    ahead = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64) if is_causal else None
    padding = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask == 0, -math.inf)
    for block in model.transformer.blocks:
        assert isinstance(block, Block)
        hidden = block(hidden, looks)
        expected = torchs(block)(expected, src_mask=ahead, src_key_padding_mask=padding, is_causal=is_causal)
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], rtol=1e-10, atol=1e-12)


def test_a_language_model_is_its_blocks_between_words_and_words() -> None:
    """Of one text without padding, written out."""
    model, ids = build("causal_lm"), batch()[0][1:2]
    inside = model.transformer
    hidden = inside.embeddings.words.weight[ids] + inside.embeddings.positions.weight[:9]
    for block in inside.blocks:
        hidden = block(hidden, torch.ones(1, 1, 9, 9, dtype=torch.bool).tril())
    expected = inside.norm(hidden) @ inside.embeddings.words.weight.T
    torch.testing.assert_close(model(ids, torch.ones_like(ids)).logits, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("of", [MODEL, ROTARY], ids=["learned", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_wherever_it_stands(kind: Kind, of: Model) -> None:
    model = build(kind, of)
    alone = [model(ids[None, :n], mask[None, :n]).logits[0] for ids, mask, n in zip(*batch(), LENGTHS, strict=True)]
    for left in (False, True):
        ids, mask = batch(left=left)
        logits = model(ids, mask).logits
        found = logits if logits.ndim == 2 else [row[real.bool()] for row, real in zip(logits, mask, strict=True)]
        for own, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


def test_only_a_causal_one_looks_back_alone() -> None:
    ids, mask = batch()
    other = ids.clone()
    other[1, 6] += 1
    for kind, changes_before in (("causal_lm", False), ("masked_lm", True), ("token_classification", True)):
        model = build(kind)  # type: ignore[arg-type]
        before, after = (model(x, mask).logits[1, :6] for x in (ids, other))
        assert torch.equal(before, after) != changes_before


def test_rotary_positions_are_llamas() -> None:
    """And what attention sees of two tokens depends on how far they are apart only."""
    q, places = torch.randn(2, 3, 7, 8), torch.arange(7).expand(2, 7)
    sizes = LlamaConfig(hidden_size=24, num_attention_heads=3, head_dim=8, max_position_embeddings=16)
    cos, sin = LlamaRotaryEmbedding(sizes)(q, places)
    expected, _ = apply_rotary_pos_emb(q, q, cos, sin)
    torch.testing.assert_close(transformer.rotate(q, transformer.rotation(places, 8)), expected)
    mask = batch()[1]
    block = build("causal_lm", ROTARY).transformer.blocks[0]
    hidden, looks = torch.randn(3, 9, 16, dtype=torch.float64), mask.bool()[:, None, None, :].expand(3, 1, 9, 9).tril()
    near, far = (block(hidden, looks, transformer.rotation(torch.arange(9)[None] + by, 8)) for by in (0, 100))
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(near, block(hidden, looks, transformer.rotation(2 * torch.arange(9)[None], 8)), atol=1e-2)


@pytest.mark.parametrize("of", [MODEL, ROTARY], ids=["learned", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_without_padding(kind: Kind, of: Model) -> None:
    model, (ids, mask) = build(kind, of), batch()
    expected = model(ids, mask).logits
    padding_free.attach(model, "auto")
    with padding_free.running(model):
        found = model(input_ids=ids, attention_mask=mask).logits
    assert padding_free.is_on(model)
    real = mask.bool() if found.ndim == 3 else slice(None)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-10, atol=1e-12)


def test_it_has_as_many_parameters_as_its_sizes_say() -> None:
    d, f, v, t = 16, 24, 50, 12
    block = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
    words = v * d + t * d + 2 * block + 2 * d
    expected = {"causal_lm": words, "masked_lm": words + v, "token_classification": words + 3 * d + 3}
    for kind, number in expected.items():
        built = transformer.build(MODEL, kind, vocab_size=v, num_labels=3, pad_token_id=0)  # type: ignore[arg-type]
        assert sum(p.numel() for p in built.parameters()) == number


def test_the_weights_at_the_start_are_those_of_gpt_2() -> None:
    sizes = Architecture(layers=8, d_model=128, heads=2, ffn=256, max_length=12)
    torch.manual_seed(0)
    built = transformer.build(Model(name="builtin:transformer", revision=None, architecture=sizes), "causal_lm",
                              vocab_size=500, pad_token_id=0)  # fmt: skip
    for name, weight in built.named_parameters():
        wanted = 0.02 / math.sqrt(16) if name.endswith("out.weight") else 0.02
        if weight.ndim == 2:
            assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.05), name
        else:
            assert set(weight.tolist()) == ({1.0} if "norm" in name and name.endswith("weight") else {0.0}), name


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "dropout": 0.0},
    "houlsby": {"size": 4, "after": ["attention", "feed_forward"]},
    "parallel": {"size": 4, "after": ["attention", "feed_forward"], "layout": "parallel"},
    "mixout": {"p": 0.5, "layers": "all"},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_find_their_places(name: str) -> None:
    """Query, key, value and out of both blocks; an adapter after, or beside, each of their four parts."""
    model, (ids, mask) = build("sequence_classification"), batch()
    before = model(ids, mask).logits
    method = registry.build("method", name if name in registry.names("method") else "bottleneck_adapter", METHODS[name])
    edited = method.edit_model(model)
    edited.eval()
    torch.testing.assert_close(edited(ids, mask).logits, before)
    roles = [surgery.role_of(layer) for layer in surgery.layers(edited)]
    assert (roles.count("attention"), roles.count("feed_forward"), roles.count("head")) == (8, 4, 1)
    adapters = [module for module in edited.modules() if isinstance(module, Bottleneck)]
    assert len(adapters) == (4 if name in ("houlsby", "parallel") else 0)
    for adapter in adapters:
        nn.init.ones_(adapter.up.bias)
    assert torch.equal(edited(ids, mask).logits, before) == (not adapters)


def test_tied_weights_are_kept_once() -> None:
    model = build("causal_lm")
    state = checkpoint.trained_state(model)
    assert not any(name.startswith("decoder") for name in state)
    other = build("causal_lm")
    nn.init.zeros_(other.transformer.embeddings.words.weight)
    checkpoint.restore(other, state)
    ids, mask = batch()
    assert torch.equal(other(ids, mask).logits, model(ids, mask).logits)
