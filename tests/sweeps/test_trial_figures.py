from __future__ import annotations

import math
from typing import Any

import pytest

from harness.sweeps import trial_figures
from harness.sweeps.trial_figures import ARMS, SYMBOLS
from tests.studies import TWO, study, trial, trials


def _named(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_the_history_has_every_finished_trial_once_in_its_colour_and_symbol() -> None:
    drawn = _named(trial_figures.history(study()))
    counts = {name: len(trace.x) for name, trace in drawn.items() if trace.mode == "markers"}
    assert counts == {
        "search, complete": 8,
        "search, pruned": 1,
        "search, infeasible: no value": 1,
        "search, failed: no value": 1,
        "baseline, complete": 8,
    }
    for name, trace in drawn.items():
        assert (trace.marker.color or trace.line.color) == ARMS["search" if name.startswith("search") else "baseline"]
    assert drawn["search, pruned"].marker.symbol == SYMBOLS["pruned"] != SYMBOLS["complete"]
    assert "the worse half" in drawn["search, pruned"].hovertext[0]
    assert "methods.lora.rank: 4" in drawn["search, pruned"].hovertext[0]


def test_what_has_no_value_is_at_the_bottom_on_an_axis_of_its_own() -> None:
    figure = trial_figures.history(study())
    failed = _named(figure)["search, failed: no value"]
    assert (failed.yaxis, list(failed.x)) == ("y2", [7])
    assert 0 < failed.y[0] < 0.1
    assert tuple(figure.layout.yaxis2.range) == (0, 1)


@pytest.mark.parametrize(
    ("direction", "best"), [("maximize", [0.5, 0.5, 0.7, 0.7, 0.7]), ("minimize", [0.5, 0.4, 0.4, 0.4, 0.4])]
)
def test_the_best_so_far_is_of_complete_trials_and_goes_on_to_the_last(direction: str, best: list[float]) -> None:
    values = [trial(0, 0.5), trial(1, 0.4), trial(2, 0.7), trial(3, 0.6), trial(5, 0.99, state="pruned")]
    values += [trial(4, 0.01, state="infeasible")]
    line = _named(trial_figures.history(study(trials=values, objectives=[("f1", direction)])))["search, best so far"]
    assert (list(line.x), list(line.y)) == ([0, 1, 2, 3, 5], best)
    assert line.line.shape == "hv"


def test_a_value_that_is_no_number_is_none() -> None:
    values = [trial(0, math.nan), trial(1, math.inf), trial(2, 0.5), trial(3, 0.9, state="failed")]
    drawn = _named(trial_figures.history(study(trials=values)))
    assert list(drawn["search, complete"].x) == [2]
    assert list(drawn["search, complete: no value"].x) == [0, 1]
    assert list(drawn["search, failed: no value"].x) == [3]
    assert study(trials=values).best("search") == (values[2], 0.5)


def test_every_trial_learns_on_a_line_of_its_own() -> None:
    figure = trial_figures.learning(study())
    assert len(figure.data) == sum(bool(one.intermediate) for one in trials()) == 18
    assert [trace.line.dash for trace in figure.data].count("dash") == 1
    assert [trace.line.dash for trace in figure.data].count("dot") == 1
    assert [trace.name for trace in figure.data if trace.showlegend] == ["search", "baseline"]
    thick = [trace for trace in figure.data if trace.line.width > 3]
    assert [trace.y[-1] for trace in thick] == [best[1] for arm in ARMS if (best := study().best(arm))]


def test_learning_leaves_out_what_is_no_number_and_sorts_evaluations() -> None:
    figure = trial_figures.learning(study(trials=[trial(0, 0.5, intermediate={3: 0.5, 1: 0.1, 2: math.nan})]))
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([1, 3], [0.1, 0.5])
    assert figure.layout.xaxis.dtick == 1


def test_slices_have_a_panel_per_key_with_its_axis() -> None:
    figure = trial_figures.slices(study())
    axes = [figure.layout[name] for name in ("xaxis", "xaxis2", "xaxis3", "xaxis4")]
    assert [one.type for one in axes] == ["category", "log", "category", "linear"]
    assert [one.title.text for one in axes] == [
        "methods",
        "train.learning_rate",
        "methods.lora.rank<br>(4 trials without it)",
        "methods.mixout.p<br>(5 trials without it)",
    ]
    assert list(axes[0].categoryarray) == ["lora", "mixout"]
    assert list(axes[2].categoryarray) == ["1", "2", "4", "16", "32"]
    assert list(axes[1].ticktext) == [f"{tick:g}".replace("e-0", "e-") for tick in axes[1].tickvals]
    rates = [trace for trace in figure.data if trace.xaxis == "x2"]
    assert {trace.name: len(trace.x) for trace in rates} == {
        "search, complete": 8, "search, pruned": 1, "baseline, complete": 8,
    }  # fmt: skip
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(shown) == ["baseline, complete", "search, complete", "search, pruned"]


def test_panels_stand_three_in_a_row() -> None:
    figure, places = trial_figures.panels(7, "Title", "below")
    assert places[3] == {"row": 2, "col": 1}
    assert places[6] == {"row": 3, "col": 1}
    assert sum(name.startswith("xaxis") for name in figure.layout.to_plotly_json()) == 7


def test_names_are_text_and_not_html() -> None:
    bad = "<img src=x onerror=alert(1)>"
    one = trial(0, 0.5, params={bad: bad}, reason=bad, run=bad, intermediate={1: 0.5})
    broken = study(trials=[one], objectives=[(bad, "maximize")], scales={bad: "choice"})
    for draw in (trial_figures.history, trial_figures.learning, trial_figures.slices):
        text = str(draw(broken).to_plotly_json())
        assert "&lt;img" in text
        assert "<img" not in text


@pytest.mark.parametrize("draw", [trial_figures.history, trial_figures.learning, trial_figures.slices])
def test_nothing_is_drawn_of_nothing(draw: Any) -> None:
    for some in ([], [trial(0, state="waiting"), trial(1, state="running")]):
        assert draw(study(trials=some)) is None


def test_the_first_objective_is_shown_of_several() -> None:
    figure = trial_figures.history(study(objectives=TWO))
    assert figure.layout.yaxis.title.text == "validation/f1_macro (higher is better)"
    assert max(_named(figure)["search, complete"].y) < 1
    assert "memory/peak_gib: 1." in _named(figure)["search, complete"].hovertext[0]
