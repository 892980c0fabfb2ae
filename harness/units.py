"""Values with a unit. A duration without a unit is an error: nobody has to guess whether 100 means steps or epochs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

GIB = 1024**3


@dataclass(frozen=True)
class Duration:
    """`100 steps` or `3 epochs`; a step is one optimizer update."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read `"3 epochs"`. Raises ValueError for anything but a positive whole number and a unit."""
        if isinstance(text, Duration):
            return text
        match = re.fullmatch(r"\s*([1-9][0-9]*)\s+(step|epoch)s?\s*", text) if isinstance(text, str) else None
        if match is None:
            raise ValueError("a duration is a positive whole number and a unit, such as '200 steps' or '3 epochs'")
        return cls(int(match[1]), f"{match[2]}s")

    def steps(self, steps_per_epoch: int) -> int:
        """The same duration in steps."""
        return self.count * (steps_per_epoch if self.unit == "epochs" else 1)

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count > 1 else self.unit[:-1]}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Let a `Settings` field be typed `Duration`: read from text, written as text."""
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=core_schema.to_string_ser_schema())


class Interval(Duration):
    """How often: `200 steps`, `1 epoch`, or `10 minutes` of training."""

    @classmethod
    def parse(cls, text: object) -> Interval:
        """Read `"10 minutes"`. Raises ValueError for anything but a positive whole number and a unit."""
        match = re.fullmatch(r"\s*([1-9][0-9]*)\s+minutes?\s*", text) if isinstance(text, str) else None
        if match:
            return cls(int(match[1]), "minutes")
        try:
            read = Duration.parse(text)
        except ValueError:
            what = "a positive whole number and a unit, such as '200 steps', '1 epoch' or '10 minutes'"
            raise ValueError(what) from None
        return cls(read.count, read.unit)

    @property
    def seconds(self) -> float | None:
        """The interval in seconds; None where it counts steps."""
        return self.count * 60.0 if self.unit == "minutes" else None
