from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as by_scheme
from seqeval.scheme import IOB2

from harness.metrics.entity_f1 import EntityF1
from harness.predictions import Tagged
from tests.metrics.tagged import TYPES, names_of, random_tagged, tagged


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    """seqeval warns of types without entities and divisions by zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sides(of: Tagged) -> tuple[list[list[str]], list[list[str]]]:
    return of.by_sentence(of.tags), of.by_sentence(of.predicted)


def against_seqeval(of: Tagged) -> None:
    found = EntityF1().compute(of)
    lenient = {average: precision_recall_fscore_support(*sides(of), average=average) for average in ("micro", "macro")}
    strict = {average: by_scheme(*sides(of), average=average, scheme=IOB2) for average in ("micro", "macro")}
    for i, name in enumerate(("precision", "recall", "f1")):
        assert found[f"entity_{name}"] == pytest.approx(lenient["micro"][i], abs=1e-12)
        assert found[f"entity_{name}_macro"] == pytest.approx(lenient["macro"][i], abs=1e-12)
        assert found[f"entity_{name}_strict"] == pytest.approx(strict["micro"][i], abs=1e-12)
    expected = np.nan_to_num(strict["macro"][2])  # of no types at all
    assert found["entity_f1_macro_strict"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(25))
def test_against_seqeval_on_random_malformed_tags(seed: int) -> None:
    of = random_tagged(seed)
    against_seqeval(of)
    found = EntityF1().compute(of)
    by_type = precision_recall_fscore_support(*sides(of), average=None)
    for i, name in enumerate(("precision", "recall", "f1")):
        for type, value in zip(sorted(TYPES), by_type[i], strict=True):
            suffix = "macro_2" if type == "macro" else type  # the average has that name
            assert found[f"entity_{name}_{suffix}"] == pytest.approx(value, abs=1e-12)


def test_against_seqeval_on_every_pair_of_short_sequences() -> None:
    """One type and two, sequences of two words."""
    for types, length in ((["A"], 2), (["A", "B"], 2)):
        every = [list(tags) for tags in itertools.product(names_of(types), repeat=length)]
        for gold, guess in itertools.product(every, every):
            if any(tag != "O" for tag in gold + guess):
                against_seqeval(tagged([gold], [guess], types))


def test_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    guess = [["B-PER", "I-PER", "O", "B-PER"], ["I-LOC", "O"]]
    found = EntityF1().compute(tagged(gold, guess, ["PER", "LOC"]))
    assert found["entity_f1"] == pytest.approx(2 / 3), "two of three, the I- at the start among them"
    assert found["entity_f1_strict"] == pytest.approx(2 * 1 / (3 + 2)), "which is no entity by the definition"
    assert (found["entity_precision_PER"], found["entity_recall_PER"]) == (0.5, 1.0)
    assert (found["entity_precision_LOC"], found["entity_recall_LOC"]) == (1.0, 0.5)


def test_nothing_to_find_and_nothing_found() -> None:
    found = EntityF1().compute(tagged([["O", "O"]], [["O", "O"]], ["PER"]))
    assert set(found.values()) == {0.0}


def test_keys_are_those_promised_and_fit_into_mlflow() -> None:
    types = ["a/b", "macro", "strict", "macro_strict", "é", "x" * 300, "<b>"]
    found = EntityF1().compute(random_tagged(0, types=types))
    assert set(EntityF1.produces) <= set(found)
    assert len(found) == len(EntityF1.produces) + 3 * len(types)
    assert all(re.fullmatch(r"[\w.\- ]{1,240}", key) and type(value) is float for key, value in found.items())


def test_files(tmp_path: Path) -> None:
    of = random_tagged(1)
    EntityF1().write(of, tmp_path)
    report, values = json.loads((tmp_path / "entity_report.json").read_text()), EntityF1().compute(of)
    assert (
        report["micro"]["f1"] == values["entity_f1"] and report["strict"]["micro"]["f1"] == values["entity_f1_strict"]
    )
    assert [one["type"] for one in report["types"]] == TYPES
    assert sum(one["support"] for one in report["types"]) == report["macro"]["support"]
    assert f"{values['entity_f1_PER']:.4f}" in (tmp_path / "entity_report.txt").read_text()
