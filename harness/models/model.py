"""Which model a run starts from: a pretrained one, or a small Transformer of its own with random weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.settings import Settings

OWN = "builtin:transformer"
"""The name of the model that `harness/models/transformer.py` makes."""


class Architecture(Settings):
    """Sizes of `builtin:transformer`."""

    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    d_model: int = Field(default=256, ge=1)
    """Width of the hidden states; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of each block."""
    ffn: int = Field(default=1024, ge=1)
    """Width between the two matrices of a feed-forward part."""
    vocabulary: int = Field(default=8000, ge=16)
    """Tokens of the tokenizer that is trained on the training split; with `model.tokenizer` that one's count."""
    max_length: int = Field(default=512, ge=4)
    """The longest text it can read."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of embeddings, attention probabilities and the output of each part of a block."""
    positions: Literal["learned", "rotary"] = "learned"
    """learned: a vector for each place; rotary: attention turns queries and keys by their places (RoPE)."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of heads {self.heads}")
        if self.positions == "rotary" and self.d_model // self.heads % 2:
            raise ValueError(f"rotary positions need heads of an even width, not {self.d_model // self.heads}")
        return self


class Model(Settings):
    """The model that is trained."""

    name: str = Field(min_length=1)
    """`builtin:minilm`, a Hub id, a local folder, or `builtin:transformer`: an own one with random weights."""
    revision: str | None
    """Branch, tag or commit of a Hub id."""
    tokenizer: str | None = Field(default=None, min_length=1)
    """Whose tokenizer is used, named like a model. null: the model's own; one is trained for `builtin:transformer`."""
    architecture: Architecture | None = None
    """Sizes of `builtin:transformer`; null: their defaults. Other models have theirs."""

    @model_validator(mode="after")
    def _architecture_is_used(self) -> Self:
        if self.architecture and self.name != OWN:
            raise ValueError(f"architecture is for {OWN}; {self.name} has its own: write model.architecture=null")
        if self.tokenizer and self.name != OWN:
            raise ValueError(f"tokenizer is for {OWN}; {self.name} has its own: write model.tokenizer=null")
        return self

    @property
    def is_own(self) -> bool:
        """Whether it is `builtin:transformer`."""
        return self.name == OWN

    @property
    def sizes(self) -> Architecture:
        """Those of `builtin:transformer`."""
        return self.architecture or Architecture()
