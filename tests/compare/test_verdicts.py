from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import f1_score

from harness.compare.runs import Entry, Predictions
from harness.compare.systems import System
from harness.compare.verdicts import against, tie_groups

F1 = "test/f1_macro"


def system(name: str, scores: ArrayLike, predicted: Sequence[Sequence[int]] | None = None) -> System:
    """Seeds from 0 on; of each seed the predictions, of items whose true labels alternate."""
    entries = {}
    for seed, score in enumerate(np.asarray(scores).tolist()):
        known = None
        if predicted is not None:
            labels = np.arange(len(predicted[seed])) % 2
            known = Predictions(labels, np.asarray(predicted[seed]), ["bad", "good"])
        entries[seed] = Entry(
            f"{name}-s{seed}", seed, {}, {F1: score}, 1, 1.0, 1.0, "t", 7, "", "cpu", predictions=known
        )
    return System(name, (), entries, name=name)


def test_the_tests_are_those_of_scipy_and_adjusted_for_all_pairs() -> None:
    base, good, odd = [0.70, 0.72, 0.71, 0.69, 0.73], [0.80, 0.81, 0.82, 0.79, 0.83], [0.71, 0.70, 0.74, 0.69, 0.72]
    reference = system("base", base)
    found = {one.system: one for one in against([system("good", good), reference, system("odd", odd)], reference, F1)}
    raw = {name: stats.ttest_rel(scores, base) for name, scores in (("good", good), ("odd", odd))}
    for name, scores in (("good", good), ("odd", odd)):
        assert found[name].t == pytest.approx(raw[name].pvalue)
        low, high = raw[name].confidence_interval(0.95)
        assert [found[name].low, found[name].high] == pytest.approx([low, high])
        assert found[name].mean == pytest.approx(np.mean(np.subtract(scores, base)))
    assert found["good"].holm == pytest.approx(2 * raw["good"].pvalue)
    assert found["odd"].holm == pytest.approx(raw["odd"].pvalue)
    assert (found["good"].verdict, found["odd"].verdict) == ("better", "tie")
    assert found["good"].sign_flip == found["good"].smallest_sign_flip == 0.0625
    (lower,) = against([system("good", good), reference], reference, F1, sign=-1)
    assert lower.verdict == "worse"


def test_under_the_null_the_share_of_verdicts_is_at_most_the_level() -> None:
    """Four methods that are the same, five seeds: any of three called different is one mistake."""
    generator, worlds = np.random.default_rng(0), 1500
    mistakes = 0
    for _ in range(worlds):
        all_four = [system(str(i), generator.normal(0.7, 0.02, size=5)) for i in range(4)]
        mistakes += any(pair.verdict in ("better", "worse") for pair in against(all_four, all_four[0], F1))
    assert mistakes / worlds <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / worlds)


def test_a_planted_difference_is_found_and_one_of_the_detectable_size_four_times_in_five() -> None:
    generator, worlds, sd = np.random.default_rng(1), 600, 0.02
    base = [system("a", generator.normal(0.7, sd, size=8)) for _ in range(worlds)]
    (first,) = against([base[0], system("b", generator.normal(0.8, sd, size=8))], base[0], F1)
    assert first.verdict == "better"
    size = 1.2 * sd * math.sqrt(2)  # found by 8 pairs about four times in five (Cohen's tables: 0.80 at d = 1.16)
    hits = 0
    for one in base:
        (pair,) = against([one, system("b", generator.normal(0.7 + size, sd, size=8))], one, F1)
        hits += pair.verdict == "better"
    assert 0.74 <= hits / worlds <= 0.90


def test_items_can_withhold_a_verdict_that_seeds_alone_would_give() -> None:
    """Every seed is better by nearly the same, on four items: another four may turn it."""
    right = [0, 1, 0, 1]
    a, b = [[0, 1, 0, 0]] * 5, [right] * 4 + [[0, 1, 1, 1]]
    scores = [[f1_score(right, one, average="macro") for one in side] for side in (a, b)]
    reference = system("a", scores[0], a)
    (pair,) = against([reference, system("b", scores[1], b)], reference, F1)
    assert pair.low > 0 and pair.holm < 0.05
    assert pair.nested[0] <= 0 and pair.verdict == "tie"
    assert pair.interval == (min(pair.low, pair.nested[0]), max(pair.high, pair.nested[1]))
    assert len(pair.mcnemar) == 5 and min(pair.mcnemar) == 1.0
    blind = system("a", scores[0])
    (without,) = against([blind, system("b", scores[1])], blind, F1)
    assert without.verdict == "better" and math.isnan(without.nested[0]) and without.mcnemar == []


def test_one_seed_other_seeds_and_no_spread_are_no_verdicts() -> None:
    reference = system("a", [0.5], [[0, 1, 1, 1]])
    (one,) = against([reference, system("b", [0.9], [[0, 1, 0, 1]])], reference, F1)
    assert (one.verdict, one.t, one.holm) == ("one seed", 1.0, 1.0)
    assert one.items[0] <= one.mean <= one.items[1]
    late = System("late", (), {9: reference.entries[0]}, name="late")
    (apart,) = against([reference, late], reference, F1)
    assert (apart.verdict, apart.seeds) == ("no common seed", [])
    flat = system("flat", [0.5, 0.6])
    (same,) = against([flat, system("c", [0.6, 0.7])], flat, F1)
    assert same.verdict == "no spread" and same.sign_flip == 0.5
    (equal,) = against([flat, system("c", [0.5, 0.6])], flat, F1)
    assert equal.verdict == "no spread", "every seed differs by the same amount, which is 0"
    for one in (same, equal):
        assert all(math.isnan(value) for value in (one.t, one.holm, *one.interval))
        assert "95 %" not in one.sentence("f1") and "cannot be judged" in one.sentence("f1")


def test_a_pair_without_spread_counts_as_one_that_was_asked_about() -> None:
    """Its test is of no use, yet asking about fewer is not the same question."""
    base, good = [0.70, 0.72, 0.71, 0.69, 0.73], [0.80, 0.81, 0.82, 0.79, 0.83]
    reference, flat = system("base", base), system("flat", np.add(base, 0.1))
    found = {one.system: one for one in against([system("good", good), reference, flat], reference, F1)}
    assert found["flat"].verdict == "no spread"
    assert found["good"].holm == pytest.approx(2 * stats.ttest_rel(good, base).pvalue)


def test_a_verdict_of_two_seeds_comes_with_a_caution() -> None:
    for seeds in (2, 3):
        reference = system("a", [0.70, 0.72, 0.71][:seeds])
        (pair,) = against([reference, system("b", [0.801, 0.82, 0.812][:seeds])], reference, F1)
        assert pair.verdict == "better"
        assert ("CAUTION: two seeds cannot show it" in pair.sentence("f1")) == (seeds == 2)


def test_predictions_of_other_items_are_refused() -> None:
    reference = system("a", [0.5], [[0, 1, 1, 1]])
    with pytest.raises(ValueError, match="not of the same items"):
        against([reference, system("b", [0.9], [[0, 1]])], reference, F1)


def test_groups_of_ties_stand_in_order() -> None:
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0, 0.01])
    of = [system("worst", 0.5 + np.roll(noise, 1)), system("good", 0.80 + noise[::-1]), system("best", 0.81 + noise)]
    assert tie_groups(of, F1) == [["best", "good"], ["worst"]]
    assert tie_groups(of, F1, sign=-1) == [["worst"], ["good", "best"]]
    assert tie_groups([*of, system("short", [0.9])], F1) == []
