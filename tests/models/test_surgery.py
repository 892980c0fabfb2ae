from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.models.surgery import disable_dropout, role_of
from tests.toys import ALL_FAMILIES, classifier, random_batch


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("bert.encoder.layer.0.attention.self.query", "attention"),
        ("bert.encoder.layer.0.attention.output.dense", "attention"),
        ("bert.encoder.layer.0.output.dense", "feed_forward"),
        ("distilbert.transformer.layer.1.attention.q_lin", "attention"),
        ("distilbert.transformer.layer.1.ffn.lin2", "feed_forward"),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output", "feed_forward"),
        ("model.layers.3.self_attn.o_proj", "attention"),
        ("model.layers.3.mlp.down_proj", "feed_forward"),
        ("model.layers.3.attn.Wqkv", "attention"),
        ("model.decoder.layers.0.encoder_attn.k_proj", "attention"),
        ("transformer.h.0.self_attention.query_key_value", "attention"),
        ("encoder.block.0.layer.0.SelfAttention.q", "attention"),
        ("transformer.h.3.attn.c_attn", "attention"),
        ("transformer.h.3.mlp.c_fc", "feed_forward"),
        ("bert.pooler.dense", "head"),
        ("classifier", "head"),
        ("electra.embeddings_project", None),
        ("albert.encoder.embedding_hidden_mapping_in", None),
    ],
)
def test_the_role_of_a_layer_by_its_place(name: str, role: str | None) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_without_dropout_training_computes_what_evaluation_does(family: str) -> None:
    model, inputs = classifier(family, dropout=0.4), random_batch([3, 11, 5]).per_token
    expected = model(**inputs).logits
    model.train()
    assert not torch.equal(model(**inputs).logits, expected)
    disable_dropout(model)
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(model(**inputs).logits, expected)


def test_dropout_inside_torchs_attention_is_switched_off() -> None:
    layer, x = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), torch.randn(2, 5, 8)
    disable_dropout(layer.train())
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    assert torch.allclose(layer(x, x, x)[0], layer.eval()(x, x, x)[0], atol=1e-6)


def test_what_is_no_rate_stays() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout_rate, self.drop_last, self.p, self.layerdrop = 0.1, True, 0.3, 0.2

    block = Block()
    disable_dropout(block)
    assert (block.dropout_rate, block.drop_last, block.p, block.layerdrop) == (0.0, True, 0.3, 0.0)
