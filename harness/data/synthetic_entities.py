"""`builtin:ner`: made sentences in which every entity is known. Names that mean several things are told apart by what
stands around them (May is a month, a woman, and a verb; Jordan signs a contract, or closes its border), and half of all
names are invented on the spot: a list of the names in train does not solve the rest.

Made of patterns: good to see whether an engine and a method work and what noise in the labels does, no measure of
language as people write it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from harness.data.conll import COLUMNS
from harness.settings import Settings

_Rows = Annotated[int, Field(ge=20, le=1_000_000)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Sentences(Settings):
    """What `builtin:ner` is made of."""

    train: _Rows = 1500
    """Sentences to learn from."""
    validation: _Rows = 300
    """Sentences that choose the checkpoint."""
    test: _Rows = 600
    """Sentences to be judged on."""
    types: list[Literal["PER", "LOC", "ORG", "DATE", "MONEY", "EVENT"]] = Field(
        default=["PER", "LOC", "ORG", "DATE"], min_length=1
    )
    """Which kinds of entities are tagged; those of the others stand in the sentences as ordinary words."""
    tag_noise: _Share = 0.0
    """Share of the entities of train with a wrong tag: missed, of another type, or with a wrong end. Validation and
    test stay right."""
    typos: _Share = 0.0
    """Share of the words of four letters or more, in all splits, with two letters swapped, one doubled or one lost."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Draws the sentences."""

    @field_validator("types")
    @classmethod
    def _distinct(cls, types: list[str]) -> list[str]:
        if len(set(types)) < len(types):
            raise ValueError("types are distinct")
        return types


@dataclass(frozen=True)
class _Span:
    """Words `start` up to `end` are one entity."""

    type: str
    start: int
    end: int


def make(sentences: Sentences, part: str) -> list[tuple[str, dict[str, Any]]]:
    """The sentences of `train`, `validation` or `test`: where each stands, and its cells. No sentence stands twice."""
    seen: set[str] = set()
    for name in ("train", "validation", "test"):
        rows = _part(sentences, name, seen)
        if name == part:
            return rows
    raise ValueError(part)


def _part(of: Sentences, part: str, seen: set[str]) -> list[tuple[str, dict[str, Any]]]:
    # Noise has generators of its own: with it and without it, train has the same sentences.
    draw, noise, typing = (random.Random(f"{of.seed} {part} {use}") for use in ("sentences", "tags", "typos"))
    rows: list[tuple[str, dict[str, Any]]] = []
    while len(rows) < getattr(of, part):
        words, spans = _sentence(draw)
        if (text := " ".join(words).casefold()) in seen:
            continue
        seen.add(text)
        spans = [span for span in spans if span.type in of.types]
        if part == "train":
            spans = [wrong for span in spans for wrong in _mistaken(span, spans, len(words), of, noise)]
        words = [_mistyped(word, typing) if typing.random() < of.typos else word for word in words]
        cells = dict(zip(COLUMNS, (words, _tags(len(words), spans)), strict=True))
        rows.append((f"builtin:ner, {part} {len(rows) + 1}", cells))
    return rows


def _tags(length: int, spans: list[_Span]) -> list[str]:
    tags = ["O"] * length
    for span in spans:
        tags[span.start : span.end] = [f"B-{span.type}"] + [f"I-{span.type}"] * (span.end - span.start - 1)
    return tags


def _mistaken(span: _Span, spans: list[_Span], length: int, of: Sentences, noise: random.Random) -> list[_Span]:
    """The entity as it is, or with a share of `tag_noise` as somebody tagged it who was wrong."""
    is_wrong, kind, other = noise.random() < of.tag_noise, noise.randrange(3), noise.random()
    if not is_wrong:
        return [span]
    others = [name for name in of.types if name != span.type]
    if kind == 0 and others:
        return [_Span(others[int(other * len(others))], span.start, span.end)]
    if kind == 1 and span.end - span.start > 1:
        return [_Span(span.type, span.start, span.end - 1)]
    is_free = span.end < length - 1 and all(one.start != span.end for one in spans)
    return [_Span(span.type, span.start, span.end + 1)] if kind == 1 and is_free else []


def _mistyped(word: str, typing: random.Random) -> str:
    if len(word) < 4 or not word.isalpha():
        return word
    at = typing.randrange(1, len(word) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return typing.choice([swapped, word[:at] + word[at : at + 1] + word[at:], word[:at] + word[at + 1 :]])


# ------------------------------------------------------------------------------------------------------------ sentences


def _sentence(draw: random.Random) -> tuple[list[str], list[_Span]]:
    """Words, and where the entities of all types are."""
    pattern = draw.choice(_PLAIN if draw.random() < 0.12 else _CLAUSES)
    if draw.random() < 0.3:
        pattern = f"{draw.choice(_OPENINGS)} {pattern}"
    if draw.random() < 0.4:
        pattern = f"{pattern} {draw.choice(_ENDINGS)}"
    pattern = re.sub(r"\[([^\]]+)\]", lambda found: draw.choice(found[1].split("|")), f"{pattern} .")
    words: list[str] = []
    spans: list[_Span] = []
    for piece in pattern.split():
        if piece in _NAMES:
            name = _NAMES[piece](draw).split()
            spans.append(_Span(piece, len(words), len(words) + len(name)))
            words += name
        else:
            words.append(piece)
    words[0] = words[0][0].upper() + words[0][1:]
    return words, spans


def _invented(draw: random.Random) -> str:
    """A name that nothing is called so far; it does not tell of what kind."""
    middle = draw.choice(_SYLLABLES) if draw.random() < 0.8 else ""
    return f"{draw.choice(_SYLLABLES)}{middle}{draw.choice(_LAST_SYLLABLES)}".capitalize()


def _one_of(draw: random.Random, known: tuple[str, ...]) -> str:
    return draw.choice(known) if draw.random() < 0.5 else _invented(draw)


def _person(draw: random.Random) -> str:
    first, last = _one_of(draw, _FIRST), _one_of(draw, _LAST)
    initial = f"{draw.choice('ABCDEFGHJKLMNPRSTVW')}."
    whole = f"{first} {last}"
    return draw.choice([whole, whole, first, last, f"{initial} {last}", f"{first} {initial} {last}"])


def _place(draw: random.Random) -> str:
    name = _one_of(draw, _PLACES)
    forms = [f"New {name}", f"Mount {name}", f"{name} Valley", f"{name} Bay", f"Port {name}", f"North {name}"]
    return draw.choice(forms) if draw.random() < 0.25 else name


def _organisation(draw: random.Random) -> str:
    name, city = _one_of(draw, _FIRMS), _one_of(draw, _PLACES)
    forms = [
        f"{name} Inc.", f"{name} Airlines", f"{name} & Sons", f"Bank of {city}", f"University of {city}",
        f"{city} City Council", f"{name} Motors", f"Museum of {city}", f"{_one_of(draw, _LAST)} and {name}",
    ]  # fmt: skip
    return draw.choice(forms) if draw.random() < 0.6 else name


def _date(draw: random.Random) -> str:
    day, month, year = draw.randrange(1, 29), draw.choice(_MONTHS), draw.randrange(1890, 2025)
    forms = [
        f"{day} {month} {year}", f"{month} {day}", f"{month} {year}", f"{month} {day} , {year}", month, str(year),
        draw.choice(_DAYS), f"the {draw.choice(('summer', 'winter', 'spring', 'autumn'))} of {year}",
        f"{day}/{draw.randrange(1, 13)}/{year}",
    ]  # fmt: skip
    return draw.choice(forms)


def _money(draw: random.Random) -> str:
    amount = draw.randrange(2, 990)
    forms = [f"$ {amount}", f"$ {amount} million", f"{amount} euros", f"{amount} thousand dollars", f"{amount} pounds"]
    return draw.choice(forms)


def _event(draw: random.Random) -> str:
    forms = ["{} Film Festival", "{} Open", "{} Summit", "{} Marathon", "Battle of {}", "World Congress of {}"]
    return draw.choice(forms).format(_one_of(draw, _PLACES))


def _split(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_NAMES: dict[str, Callable[[random.Random], str]] = {
    "PER": _person, "LOC": _place, "ORG": _organisation, "DATE": _date, "MONEY": _money, "EVENT": _event,
}  # fmt: skip
_FIRST = _split(
    "May April June Rose Grant Mark Will Bill Hope Jordan Paris Georgia Florence Victoria Charlotte Sydney Austin "
    "Chelsea Virginia Anna Boris Carla Dmitri Elena Farid Greta Hassan Ines Jonas Keiko Luis Maria Nadia Omar Priya "
    "Quentin Rosa Samuel Tanja Umberto Vera Wei Yusuf Zoe"
)
_LAST = _split(
    "Washington Lincoln Paris London Houston Ford Chase Wells Berg Okafor Silva Novak Tanaka Haddad Moreau Schmidt "
    "Rossi Jensen Kowalski Nguyen Castro Brown Young Price Banks Rivers Hill March Winter Day"
)
_PLACES = _split(
    "Jordan Paris Georgia Florence Victoria Charlotte Sydney Austin Chelsea Virginia Washington Lincoln Houston London "
    "Berlin Cairo Lagos Lima Oslo Quito Seoul Turin Vienna Warsaw Kyoto Nairobi Peru Chad Turkey Brazil Norway "
    "Kenya Bath Reading Nice Split Mobile"
)
_FIRMS = _split(
    "Amazon Apple Shell Target Orange Gap Ford Chase Wells Visa Oracle Alphabet Sprint Caterpillar Chelsea Arsenal "
    "Siemens Toyota Nestle Unilever Bosch Philips Reuters Lufthansa Samsung Nokia"
)
_MONTHS = _split("January February March April May June July August September October November December")
_DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_SYLLABLES = _split(
    "bra cor dal fen gil har jor kal lem mar nov ost pel quin rav sel tor ul ven wes yar zan bel cas dro eld fro gru "
    "hol ist kor lun mir nel or pra ru sta thal vor"
)
_LAST_SYLLABLES = _split("a dor field gate ia ick in ith land ley mond ner o ova ra rin ston tan ton um vik way")
_OPENINGS = (
    "on DATE ,", "in LOC ,", "since DATE ,", "yesterday ,", "after a long debate ,", "according to the report ,",
    "before the EVENT ,", "for MONEY ,", "as expected ,", "not far from LOC ,",
)  # fmt: skip
_ENDINGS = (
    "in LOC", "on DATE", "near LOC", "until DATE", "last week", "without a word", "for MONEY", "during the EVENT",
    "in front of a large crowd", "on the way to LOC", "in spite of the rain", "since DATE",
)  # fmt: skip
_CLAUSES = (
    "PER [smiled|laughed|wept|shrugged|fell asleep|stood up]",
    "PER was born in LOC on DATE",
    "PER , who was born in LOC , [married|kissed|divorced] PER",
    "PER [married|kissed|hugged|adores] PER",
    "[her husband|his wife|his brother|her sister|their teacher] PER [died|retired|arrived|was born] on DATE",
    "[Dr.|Mrs.|Mr.|Professor] PER [thanked|greeted|consoled] [Dr.|Mrs.|Mr.] PER",
    "the [singer|poet|nurse|actor|painter|judge] PER [moved|travelled|returned|flew] to LOC",
    "PER [wrote|painted|composed] it [as a child|alone|in tears]",
    "PER and her [daughter|son|mother] PER [live|slept|had dinner] in LOC",
    "PER resigned as [chief executive|chairman|director] of ORG on DATE",
    "PER has worked for ORG since DATE",
    "[shares of|shares in|stock of] ORG [fell|rose|closed] by [two|three|seven|nine] percent on DATE",
    "ORG [acquired|bought|took over] its [rival|competitor|supplier] ORG for MONEY",
    "ORG [reported|announced|posted] a [quarterly|yearly|record] [loss|profit] of MONEY",
    "ORG hired PER as [an accountant|a lawyer|an engineer]",
    "the [board|shareholders|management|employees] of ORG [met|voted|went on strike] on DATE",
    "ORG , the [maker|seller|manufacturer] of [cars|phones|shoes|toys] , [opened a branch|closed a plant] in LOC",
    "a [spokesman|spokeswoman|lawyer|founder] for ORG declined to comment",
    "the [mayor|inhabitants|streets|suburbs|airport|capital|climate] of LOC [changed|grew|suffered] a lot",
    "the [train|flight|ferry|road] from LOC to LOC [was delayed|was cancelled|takes nine hours]",
    "[heavy rain|snow|an earthquake|a drought] [hit|struck|reached] LOC on DATE",
    "the border between LOC and LOC was [closed|opened|moved] in DATE",
    "they [spent their holidays|bought a cottage|met again|got lost] in LOC",
    "the [river|railway|desert|coast] near LOC is [dry|long|beautiful]",
    "tourists from LOC , LOC and LOC [filled|left|praised] the [beaches|hotels|museums] of LOC",
    "the [treaty|law|contract] was signed on DATE by PER",
    "it has been [closed|empty|quiet|open] since DATE",
    "[the exhibition|the trial|the course|the season] [begins|ends|starts] on DATE",
    "between DATE and DATE [nothing happened|prices doubled|she lived abroad]",
    "the EVENT [attracted|disappointed|surprised] [thousands|everybody|the press]",
    "PER won the EVENT [twice|easily|with luck]",
    "ORG sponsored the EVENT in LOC with MONEY",
    "[the ticket|a new roof|the painting] cost MONEY",
    "PER [lost|owes her|earned|inherited] MONEY in DATE",
    "ORG [sued|fired|promoted] its [manager|adviser|driver] PER",
    "[students|graduates|researchers] at ORG [protested|celebrated] on DATE",
)
_PLAIN = (
    "they may march through the old town",
    "[she|he|the guest] will [bill|mark|target] every [apple|orange|rose] by hand",
    "there is hope that the [grant|visa|price] may be paid",
    "the [shell|turkey|caterpillar|orange] was [nice|young|brown|cold]",
    "the shop sold [1950|1987|2004|1912] [apples|lamps|tickets]",
    "we will sprint up the hill at [dawn|noon|night]",
    "the oracle spoke of a hard winter and a [nice|late|wet] spring",
    "reading in the bath is [nice|bad for books|an old habit]",
    "the banks of the rivers rose by [two|three|seven] metres",
    "a young [man|woman|dog] may split the [price|bread] and chase the [ball|bus]",
    "a mobile phone fell through the gap in the [floor|fence]",
    "the alphabet has [many|few|twenty-six] letters",
    "[nobody|everybody|the whole village] [waited|sang|complained] at the [gate|ford|wells]",
    "it was a day like any other",
)
