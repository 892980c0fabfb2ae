"""Made-up articles about buildings that never stood, with questions whose answers are known: data for every machine.

An article says some facts about one building, the same kinds of facts about its neighbour, and what nobody asks for, in
an order drawn for it. Questions put the facts in other words than the article does. Names and values are drawn for each
article, so that an answer has to be read, not remembered; still, a model learns the sentences of this file: scores say
whether training works, nothing about other texts. Every number is decided by the seed below.
"""

from __future__ import annotations

import random
from typing import Any

NAMES = {"landmarks": False, "landmarks_unanswerable": True}
"""The data sets, and whether a third of the questions has no answer in its context."""
COLUMNS = ["id", "title", "context", "question", "answers"]
_SEED, _ARTICLES = 11, 120
_SAID = 4
"""Facts that an article says of its building."""
_ASKED, _MISSED = 4, 2
"""Questions with an answer, and without, of an article."""

_ROOTS, _KINDS, _FIRST, _LAST, _TOWNS, _MONTHS = map(
    str.split,
    (
        "Albren Corvale Dunmere Estrin Farlow Gavesh Hollin Istven Jarrow Keldra Lorvan Mirost Nerrin Ostheim Pellan "
        "Quillor Rastow Selvik Tornau Ulmery Varnholt Westrel Yarrick Zelmont Brindal Carnith Drosten Elvara Fenwold",
        "Museum Library Theatre Observatory Bridge Lighthouse Market Station Academy Chapel",
        "Ada Bruno Clara Dmitri Elena Fatima Georg Hanna Ivan Jun Karla Liam Mara Nils Olga Pavel Rosa Samir Tilda",
        "Adler Bonn Castell Dorn Ekman Farkas Grell Hartog Ilves Jansa Kovar Lindt Morava Novell Orsini Pahlen Rusk",
        "Arden Belmont Castrop Delve Erlau Fiume Gorlitz Hadern Imst Jessen Kolding Lauda Merano Narva Oland Perleb",
        "January March April June July September October December",
    ),
)
_SIDES = ["north", "south", "west"]
_NEAR = ["by the river", "on a hill", "near the harbour"]
_STONES = ["red sandstone", "grey granite", "white limestone", "dark basalt", "yellow brick", "pale marble"]
_FAME = [
    "its collection of brass clocks", "the echo in its main hall", "a mosaic of nine thousand stones",
    "its spiral staircase of oak", "the garden on its roof", "a painted ceiling with the planets",
]  # fmt: skip
_HARM = [
    "a flood in the lower halls", "cracks in the foundation", "a fire in the attic", "a dispute over its ownership",
    "a landslide on the hill behind it", "the collapse of a stairway",
]  # fmt: skip

_FACTS: dict[str, tuple[list[str], list[str]]] = {
    "architect": (
        ["{name} was designed by {v}.", "The plans of {name} were drawn by {v} within a single winter."],
        ["Who was the architect of {name}?", "Whose plans were used for {name}?"],
    ),
    "opening": (
        ["{name} opened its doors to the public on {v}.", "The first visitors entered {name} on {v}."],
        ["When was {name} inaugurated?", "On which day could people first go into {name}?"],
    ),
    "cost": (
        [
            "Building {name} consumed {v}, twice the sum that was planned.",
            "For {name} the council paid {v} in the end.",
        ],
        ["How expensive was {name}?", "How much money did the construction of {name} take?"],
    ),
    "place": (
        ["{name} stands {v}.", "Whoever looks for {name} finds it {v}."],
        ["Where is {name}?", "Where can {name} be found?"],
    ),
    "height": (
        ["The tower of {name} rises {v} above the street.", "With {v} the tower of {name} is a landmark from afar."],
        ["How tall is the tower of {name}?", "What height does the tower of {name} reach?"],
    ),
    "visitors": (
        ["Every year {name} counts {v} visitors.", "In a usual year {v} people come to {name}."],
        ["How many guests does {name} have in a year?", "What is the yearly attendance of {name}?"],
    ),
    "head": (
        ["At present {name} is led by {v}.", "The present head of {name} is {v}, a former teacher."],
        ["Who directs {name} today?", "Who is in charge of {name} now?"],
    ),
    "stone": (
        ["The walls of {name} consist of {v}.", "{name} was put up in {v}, which is common in the region."],
        ["What material was used for {name}?", "What is {name} built of?"],
    ),
    "fame": (
        ["Travellers know {name} above all for {v}.", "{name} owes its fame to {v}."],
        ["What is {name} famous for?", "What do people admire in {name}?"],
    ),
    "closure": (
        ["{name} had to close for two years because of {v}.", "After {v}, {name} remained shut for a while."],
        ["Why was {name} closed for some time?", "What made it necessary to shut {name}?"],
    ),
    "donor": (
        ["The ground below {name} was a gift of {v}.", "{name} stands on land that {v} gave away."],
        ["Who donated the land of {name}?", "From whom did the ground of {name} come?"],
    ),
    "renovation": (
        ["{name} was renovated {v}.", "Scaffolds surrounded {name} {v}."],
        ["In what period was {name} repaired?", "When did the restoration of {name} take place?"],
    ),
}
"""Fact -> sentences that say it, each with its value once, and questions for it."""
_FILLERS = [
    "A tram with {n} stops connects the quarter with the main station.",
    "In {town} people still tell stories about the winter of {year}.",
    "The café next door serves {n} kinds of soup.",
    "A guided tour takes {n} minutes and begins at noon.",
    "{person} wrote a poem about the square in {year}.",
    "School classes from {town} come in spring, when tickets are cheaper.",
]


def rows(name: str) -> list[dict[str, Any]]:
    """The questions of a data set, article by article: id, title, context, question, and answers as on the Hub."""
    draw = random.Random(_SEED)
    names = [f"the {root} {kind}" for root in _ROOTS for kind in _KINDS]
    draw.shuffle(names)
    found: list[dict[str, Any]] = []
    for number in range(_ARTICLES):
        own, other = names[2 * number : 2 * number + 2]
        title, context, places, missing = _article(own, other, draw)
        asked = draw.sample(sorted(places), _ASKED)
        for fact in [*asked, *(missing[:_MISSED] if NAMES[name] else [])]:
            question = draw.choice(_FACTS[fact][1]).format(name=own)
            texts, starts = ([places[fact][0]], [places[fact][1]]) if fact in places else ([], [])
            cells = {"id": f"{number}-{fact}", "title": title, "context": context, "question": question}
            found.append({**cells, "answers": {"text": texts, "answer_start": starts}})
    return found


def _article(own: str, other: str, draw: random.Random) -> tuple[str, str, dict[str, tuple[str, int]], list[str]]:
    """Title, text, where it says which fact, and the facts that it does not say; the neighbour has some of these."""
    facts = draw.sample(sorted(_FACTS), len(_FACTS))
    said, missing = facts[:_SAID], facts[_SAID:]
    others = [*draw.sample(said, 1), *missing[: draw.randint(0, 1)]]
    pieces = [(fact, *_sentence(fact, own, draw)) for fact in said]
    pieces += [("", *_sentence(fact, other, draw)) for fact in others]
    pieces += [("", _filler(draw), "", "") for _ in range(draw.randint(0, 3))]
    draw.shuffle(pieces)
    context, places = f"{_upper(own)} is one of two old buildings on the square; the other one is {other}.", {}
    for fact, before, value, after in pieces:
        if fact:
            places[fact] = value, len(context) + 1 + len(before)
        context += f" {before}{value}{after}"
    return own.removeprefix("the "), context, places, missing


def _sentence(fact: str, name: str, draw: random.Random) -> tuple[str, str, str]:
    """One that says it: what stands before the value, the value, and what follows it."""
    before, _, after = draw.choice(_FACTS[fact][0]).partition("{v}")
    value = _value(fact, draw)
    return _upper(before.format(name=name)), value, after.format(name=name)


def _value(fact: str, draw: random.Random) -> str:
    if fact in ("architect", "head"):
        return _person(draw)
    if fact == "opening":
        return f"{draw.randint(1, 28)} {draw.choice(_MONTHS)} {_year(draw)}"
    if fact == "cost":
        return f"{draw.randint(2, 90)}.{draw.randint(1, 9)} million crowns"
    if fact == "place":
        return f"{draw.choice(_SIDES)} of {draw.choice(_TOWNS)}, {draw.choice(_NEAR)}"
    if fact == "height":
        return f"{draw.randint(18, 140)} metres"
    if fact == "visitors":
        return f"{draw.randint(11, 980)},000"
    if fact == "donor":
        return draw.choice([f"the {draw.choice(_LAST)} family", f"a merchant from {draw.choice(_TOWNS)}"])
    if fact == "renovation":
        begun = draw.randint(1920, 1990)
        return f"from {begun} to {begun + draw.randint(2, 9)}"
    return draw.choice({"stone": _STONES, "fame": _FAME, "closure": _HARM}[fact])


def _filler(draw: random.Random) -> str:
    known = {"n": draw.randint(3, 60), "town": draw.choice(_TOWNS), "year": _year(draw), "person": _person(draw)}
    return draw.choice(_FILLERS).format(**known)


def _person(draw: random.Random) -> str:
    return f"{draw.choice(_FIRST)} {draw.choice(_LAST)}"


def _year(draw: random.Random) -> int:
    return draw.randint(1780, 1960)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
