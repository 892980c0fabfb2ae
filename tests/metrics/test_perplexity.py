"""Perplexity: by definition, never a mean of means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.metric import Likelihood
from harness.metrics.perplexity import Perplexity


def likelihood(nll: list[float], targets: list[int]) -> Likelihood:
    counts = np.array(targets, dtype=np.int64)
    return Likelihood(np.array(nll), counts, counts * 0, [{"id": str(i)} for i in range(len(nll))])


def test_a_model_that_knows_nothing_has_the_size_of_the_vocabulary_and_a_perfect_one_has_1() -> None:
    targets = [3, 10, 1]
    uniform = Perplexity().compute(likelihood([n * math.log(97) for n in targets], targets))
    assert uniform == {"perplexity": pytest.approx(97, rel=1e-12), "nll": pytest.approx(math.log(97), rel=1e-12)}
    assert Perplexity().compute(likelihood([0.0, 0.0], [3, 4])) == {"perplexity": 1.0, "nll": 0.0}


def test_tokens_weigh_alike_however_they_are_grouped() -> None:
    found = Perplexity().compute(likelihood([1.0, 20.0], [1, 10]))
    assert found["nll"] == pytest.approx(21 / 11)
    assert found["perplexity"] != pytest.approx(math.exp((1 / 1 + 20 / 10) / 2))
    assert Perplexity().compute(likelihood([21.0], [11])) == pytest.approx(found)


def test_it_stays_a_number() -> None:
    assert math.isfinite(Perplexity().compute(likelihood([1e9], [1]))["perplexity"])
