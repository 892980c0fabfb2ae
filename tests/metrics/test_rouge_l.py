"""ROUGE-L: against Google's rouge-score on ASCII, the definition by enumeration, and where the two differ knowingly."""

from __future__ import annotations

import itertools
import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.metrics.rouge_l import RougeL, longest_common_subsequence, rouge_l, words
from harness.predictions import Completed
from tests.metrics.samples import completed

SHORT = st.lists(st.sampled_from("abc"), max_size=6)


@settings(deadline=None)
@given(SHORT, SHORT)
def test_the_longest_common_subsequence_is_the_longest_of_all(one: list[str], other: list[str]) -> None:
    def subsequences(of: list[str]) -> set[tuple[str, ...]]:
        return {kept for n in range(len(of) + 1) for kept in itertools.combinations(of, n)}

    assert longest_common_subsequence(one, other) == max(map(len, subsequences(one) & subsequences(other)))


def test_against_googles_rouge_score_on_ascii() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, draw = RougeScorer(["rougeL"], use_stemmer=False), random.Random(0)
    alphabet = string.ascii_letters + string.digits + string.punctuation + "   \n\t"
    cases = [
        ("The cat sat on the mat.", "the cat lay on a Mat"),
        ("", "word"),
        ("word", ""),
        ("...", "x"),
        ("a_b", "a b"),
    ]
    cases += [tuple("".join(draw.choices(alphabet, k=draw.randint(0, 60))) for _ in "ab") for _ in range(100)]  # type: ignore[misc]
    some = ["red", "green", "blue", "lamp", "river"]
    cases += [tuple(" ".join(draw.choices(some, k=draw.randint(1, 9))) for _ in "ab") for _ in range(200)]  # type: ignore[misc]
    for generated, reference in cases:
        expected = scorer.score(reference, generated)["rougeL"].fmeasure
        assert rouge_l(generated, reference) == pytest.approx(expected, abs=1e-12), (generated, reference)


def test_by_hand() -> None:
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)  # Lin 2004, S1 and S2
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(1 / 2)  # and S3
    assert rouge_l("a b c d", "b d") == pytest.approx(2 * 2 / (4 + 2))


def test_words_of_other_scripts_stay_whole() -> None:
    assert words("España, MAÑANA!") == ["españa", "mañana"]
    assert words("Espan\u0303a") == words("España"), "composed or not"
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert rouge_l("España", "Espana") == 0.0
    from rouge_score.rouge_scorer import RougeScorer

    assert RougeScorer(["rougeL"]).score("España", "Espana")["rougeL"].fmeasure == 0.0
    assert RougeScorer(["rougeL"]).score("señal", "se al")["rougeL"].fmeasure == 1.0, "it cuts at the accent"
    assert rouge_l("se al", "señal") == 0.0


def test_the_mean_is_over_what_was_generated() -> None:
    predictions = completed(["a b", None, "x"], ["a b", "c", "y"])
    assert RougeL().compute(predictions) == {"rouge_l": 0.5}
    parts = [completed(["a b"], ["a b"]), completed([None, "x"], ["c", "y"])]
    assert RougeL().compute(parts[0].joined(parts[1:])) == {"rouge_l": 0.5}
    nothing = Completed(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), [], [], [])
    assert RougeL().compute(nothing) == {"rouge_l": 0.0}
