"""A small Transformer with random weights, to study methods from scratch: `model.name=builtin:transformer`.

    h = words + positions;    h = h + attention(norm(h));    h = h + ffn(norm(h))  (per block);    head(norm(h))

Vaswani et al. 2017, arXiv 1706.03762, with the norm before each part (Xiong et al. 2020, arXiv 2002.04745), GELU, and
the weights of GPT-2's start (Radford et al. 2019: N(0, 0.02), parts that end in the residual sum divided by the root of
their number). Positions are learned, or not added at all: queries and keys are rotated by them (Su et al. 2021, RoPE,
arXiv 2104.09864). One class serves as encoder, classifier, masked and causal language model.
Legend: B texts, T tokens of the longest, D width, H heads, F width of the feed-forward part, V vocabulary, L labels.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.models.model import Model

Kind = Literal["sequence_classification", "token_classification", "masked_lm", "causal_lm"]


class Config(PreTrainedConfig):
    """Sizes and kind, under the names that transformers gives them."""

    model_type = "harness_transformer"
    kind: str = "causal_lm"
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    intermediate_size: int = 0
    max_position_embeddings: int = 0
    vocab_size: int = 0
    dropout: float = 0.0
    positions: str = "learned"
    pad_token_id: int | None = None


class Output(NamedTuple):
    """What a forward pass returns."""

    logits: Tensor


class Embeddings(nn.Module):
    """A vector for each word and, unless attention rotates by it, one for its place, added."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """[B, T], [B, T] -> [B, T, D]"""
        hidden: Tensor = self.words(input_ids)
        if hasattr(self, "positions"):
            hidden = hidden + self.positions(places)
        return self.dropout(hidden)  # type: ignore[no-any-return]


Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles by which places turn the halves of a head. [B, T, D/H/2] each"""


def rotation(places: Tensor, width: int) -> Rotation:
    """Of heads of this width: place p turns pair i by p / 10000^(2i / width). [B, T]"""
    pairs = torch.arange(0, width, 2, device=places.device)
    angles = places[..., None] * 10_000.0 ** -(pairs / width)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Pair i is entries i and i + D/H/2, as Llama has it. [B, H, T, D/H] -> the same"""
    cos, sin = (part[:, None].to(x) for part in by)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D/H)) V for each head; the product itself is one of transformers' attention functions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.heads, self.is_causal = config, config.num_attention_heads, config.kind == "causal_lm"
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, turn: Rotation | None = None) -> Tensor:
        """[B, T, D], [B, 1, T, T] true where a token may look -> [B, T, D]"""
        parts = (layer(hidden_states) for layer in (self.query, self.key, self.value))  # [B, T, D]
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [B, H, T, D/H]
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        rate = self.config.dropout if self.training else 0.0
        mixed, _ = attend(self, q, k, v, attention_mask, dropout=rate, is_causal=self.is_causal)  # [B, T, H, D/H]
        return self.dropout(self.out(mixed.flatten(2)))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """W2 gelu(W1 h) for each token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, F] -> [B, T, D]"""
        return self.dropout(self.out(nn.functional.gelu(self.inner(hidden_states))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then feed-forward, each on normalised states and added to what came in."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.attention, self.ffn = Attention(config), FeedForward(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, turn: Rotation | None = None) -> Tensor:
        """[B, T, D], [B, 1, T, T] -> [B, T, D]"""
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), attention_mask, turn)
        return hidden_states + self.ffn(self.ffn_norm(hidden_states))  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """Embeddings, blocks, and a last norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.is_causal = config, config.kind == "causal_lm"
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T], [B, T] -> [B, T, D]; places are counted over real tokens, wherever the padding is."""
        looks = attention_mask.bool()[:, None, None, :]  # at real tokens
        length = input_ids.shape[1]
        here = torch.ones(length, length, dtype=torch.bool, device=input_ids.device)
        looks = looks & (here.tril() if self.is_causal else here)  # [B, 1, T, T]
        looks = looks | here.logical_not().fill_diagonal_(True)  # padding looks at itself: no row is empty
        places = (attention_mask.cumsum(1) - 1).clamp_min(0)
        is_rotary = self.config.positions == "rotary"
        turn = rotation(places, self.config.hidden_size // self.config.num_attention_heads) if is_rotary else None
        hidden: Tensor = self.embeddings(input_ids, places)
        for block in self.blocks:
            hidden = block(hidden, looks, turn)
        return self.norm(hidden)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The backbone with the head of its kind."""

    base_model_prefix = "transformer"

    def __init__(self, config: Config, num_labels: int) -> None:
        super().__init__()
        self.config = config
        self.transformer = Backbone(config)
        if config.kind in ("masked_lm", "causal_lm"):
            self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.kind == "masked_lm")
            self.decoder.weight = self.transformer.embeddings.words.weight  # Press & Wolf 2017, arXiv 1608.05859
        else:
            self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.apply(_start)
        for name, weight in self.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.num_hidden_layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        """[B, T], [B, T] -> logits: [B, L] of texts (the mean over their tokens), [B, T, L] or [B, T, V] of tokens."""
        hidden = self.transformer(input_ids, attention_mask)  # [B, T, D]
        if self.config.kind in ("masked_lm", "causal_lm"):
            return Output(self.decoder(hidden))
        if self.config.kind == "sequence_classification":
            real = attention_mask[..., None].to(hidden)
            hidden = (hidden * real).sum(1) / real.sum(1)  # [B, D]
        return Output(self.classifier(hidden))


def _start(module: nn.Module) -> None:
    """Weights before the first step."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def build(model: Model, kind: Kind, *, vocab_size: int, num_labels: int = 0, pad_token_id: int) -> Transformer:
    """The model with random weights, from torch's generator.

    Args:
        model: its sizes.
        kind: which head it gets; a causal language model looks back only.
        vocab_size: tokens that the tokenizer knows.
        num_labels: of a classifier.
        pad_token_id: kept in the configuration.
    """
    sizes = model.sizes
    config: Any = Config(
        kind=kind, hidden_size=sizes.d_model, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        intermediate_size=sizes.ffn, max_position_embeddings=sizes.max_length, vocab_size=vocab_size,
        dropout=sizes.dropout, positions=sizes.positions, pad_token_id=pad_token_id,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return Transformer(config, num_labels)
