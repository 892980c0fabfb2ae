"""How the keys of a study become axes: which are numbers, which are choices, where a value lies, what a tick says."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["log", "linear", "choice"]

_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0))
_LONGEST_TICK = 22


@dataclass(frozen=True)
class Axis:
    """One searched key."""

    key: str
    kind: Kind
    choices: tuple[str, ...] = ()
    """Labels of the values that occur, in order: numbers by size, then words; empty unless it is a choice."""
    numbers: tuple[float, ...] = ()
    """Values that occur, sorted, each once; empty if one of them is no number."""

    def place(self, value: Any) -> float:
        """Where a value lies on a line: its logarithm to base 10, itself, or the number of its choice."""
        if self.kind == "choice":
            return float(self.choices.index(label(value)))
        return math.log10(value) if self.kind == "log" else float(value)

    def ticks(self) -> dict[float, str]:
        """Place -> text: of every choice, or of round numbers from the lowest to the highest value."""
        if self.kind == "choice":
            return {float(place): short(text, _LONGEST_TICK) for place, text in enumerate(self.choices)}
        if self.kind == "log":
            return {math.log10(number): brief(number) for number in round_numbers(self.numbers[0], self.numbers[-1])}
        return {number: label(number) for number in round_steps(self.numbers[0], self.numbers[-1])}

    @property
    def ordered(self) -> bool:
        """Can a score be drawn over it as over a number?"""
        return len(self.numbers) > 1

    def as_number(self) -> Axis:
        """The same key on a number axis; choices that grow by factors rather than by steps get a logarithmic one."""
        if self.kind != "choice":
            return self
        low, middle, high = self.numbers[0], statistics.median(self.numbers), self.numbers[-1]
        by_factors = low > 0 and abs(middle - math.sqrt(low * high)) < abs(middle - (low + high) / 2)
        return Axis(self.key, "log" if by_factors else "linear", numbers=self.numbers)


def axis(key: str, scale: str, values: list[Any]) -> Axis:
    """The axis of a key with these values (one at least) under its scale, "log", "linear" or "choice".

    A scale that the values do not admit gives way: words are choices, and zero has no logarithm.
    """
    numbers = tuple(sorted({float(value) for value in values if is_number(value)}))
    words = {label(value) for value in values if not is_number(value)}
    known = () if words else numbers
    if scale == "choice" or words:
        counted = dict.fromkeys(label(value) for value in sorted(filter(is_number, values)))
        return Axis(key, "choice", choices=(*counted, *sorted(words - set(counted))), numbers=known)
    return Axis(key, "log" if scale == "log" and numbers[0] > 0 else "linear", numbers=known)


def is_number(value: Any) -> bool:
    """A finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label(value: Any) -> str:
    """A value as people write it in a spec: 8, 0.1, 3e-5, true, null, words as they are, [1, 2]."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.12g}".replace("e-0", "e-").replace("e+0", "e")
    return json.dumps(value, default=str)


def brief(value: Any) -> str:
    """The same with four digits of a number."""
    return label(float(f"{value:.4g}")) if isinstance(value, float) else label(value)


def short(text: str, length: int) -> str:
    """Text of at most this length; what is left out of its middle is an ellipsis."""
    kept = length - 1
    return text if len(text) <= length else f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


def round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, both positive; with threes, or twos and fives, where few; else the two ends."""
    for mantissas in _MANTISSAS:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [float(f"{one}e{decade}") for decade in decades for one in mantissas]
        found = [number for number in every if low <= number <= high]
        if len(found) >= 3:
            return found
    return sorted({low, high})


def round_steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten from low to high, three to nine of them; one number: itself."""
    power = math.floor(math.log10(high - low)) - 1 if high > low else 0
    for step in (float(f"{one}e{exponent}") for exponent in (power, power + 1) for one in (1, 2, 2.5, 5)):
        first, last = math.ceil(low / step), math.floor(high / step)
        if 3 <= last - first + 1 <= 9:
            return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
    return sorted({low, high})
