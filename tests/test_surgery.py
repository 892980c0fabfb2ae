from __future__ import annotations

import pytest

from harness.surgery import role_of


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
