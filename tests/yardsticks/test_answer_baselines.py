"""Yardsticks for spans: what each answers, by hand, and that all are scored on the whole test split."""

from __future__ import annotations

import pytest

from harness.data.dataset import Data, Example, load
from harness.extraction.answers import NO_ANSWER, Answers
from harness.yardsticks import answer_baselines

CONTEXT = (
    "Ada Lovelace lived in London. The bridge of Narva cost 4.2 million, and Bob Stone built it in 1900. It rained."
)


def example(question: str, context: str = CONTEXT) -> Example:
    return Example("1", question, context, (("1900", context.find("1900")),))


def test_the_sentence_with_most_words_of_the_question() -> None:
    sentence = answer_baselines.similar_sentence(example("What did the bridge of Narva cost?"))
    assert sentence == "The bridge of Narva cost 4.2 million, and Bob Stone built it in 1900."
    assert answer_baselines.similar_sentence(example("Xyz?")) == "Ada Lovelace lived in London.", "the first of equals"
    assert answer_baselines.similar_sentence(example("Xyz?", "no end")) == "no end"


def test_names_and_numbers_in_it_that_the_question_does_not_name() -> None:
    assert answer_baselines.longest_name(example("Who built the bridge of Narva?")) == "Bob Stone"
    assert answer_baselines.longest_name(example("Where lived Ada Lovelace?")) == "London"
    assert answer_baselines.longest_name(example("Did it rain?", "it rained all day.")) == "it rained all day."


def test_a_random_span_is_drawn_by_its_question_and_stands_in_the_context() -> None:
    found = {answer_baselines.random_span(example(f"Q{i}?")) for i in range(50)}
    assert len(found) > 30
    assert all(span in CONTEXT and 1 <= len(span.replace("4.2", "4").split()) <= 5 for span in found)
    assert answer_baselines.random_span(example("Q?", "...")) == "..."


@pytest.mark.parametrize("name", ["landmarks", "landmarks_unanswerable"])
def test_all_are_scored_and_none_is_good(name: str) -> None:
    data = Data(name=f"builtin:{name}", text=["question", "context"], label="answers", group="title")
    splits = load(data, Answers())
    found = {yardstick: score() for yardstick, score in answer_baselines.of_answers(splits).items()}
    assert ("no answer" in found) == ("unanswerable" in name)
    assert all(set(of) == {"squad_f1", "squad_exact_match"} for of in found.values())
    assert all(0 <= value < 0.6 for of in found.values() for value in of.values())
    if "no answer" in found:
        share = sum(e.label == (NO_ANSWER,) for e in splits.test.examples) / len(splits.test.examples)
        assert found["no answer"]["squad_exact_match"] == pytest.approx(share)
