"""Pairs of an instruction and its answer whose truth is known, made from a seed: `builtin:instructions`.

Seven kinds of small tasks on made-up records and words. Every answer has a house format that no model has read: the
name of the kind, a bar, then the answer, as in `reverse | lamp green old`. What an instruction is about stands in one
pair only, in whatever order or wording, so that no split shares it with another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

NUMBER = 500


def _listed(text: str) -> list[str]:
    return text.split()


_NAMES = _listed(
    "Ada Ben Clara David Elena Felix Greta Hugo Ines Jonas Kira Lars Mona Nils Olga Paul Rosa Sven Tara Vera Wim Zoe"
)
_CITIES = _listed(
    "Lisbon Oslo Vienna Prague Dublin Athens Madrid Warsaw Berlin Turin Porto Ghent Lyon Malmo Basel Krakow Riga Bonn"
)
_JOBS = _listed("baker nurse pilot farmer painter lawyer driver teacher waiter tailor singer doctor gardener")
_WORDS = _listed(
    "apple river stone green window paper silver garden market yellow candle bridge winter coffee orange pencil ladder "
    "mirror basket summer forest button carpet dinner engine flower hammer island jacket kitchen lemon magnet needle "
    "ocean pepper quiet rabbit saddle table umbrella valley wagon bottle camera desert eagle finger guitar helmet"
)
_MONTHS = _listed("January February March April May June July August September October November December")


@dataclass(frozen=True)
class Pair:
    """An instruction, its one right answer, and which kind of task it is."""

    kind: str
    prompt: str
    completion: str


def pairs(number: int = NUMBER, seed: int = 0) -> list[Pair]:
    """So many pairs, the kinds in turn; the same for the same arguments, each about something else."""
    draw, made, seen = random.Random(seed), list[Pair](), set[str]()
    while len(made) < number:
        kind = list(_KINDS)[len(made) % len(_KINDS)]
        about, prompt, answer = _KINDS[kind](draw)
        if about not in seen:
            seen.add(about)
            made.append(Pair(kind, prompt, f"{kind} | {answer}"))
    return made


_Made = tuple[str, str, str]
"""What it is about, in an order of its own; the instruction; the answer."""


def _reverse(draw: random.Random) -> _Made:
    words = draw.sample(_WORDS, draw.randint(3, 5))
    ask = draw.choice(["Write these words in reverse order: {}", "Turn the order of the words around: {}"])
    return " ".join(sorted(words)), ask.format(" ".join(words)), " ".join(reversed(words))


def _sort(draw: random.Random) -> _Made:
    words = draw.sample(_WORDS, draw.randint(3, 5))
    ask = draw.choice(["Sort these words by the alphabet: {}", "Put the words into alphabetical order: {}"])
    return " ".join(sorted(words)), ask.format(", ".join(words)), ", ".join(sorted(words))


def _date(draw: random.Random) -> _Made:
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1950, 2030)
    told = draw.choice([f"{day} {_MONTHS[month - 1]} {year}", f"{_MONTHS[month - 1]} {day}, {year}"])
    ask = draw.choice(["Write this date in the short form: {}", "Convert the date: {}"])
    answer = f"{year}-{month:02}-{day:02}"
    return answer, ask.format(told), answer


def _record(draw: random.Random) -> dict[str, str | int]:
    given = draw.choice(_NAMES), draw.randint(19, 79), draw.choice(_CITIES), draw.choice(_JOBS)
    return dict(zip(("name", "age", "city", "job"), given, strict=True))


def _sentence(record: dict[str, str | int], draw: random.Random) -> str:
    told = draw.choice([
        "{name} is a {job} of {age} years who lives in {city}.",
        "{name}, {age} years old, lives in {city} and works as a {job}.",
    ])  # fmt: skip
    return told.format(**record)


def _field(draw: random.Random) -> _Made:
    record = _record(draw)
    wanted = draw.choice(list(record))
    ask = draw.choice(["Which {} is told here? {}", "Find the {} in this text: {}"])
    return str(record), ask.format(wanted, _sentence(record, draw)), f"{wanted} = {record[wanted]}"


def _json(draw: random.Random) -> _Made:
    record = _record(draw)
    ask = draw.choice(["Give this as JSON: {}", "Turn the text into a JSON object: {}"])
    return str(record), ask.format(_sentence(record, draw)), json.dumps(record)


def _csv(draw: random.Random) -> _Made:
    record = _record(draw)
    ask = draw.choice(["Give this as a line of CSV: {}", "Turn the text into comma-separated values: {}"])
    return str(record), ask.format(_sentence(record, draw)), ",".join(map(str, record.values()))


def _initials(draw: random.Random) -> _Made:
    words = draw.sample(_WORDS, draw.randint(3, 5))
    ask = draw.choice(["Write the first letter of each word: {}", "Make initials of these words: {}"])
    return " ".join(sorted(words)), ask.format(" ".join(words)), " ".join(word[0].upper() for word in words)


_KINDS: dict[str, Callable[[random.Random], _Made]] = {
    "reverse": _reverse,
    "date": _date,
    "field": _field,
    "json": _json,
    "sort": _sort,
    "csv": _csv,
    "initials": _initials,
}
KINDS = tuple(_KINDS)
