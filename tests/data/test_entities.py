from __future__ import annotations

import itertools
import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from harness.data.entities import Entity, as_bio, is_tag, lenient, strict, word_places

TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]


def reference_strict(tags: list[str]) -> list[Entity]:
    (found,) = Entities([tags], IOB2).entities
    return [Entity(one.tag, one.start, one.end) for one in found]


def reference_lenient(tags: list[str]) -> list[Entity]:
    return [Entity(type, start, last + 1) for type, start, last in get_entities(tags)]


@pytest.mark.parametrize("length", range(1, 6))
def test_both_readings_are_those_of_seqeval_for_every_sequence(length: int) -> None:
    for tags in map(list, itertools.product(TAGS, repeat=length)):
        assert lenient(tags) == reference_lenient(tags), tags
        assert strict(tags) == reference_strict(tags), tags


def test_both_readings_are_those_of_seqeval_for_long_sequences_of_many_types() -> None:
    draw = random.Random(0)
    tags = ["O", *(f"{letter}-{type}" for letter in "BI" for type in ("PER", "LOC", "a-b", "X Y"))]
    for _ in range(300):
        sentence = draw.choices(tags, k=draw.randrange(1, 60))
        assert lenient(sentence) == reference_lenient(sentence)
        assert strict(sentence) == reference_strict(sentence)


def test_nothing_is_in_no_words() -> None:
    assert lenient([]) == strict([]) == []


@pytest.mark.parametrize(
    ("scheme", "tags", "bio"),
    [
        ("BIO stays", "B-A I-A O B-B B-B", "B-A I-A O B-B B-B"),
        ("IO", "I-A I-A O I-B", "B-A I-A O B-B"),
        ("IOB1", "I-A I-A B-A I-A I-B O", "B-A I-A B-A I-A B-B O"),
        ("BIOES", "S-A O B-B I-B E-B B-A E-A", "B-A O B-B I-B I-B B-A I-A"),
        ("BILOU", "U-A O B-B I-B L-B", "B-A O B-B I-B I-B"),
        ("broken", "I-A I-B E-A O L-A", "B-A B-B B-A O B-A"),
    ],
)
def test_other_schemes_become_bio(scheme: str, tags: str, bio: str) -> None:
    assert as_bio(tags.split()) == tuple(bio.split())
    assert as_bio(bio.split()) == tuple(bio.split())


def test_well_formed_bioes_keeps_its_entities() -> None:
    draw, checked = random.Random(1), 0
    for _ in range(6000):
        tags = draw.choices(["O", *(f"{letter}-{type}" for letter in "BIES" for type in "AB")], k=4)
        (found,) = Entities([tags], IOBES).entities
        if sum(one.end - one.start for one in found) == sum(tag != "O" for tag in tags):
            checked += 1
            assert strict(as_bio(tags)) == [Entity(one.tag, one.start, one.end) for one in found]
    assert checked > 50


@pytest.mark.parametrize("tag", ["", "PER", "B", "B-", "b-PER", "X-PER", "B_PER", "o", "3", "I- "])
def test_what_is_no_tag(tag: str) -> None:
    assert not is_tag(tag)


def test_words_are_found_in_their_text() -> None:
    assert word_places("a b,  a", ["a", "b", ",", "a"]) == [(0, 1), (2, 3), (3, 4), (6, 7)]
