"""What a spec has that its experiment's file has not."""

from __future__ import annotations

import shlex

import pytest

from harness.specs import changes, spec

OVERRIDES = ["train.learning_rate=3e-4", "methods.lora.rank=4", "evaluation.every=20 steps", "data.name=/a b/c.csv"]


def test_what_differs_from_the_file_is_told_as_words_that_give_it_again() -> None:
    chosen = spec.load("lora_adapter", [*OVERRIDES, "~methods.bottleneck_adapter", "output=/elsewhere"])
    words = changes.given(chosen)
    assert "train.learning_rate=0.0003" in words and "'evaluation.every=20 steps'" in words
    assert "'~methods.bottleneck_adapter'" in words
    again = spec.load("lora_adapter", [*shlex.split(" ".join(words)), "output=/elsewhere"])
    assert again == chosen
    assert changes.given(spec.load("lora")) == []
    assert changes.given(spec.load("lora").model_copy(update={"name": "gone"})) == []


@pytest.mark.parametrize("words", [[], ["seeds=[7,8]"], ["output=/elsewhere"], ["latency.measure=false"]])
def test_the_story_of_a_file_is_told_where_training_is_what_the_file_says(words: list[str]) -> None:
    assert changes.story(spec.load("lora", words)) == spec.story("lora").strip()


@pytest.mark.parametrize("word", ["data.name=mine.csv", "train.learning_rate=0.001", "methods.lora.rank=4"])
def test_with_other_settings_no_score_is_claimed(word: str) -> None:
    assert changes.story(spec.load("lora", [word])) == f"Experiment `lora {word}`."


def test_a_method_that_was_taken_out_is_named() -> None:
    told = changes.story(spec.load("lora_adapter", ["~methods.lora", "seeds=[1]"]))
    assert told == "Experiment `lora_adapter '~methods.lora'`."
