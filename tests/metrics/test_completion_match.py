"""Exact match of completions."""

from __future__ import annotations

from harness.metrics.completion_match import CompletionMatch
from tests.metrics.samples import completed


def test_every_character_counts_but_spaces_at_the_ends() -> None:
    predictions = completed([" a b\n", "A b", "a  b", None, "a b."], ["a b"] * 5)
    assert CompletionMatch().compute(predictions) == {"exact_match": 0.25}
