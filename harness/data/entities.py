"""Tags of words and the entities they mean. A tag is `O`, or `B-` (begins) or `I-` (goes on) and a type.

Of other schemes BIOES (`E-` ends, `S-` single) and BILOU (`L-` last, `U-` unit) say the same in more letters. IO, and
the IOB1 of CoNLL-2003, begin an entity with `I-` where no other of its type stands directly before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_AS_BIO = {"B": "B", "I": "I", "E": "I", "S": "B", "L": "I", "U": "B"}


class Entity(NamedTuple):
    """Words `start` up to, and without, `end` of a sentence."""

    type: str
    start: int
    end: int


Reading = Callable[[Sequence[str]], list[Entity]]
"""Which entities the tags of one sentence mean."""


def is_tag(tag: str) -> bool:
    """Whether it is `O`, or a letter of a known scheme and a type."""
    return tag == OUTSIDE or (tag[1:2] == "-" and tag[0] in _AS_BIO and bool(tag[2:].strip()))


def kind(tag: str) -> str:
    """The type of a tag; of `O` the empty string."""
    return tag[2:]


def as_bio(tags: Iterable[str]) -> tuple[str, ...]:
    """The same entities in BIO: no `I-` without a word of its type before it, no `E- S- L- U-`."""
    found: list[str] = []
    for tag in tags:
        letter = _AS_BIO.get(tag[0], OUTSIDE) if tag != OUTSIDE else OUTSIDE
        if letter == "I" and kind(found[-1] if found else OUTSIDE) != kind(tag):
            letter = "B"
        found.append(OUTSIDE if letter == OUTSIDE else f"{letter}-{kind(tag)}")
    return tuple(found)


def lenient(tags: Sequence[str]) -> list[Entity]:
    """Entities as `conlleval` reads BIO tags: an `I-` without a word of its type before it begins one.

    Source: Tjong Kim Sang and De Meulder 2003 (CoNLL shared task); seqeval's default mode is the same.
    """
    return strict(as_bio(tags))


def strict(tags: Sequence[str]) -> list[Entity]:
    """Entities of IOB2 as it is defined: only a `B-` begins one, and the `I-` of its type that follow belong to it."""
    found: list[Entity] = []
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append(Entity(kind(tag), place, place + 1))
        elif tag.startswith("I-") and found and found[-1].end == place and found[-1].type == kind(tag):
            found[-1] = found[-1]._replace(end=place + 1)
    return found


def word_places(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each word stands in the text that it is from: first character, and the one after the last."""
    found, end = [], 0
    for word in words:
        start = text.index(word, end)
        end = start + len(word)
        found.append((start, end))
    return found
