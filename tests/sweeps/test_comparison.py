from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.sweeps import comparison as study_comparison
from harness.sweeps.comparison import interval, means, non_dominated
from harness.sweeps.trial_figures import ARMS
from tests.studies import TWO, confirmed, study, trial, trials


def _beats(one: list[float], other: list[float], directions: list[str]) -> bool:
    better = [a > b if way == "maximize" else a < b for a, b, way in zip(one, other, directions, strict=True)]
    worse = [a < b if way == "maximize" else a > b for a, b, way in zip(one, other, directions, strict=True)]
    return any(better) and not any(worse)


@pytest.mark.parametrize("directions", [["maximize", "maximize"], ["maximize", "minimize"], ["minimize"] * 3])
def test_non_dominated_against_brute_force(directions: list[str]) -> None:
    draw = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        values = draw.integers(0, 6, size=(size, len(directions))).astype(float).tolist()
        expected = [not any(_beats(other, one, directions) for other in values) for one in values]
        assert non_dominated(values, directions) == expected


def test_equal_rows_stay_and_no_rows_are_none() -> None:
    assert non_dominated([[1.0, 2.0], [1.0, 2.0], [0.0, 2.0]], ["maximize", "minimize"]) == [True, True, False]
    assert non_dominated([], ["maximize", "minimize"]) == []


def test_the_interval_is_that_of_scipy() -> None:
    values = [0.80, 0.81, 0.82, 0.80, 0.83]
    mean, low, high = interval(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx(expected)
    assert interval([0.5]) == (0.5, 0.5, 0.5)
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_the_front_is_marked_and_the_rest_faint() -> None:
    figure = study_comparison.pareto(study(objectives=TWO))
    drawn = [trace for trace in figure.data if trace.mode == "markers"]
    rows = [one.values for one in trials() if one.state == "complete"]
    front = non_dominated(rows, ["maximize", "minimize"])
    marked = [(x, y) for trace in drawn if trace.marker.size == 12 for x, y in zip(trace.x, trace.y, strict=True)]
    assert sorted(marked) == sorted(tuple(row) for row, best in zip(rows, front, strict=True) if best)
    assert sum(len(trace.x) for trace in drawn) == len(rows) == 16
    (stairs,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert list(zip(stairs.x, stairs.y, strict=True)) == sorted(marked)
    assert stairs.line.shape == "vh"
    assert figure.layout.yaxis.title.text == "memory/peak_gib (lower is better)"


def test_three_objectives_have_three_pairs() -> None:
    three = [replace(one, values=[*one.values, 2.0]) for one in trials() if one.state == "complete"]
    figure = study_comparison.pareto(study(trials=three, objectives=[*TWO, ("time/train_s", "minimize")]))
    titles = [
        (figure.layout[f"xaxis{n}"].title.text[:4], figure.layout[f"yaxis{n}"].title.text[:4]) for n in ("", 2, 3)
    ]
    assert titles == [("vali", "memo"), ("vali", "time"), ("memo", "time")]
    assert not [trace for trace in figure.data if trace.mode == "lines"]


def test_trials_without_every_objective_have_no_trade_off() -> None:
    some = [trial(0, 0.5), replace(trial(1), values=[0.5, math.nan])]
    assert study_comparison.pareto(study(trials=some, objectives=TWO)) is None
    assert study_comparison.pareto(study()) is None


def test_the_curve_has_the_most_important_ordered_keys() -> None:
    figure = study_comparison.curve(study())
    titles = [figure.layout[name].title.text.split("<br>")[0] for name in ("xaxis", "xaxis2", "xaxis3")]
    assert titles == ["train.learning_rate", "methods.lora.rank", "methods.mixout.p"]
    assert [figure.layout[name].type for name in ("xaxis", "xaxis2", "xaxis3")] == ["log", "log", "linear"]
    assert list(figure.layout.xaxis2.ticktext) == ["1", "2", "16", "32"]


def test_dots_are_the_search_and_diamonds_the_means_with_their_intervals() -> None:
    figure = study_comparison.curve(study())
    dots, diamonds = [trace for trace in figure.data if trace.xaxis == "x"]
    assert (len(dots.x), dots.marker.opacity < 0.5) == (8, True)
    best, other = means(study(), "search")
    assert (best.of.number, other.of.number) == (0, 2)
    assert list(diamonds.y) == [best.mean, other.mean]
    assert list(diamonds.error_y.array) == pytest.approx([best.high - best.mean, other.mean - other.low])
    assert list(diamonds.x) == pytest.approx([one.of.params["train.learning_rate"] for one in (best, other)])
    assert "on 5 fresh seeds" in diamonds.hovertext[0]
    assert not [trace for trace in figure.data if trace.xaxis == "x3" and trace.marker.symbol == "diamond"]


def test_the_band_is_the_best_confirmed_baseline() -> None:
    worse = confirmed(3, [0.1, 0.2, 0.3], arm="baseline")
    figure = study_comparison.curve(study(confirmed=[worse, *study().confirmed]))
    values = [0.78, 0.79, 0.80, 0.77, 0.81]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    line, band = figure.layout.shapes[:2]
    assert len(figure.layout.shapes) == 6
    assert line.y0 == line.y1 == pytest.approx(0.79)
    assert (band.y0, band.y1) == pytest.approx((low, high))
    assert band.fillcolor == ARMS["baseline"]
    assert "Baseline: trial 1, 0.79 (0.7704 to 0.8096) on 5 fresh seeds." in figure.layout.title.subtitle.text


def test_a_baseline_that_was_not_confirmed_is_a_line_and_the_title_says_so() -> None:
    figure = study_comparison.curve(study(confirmed=study().confirmed[:2]))
    best = study().best("baseline")
    assert best is not None
    assert [(shape.y0, shape.y1) for shape in figure.layout.shapes] == [(best[1], best[1])] * 3
    assert f"the search value of trial {best[0].number}" in figure.layout.title.subtitle.text
    assert "not confirmed" in figure.layout.title.subtitle.text


def test_no_baseline_is_said_and_one_seed_has_no_band() -> None:
    alone = [one for one in trials() if one.arm == "search"]
    figure = study_comparison.curve(study(trials=alone, confirmed=[]))
    assert not figure.layout.shapes
    assert "No baseline trial was completed." in figure.layout.title.subtitle.text
    single = study_comparison.curve(study(confirmed=[confirmed(1, [0.7], arm="baseline")]))
    assert len(single.layout.shapes) == 3
    assert "0.7 on 1 fresh seed." in single.layout.title.subtitle.text


def test_configurations_with_the_same_value_stand_beside_each_other() -> None:
    again = [confirmed(n, [0.7 + n / 100, 0.71]) for n in range(3)]
    again.append(confirmed(3, [math.nan, math.inf]))
    diamonds = study_comparison.curve(study(confirmed=again)).data[1]
    assert len(set(diamonds.x)) == 3
    assert sorted(diamonds.x)[1] == pytest.approx(1e-4)
    assert list(diamonds.x) == pytest.approx([1e-4] * 3, rel=0.2)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_few_lost_trials_do_not_flatten_the_picture(direction: str) -> None:
    sign = 1 if direction == "maximize" else -1
    some = [trial(n, sign * (0.8 + n / 1000), params={"p": n / 9}) for n in range(9)]
    some.append(trial(9, sign * 0.1, params={"p": 1.0}))
    options: dict[str, Any] = {"confirmed": [], "scales": {"p": "linear"}, "objectives": [("f1", direction)]}
    figure = study_comparison.curve(study(trials=some, **options))
    low, high = figure.layout.yaxis.range
    assert all(low < sign * (0.8 + n / 1000) < high for n in range(9))
    assert not low < sign * 0.1 < high
    assert "Beyond the axis: 1 of 10 search trials." in figure.layout.title.subtitle.text
    assert study_comparison.curve(study(trials=some[:9], **options)).layout.yaxis.range is None


def test_without_an_ordered_key_there_is_no_curve() -> None:
    some = [trial(n, 0.5, params={"methods": ("lora", "awp")[n]}) for n in range(2)]
    assert study_comparison.curve(study(trials=some, confirmed=[])) is None
    assert study_comparison.curve(study(trials=[], confirmed=[])) is None
    assert study_comparison.curve(study(trials=[trial(0, 0.5)], confirmed=[])) is None


def test_confirmed_configurations_are_drawn_without_their_trials() -> None:
    again = [confirmed(n, [0.7, 0.8], params={"methods.lora.rank": 2**n}) for n in range(3)]
    figure = study_comparison.curve(study(trials=[], confirmed=again))
    assert list(figure.data[-1].x) == pytest.approx([1, 2, 4])
