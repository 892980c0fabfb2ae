"""distinct-n and repetition by hand, and the files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness.metrics.generation import Generation, distinct, repetition
from tests.metrics.language_models import continued


def test_distinct_by_hand() -> None:
    """Seven tokens, four different; bigrams (1,2) (2,1) (1,2) | (3,4) (4,3), none from one text into the next."""
    texts = [[1, 2, 1, 2], [3, 4, 3]]
    assert distinct(texts, 1) == 4 / 7
    assert distinct(texts, 2) == 4 / 7
    assert distinct([[1, 2], [2, 3]], 2) == 2 / 4, "(2, 2) is no bigram of either"
    assert distinct([], 2) == distinct([[]], 1) == 0


def test_repetition_by_hand() -> None:
    """1 2 1 2 1 2: bigrams 12 21 12 21 12, three of five stood before; another text begins anew."""
    assert repetition([[1, 2, 1, 2, 1, 2]], 2) == 3 / 5
    assert repetition([[1, 2, 1, 2, 1, 2], [1, 2]], 2) == 3 / 6
    assert repetition([[5] * 10], 4) == 6 / 7
    assert repetition([[1, 2, 3]], 4) == 0


def test_it_is_pooled() -> None:
    found = Generation().compute(continued([[1, 2, 1, 2], [3, 4, 3]]))
    assert found == {"distinct_1": 4 / 7, "distinct_2": 4 / 7, "repetition": 0}
    assert Generation().compute(continued([])) == {"distinct_1": 0, "distinct_2": 0, "repetition": 0}


def test_coherence_is_the_mean_over_what_was_judged() -> None:
    made = continued([[1, 2], [3, 4], [5, 6]], 3.5)
    paragraphs = [dataclasses.replace(made.paragraphs[0], judged=1.5), made.paragraphs[1],
                  dataclasses.replace(made.paragraphs[2], judged=None)]  # fmt: skip
    found = Generation().compute(dataclasses.replace(made, paragraphs=paragraphs))
    assert (found["coherence"], found["coherence_reference"]) == (-2.5, -3.5)


def test_a_prompt_that_ends_inside_a_word_goes_on_in_it() -> None:
    made = continued([[1, 2]])
    inside = dataclasses.replace(made.paragraphs[0], prompt="The centre-left gover", text="nment has\nbeen")
    told = Generation().section(dataclasses.replace(made, paragraphs=[inside]))
    assert "**The centre-left gover**nment has been" in told
    marked = dataclasses.replace(made.paragraphs[0], prompt='"He said: ', text="*no* <b>_x_</b>\\ & **")
    told = Generation().section(dataclasses.replace(made, paragraphs=[marked]))
    assert told.endswith(r'**"He said**: \*no\* \<b\>\_x\_\</b\>\\ \& \*\*')


@pytest.mark.parametrize("judged", [None, 3.5])
def test_paragraphs_are_written_for_people_and_programs(judged: float | None, tmp_path: Path) -> None:
    Generation().write(continued([[1, 2, 1, 2], [3, 4, 3]], judged), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "paragraphs.json", "paragraphs.md", "paragraphs.html", "paragraphs.png",
    }  # fmt: skip
    rows = json.loads((tmp_path / "paragraphs.json").read_text())
    assert rows[0]["perplexity"] == pytest.approx(2.718281828**2)
    assert rows[1]["coherence"] == (None if judged is None else -3.5)
    told = (tmp_path / "paragraphs.md").read_text()
    assert "**It began** and | went on 1" in told
    assert ("nobody judged these" in told) == (judged is None)
    assert ("| coherence | true text |" in told) == (judged is not None)


def test_the_card_has_them() -> None:
    assert Generation().section(continued([[1, 2]])).startswith("## What it writes\n")
    assert Generation().section(continued([])) == ""
