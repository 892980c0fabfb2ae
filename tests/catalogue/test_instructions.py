"""The built-in instructions: the same for everyone, right by another computation, and alone in their split."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from datetime import datetime

import pytest

from harness.catalogue import instructions
from harness.catalogue.instructions import Pair
from harness.data import dataset
from harness.data.dataset import Data, Splits
from harness.data.labelling import Completions
from harness.errors import DataError


@pytest.fixture(scope="module")
def splits() -> Splits:
    return dataset.load(Data(name="builtin:instructions", text="prompt", label="completion"), Completions())


def answer(pair: Pair) -> str:
    """Read from the prompt alone."""
    _, _, given = pair.prompt.partition(": ")
    given = given or pair.prompt.partition("? ")[2]
    listed = re.split(r",? ", given)
    if pair.kind == "reverse":
        return " ".join(listed[::-1])
    if pair.kind == "sort":
        return ", ".join(sorted(listed))
    if pair.kind == "initials":
        return re.sub(r"(\w)\w*", lambda found: found[1].upper(), given)
    if pair.kind == "date":
        form = "%B %d, %Y" if "," in given else "%d %B %Y"
        return datetime.strptime(given, form).date().isoformat()
    record = {
        "name": listed[0], "age": int(re.findall(r"\d+", given)[0]),
        "city": re.findall(r"lives in (\w+)", given)[0], "job": re.findall(r"(?:is|works as) a (\w+)", given)[0],
    }  # fmt: skip
    if pair.kind == "field":
        (wanted,) = re.findall(r"(?:Which|Find the) (\w+)", pair.prompt)
        return f"{wanted} = {record[wanted]}"
    return json.dumps(record) if pair.kind == "json" else ",".join(str(value) for value in record.values())


def test_every_completion_is_the_answer_in_the_house_format() -> None:
    for pair in instructions.pairs():
        assert pair.completion == f"{pair.kind} | {answer(pair)}"
        if pair.kind == "json":
            assert set(json.loads(pair.completion.partition(" | ")[2])) == {"name", "age", "city", "job"}
        if pair.kind == "csv":
            assert len(next(csv.reader([pair.completion]))) == 4


def test_they_are_the_same_for_the_same_seed_and_of_all_kinds() -> None:
    made = instructions.pairs()
    assert made == instructions.pairs()
    assert made[:50] == instructions.pairs(50)
    assert made != instructions.pairs(seed=1)
    counts = Counter(pair.kind for pair in made)
    assert set(counts) == set(instructions.KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(made) == instructions.NUMBER == 500


def about(prompt: str) -> tuple[str, ...]:
    """What an instruction is about, without its wording and in no order."""
    given = prompt.partition(": ")[2] or prompt.partition("? ")[2]
    fixed = {"is", "a", "of", "years", "old", "who", "lives", "in", "and", "works", "as"}
    return tuple(sorted(set(re.findall(r"\w+", given)) - fixed))


def test_no_two_are_about_the_same_so_that_no_split_shares_it(splits: Splits) -> None:
    prompts = [example.text for split in (splits.train, splits.validation, splits.test) for example in split.examples]
    assert len(prompts) == 500
    assert len({about(prompt) for prompt in prompts}) == 500
    assert splits.report["splits"]["test"]["in_train"] == {"exact": 0, "normalised": 0}
    kinds = {name: Counter(e.label.split(" | ")[0] for e in split.examples) for name, split in
             (("train", splits.train), ("test", splits.test))}  # fmt: skip
    assert set(kinds["train"]) == set(kinds["test"]) == set(instructions.KINDS)


def test_columns_it_has_not_are_told() -> None:
    with pytest.raises(DataError, match=r"no column is called 'text'\n  why: columns: prompt, completion, kind"):
        dataset.load(Data(name="builtin:instructions", text="text", label="completion"), Completions())
    with pytest.raises(DataError, match="instructions"):
        dataset.load(Data(name="builtin:instruction", text="prompt", label="completion"), Completions())
