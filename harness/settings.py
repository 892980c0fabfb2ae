"""Strict settings: every section of a spec and every plug-in is one `Settings` class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Fields with types and bounds; unknown keys, wrong types, NaN and infinity are refused.

    Raises:
        pydantic.ValidationError: with every error at once; `harness.specs.spec` turns it into a `SpecError`.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
