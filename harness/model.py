"""Which pretrained model a run starts from."""

from __future__ import annotations

from pydantic import Field

from harness.settings import Settings


class Model(Settings):
    """The pretrained model."""

    name: str = Field(min_length=1)
    """`builtin:minilm`, a Hub id, or a local folder."""
    revision: str | None
    """Branch, tag or commit of a Hub id."""
