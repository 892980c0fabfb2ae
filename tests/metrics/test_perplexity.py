"""Perplexity: uniform, perfect, regrouped, and not the mean of means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.metrics.perplexity import Perplexity
from tests.metrics.language_models import likelihood


def test_a_uniform_model_has_that_of_its_vocabulary_and_a_perfect_one_1() -> None:
    counts = [3, 10, 1]
    uniform = Perplexity().compute(likelihood([n * math.log(50) for n in counts], counts))
    assert uniform["perplexity"] == pytest.approx(50, rel=1e-12)
    assert Perplexity().compute(likelihood([0, 0, 0], counts)) == {"perplexity": 1, "nll": 0}


def test_tokens_count_alike_however_they_are_grouped() -> None:
    """Two texts of 1 and 9 tokens: exp((4 + 9) / 10), not the mean of exp(4) and exp(1) nor exp of (4 + 1) / 2."""
    expected = {"perplexity": math.exp(1.3), "nll": 1.3}
    assert Perplexity().compute(likelihood([4, 9], [1, 9])) == pytest.approx(expected)
    assert Perplexity().compute(likelihood([4, 3, 6, 0], [1, 4, 5, 0])) == pytest.approx(expected)


def test_sums_are_exact_where_single_precision_is_not() -> None:
    """2^24 and many ones: float32 would lose each of them."""
    nll = [2.0**24, *[1.0] * 1000]
    assert Perplexity().compute(likelihood(nll, [2**24, *[1] * 1000]))["nll"] == 1


def test_parts_joined_are_the_whole() -> None:
    draw = np.random.default_rng(0)
    nll, targets = draw.random(20).tolist(), draw.integers(1, 9, 20).tolist()
    parts = [likelihood(nll[a:b], targets[a:b]) for a, b in ((0, 3), (3, 3), (3, 20))]
    joined = parts[0].joined(parts[1:])
    assert Perplexity().compute(joined) == Perplexity().compute(likelihood(nll, targets))


def test_no_targets_are_no_error_and_it_stays_a_number() -> None:
    assert Perplexity().compute(likelihood([0.0], [0])) == {"perplexity": 1, "nll": 0}
    assert math.isfinite(Perplexity().compute(likelihood([1e9], [1]))["perplexity"])
