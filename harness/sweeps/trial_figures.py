"""The trials of a study, for a browser: what each one reached, how it learned, where its keys lay.

Every function gives a plotly figure, or None where there is nothing to show.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import accumulate, product
from typing import Any

from harness import figures
from harness.sweeps.axes import Axis, axis, brief, label, short
from harness.sweeps.trials import Arm, Confirmed, State, TrialRecord

ARMS: dict[Arm, str] = {"search": figures.COLOURS[0], "baseline": figures.COLOURS[1]}
"""Arm -> its colour on every page."""
SYMBOLS: dict[State, str] = {
    "complete": "circle",
    "pruned": "triangle-down-open",
    "infeasible": "square-open",
    "failed": "line-ns-open",
}
"""State of a finished trial -> its symbol on every page."""
_DASHES: dict[State, str] = {"complete": "solid", "pruned": "dash"}
_SLICED: tuple[State, ...] = ("complete", "pruned")
_BOTTOM: dict[Arm, float] = {"search": 0.05, "baseline": 0.02}
"""Height of a mark for what has no value; apart, since both arms count their trials from 0."""
_COLUMNS = 3


@dataclass(frozen=True)
class Study:
    """What the pages show; the fields are those of `study_figures.write`."""

    trials: list[TrialRecord]
    confirmed: list[Confirmed]
    objectives: list[tuple[str, str]]
    """(metric, "maximize" or "minimize"), one at least; all pages but pareto.html show the first."""
    scales: dict[str, str]
    importances: dict[str, float]

    @property
    def metric(self) -> str:
        """The first objective's name."""
        return self.objectives[0][0]

    @property
    def upwards(self) -> bool:
        """Is more of the first objective better?"""
        return self.objectives[0][1] == "maximize"

    @property
    def shares(self) -> dict[str, float]:
        """The importances that are numbers."""
        return {key: share for key, share in self.importances.items() if math.isfinite(share)}

    @property
    def goal(self) -> str:
        """Title of an axis with the first objective."""
        return goal(*self.objectives[0])

    def finished(self, arm: Arm) -> list[TrialRecord]:
        """Its trials that have ended in some way, by number."""
        mine = [trial for trial in self.trials if trial.arm == arm and trial.state in SYMBOLS]
        return sorted(mine, key=lambda trial: trial.number)

    def scored(self, *arms: Arm) -> list[tuple[TrialRecord, float]]:
        """Complete trials of these arms with their value, which is finite, by arm and number."""
        complete = [trial for arm in arms for trial in self.finished(arm) if trial.state == "complete"]
        return [(trial, found) for trial in complete if (found := value(trial)) is not None]

    def best(self, arm: Arm) -> tuple[TrialRecord, float] | None:
        """The complete trial with the best value; of equals the first."""
        sign = 1 if self.upwards else -1
        return max(self.scored(arm), key=lambda pair: sign * pair[1], default=None)

    def axes(self, params: list[dict[str, Any]]) -> list[Axis]:
        """Every searched key that one of these configurations has, in the order of the scales."""
        having = {key: [one[key] for one in params if key in one] for key in self.scales}
        return [axis(key, scale, having[key]) for key, scale in self.scales.items() if having[key]]


def value(trial: TrialRecord, objective: int = 0) -> float | None:
    """What the trial reached, or None if it has no finite value; a failed one has none."""
    known = trial.values[objective] if trial.state != "failed" and objective < len(trial.values) else math.nan
    return known if math.isfinite(known) else None


def goal(metric: str, direction: str) -> str:
    """Title of an axis with an objective."""
    better = "higher" if direction == "maximize" else "lower"
    return f"{escape(short(metric, 36))} ({better} is better)"


def hover(trial: TrialRecord, study: Study) -> str:
    """What a trial says of itself under the pointer: HTML as plotly reads it."""
    values = [f"{metric}: {brief(one)}" for (metric, _), one in zip(study.objectives, trial.values, strict=False)]
    why = textwrap.wrap(short(trial.reason, 300), 70)
    run = [f"run {trial.run}"] if trial.run else []
    return lines([f"{trial.arm} {trial.number}, {trial.state}", *values, *chosen(trial.params), *why, *run])


def chosen(params: dict[str, Any]) -> list[str]:
    """A configuration, one line per key."""
    return [f"{key}: {short(brief(one), 60)}" for key, one in params.items()]


def lines(texts: Iterable[str]) -> str:
    """Plain texts below each other, as plotly shows them under the pointer."""
    return "<br>".join(map(escape, texts))


def dress(figure: Any, title: str, subtitle: str, width: int, height: int) -> None:
    """The project's manner, with a line below the title that says what is drawn how. Plain text."""
    figures.dress(figure, title, width, height)
    below = {"text": escape(subtitle), "font": {"size": 13, "color": figures.MUTED}}
    figure.update_layout(title_subtitle=below, title_y=1 - 30 / height, title_yanchor="middle", margin_t=100)


def panels(count: int, title: str, subtitle: str, *, shared: bool = True) -> tuple[Any, list[dict[str, int]]]:
    """A figure with so many panels, three in a row, and where each one is: {"row": 1, "col": 1}, ...

    shared: one vertical axis for all of them.
    """
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    places = [{"row": 1 + number // columns, "col": 1 + number % columns} for number in range(count)]
    there: list[list[dict[str, Any] | None]]
    there = [[{} if row * columns + column < count else None for column in range(columns)] for row in range(rows)]
    spacing = {"vertical_spacing": 100 / (360 * rows), "horizontal_spacing": 0.05 if shared else 0.1}
    figure = figures.subplots(rows=rows, cols=columns, specs=there, shared_yaxes="all" if shared else False, **spacing)
    dress(figure, title, subtitle, width=max(820, 360 + 350 * columns), height=180 + 360 * rows)
    return figure, places


def is_new(figure: Any, group: str) -> bool:
    """Does the legend lack this group so far?"""
    return all(trace.legendgroup != group for trace in figure.data)


def history(study: Study) -> Any:
    """Value by number of the trial, and the best so far of each arm; what has no value is a mark at the bottom."""
    if not any(map(study.finished, ARMS)):
        return None
    figure = figures.page("", 1100, 560)
    dress(figure, f"{study.metric}, trial by trial", " · ".join(filter(None, _tallies(study))), 1100, 560)
    for arm, colour in ARMS.items():
        _best_so_far(figure, study, arm)
        for state in SYMBOLS:
            some = [trial for trial in study.finished(arm) if trial.state == state]
            for has_value in (True, False):
                here = [trial for trial in some if (value(trial) is not None) == has_value]
                if here:
                    figure.add_scatter(
                        name=f"{arm}, {state}" + ("" if has_value else ": no value"),
                        mode="markers",
                        marker=_marker(state, colour),
                        x=[trial.number for trial in here],
                        y=[value(trial) if has_value else _BOTTOM[arm] for trial in here],
                        yaxis="y" if has_value else "y2",
                        hovertext=[hover(trial, study) for trial in here],
                        hoverinfo="text",
                    )
    figure.update_xaxes(title_text="Trial", **_whole(trial.number for arm in ARMS for trial in study.finished(arm)))
    figure.update_yaxes(title_text=study.goal)
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    return figure


def _tallies(study: Study) -> Iterator[str]:
    """How many trials each arm has, its best, and how many ended otherwise."""
    for arm in ARMS:
        states = [trial.state for trial in study.finished(arm)]
        best = study.best(arm)
        top = [f"best {best[1]:.4g} (trial {best[0].number})"] if best else []
        others = [f"{states.count(state)} {state}" for state in SYMBOLS if state != "complete" and state in states]
        yield ", ".join([f"{arm}: {len(states)} trials", *top, *others]) if states else ""


def _best_so_far(figure: Any, study: Study, arm: Arm) -> None:
    scored = study.scored(arm)
    if scored:
        best = list(accumulate((found for _, found in scored), max if study.upwards else min))
        numbers = [trial.number for trial, _ in scored]
        figure.add_scatter(
            name=f"{arm}, best so far",
            mode="lines",
            line={"color": ARMS[arm], "width": 2, "shape": "hv"},
            x=[*numbers, study.finished(arm)[-1].number],
            y=[*best, best[-1]],
            hoverinfo="skip",
        )


def _marker(state: State, colour: str) -> dict[str, Any]:
    """How a trial is drawn: what is not complete is an outline."""
    line = {"width": 1 if state == "complete" else 1.8, "color": "white" if state == "complete" else colour}
    return {"symbol": SYMBOLS[state], "color": colour, "size": 9, "line": line}


def _whole(numbers: Iterable[int]) -> dict[str, Any]:
    """Ticks at whole numbers only, also where they are few."""
    first, *_, last = sorted([*numbers] * 2)
    return {"dtick": 1, "range": [first - 0.5, last + 0.5]} if last - first <= 12 else {}


def learning(study: Study) -> Any:
    """Intermediate values by evaluation: a thin line per trial, dashed if pruned, the best of each arm thicker."""
    drawn = [(trial, points) for trial in study.trials if (points := _points(trial))]
    if not drawn:
        return None
    figure = figures.page("", 1100, 560)
    subtitle = "One line per trial. Dashed: pruned. Dotted: ended otherwise, or not yet. Thick: the best of its arm."
    dress(figure, f"{study.metric} while training", subtitle, 1100, 560)
    champions = [best[0] for arm in ARMS if (best := study.best(arm))]
    order = list(ARMS)
    drawn.sort(key=lambda pair: (any(pair[0] is one for one in champions), order.index(pair[0].arm), pair[0].number))
    last = {trial.arm: trial for trial, _ in drawn}
    for trial, points in drawn:
        thick = any(trial is champion for champion in champions)
        dash = _DASHES.get(trial.state, "dot")
        figure.add_scatter(
            name=trial.arm,
            legendgroup=trial.arm,
            showlegend=trial is last[trial.arm],
            mode="lines+markers",
            line={"color": ARMS[trial.arm], "width": 3.5 if thick else 1.2, "dash": dash},
            marker={"size": 6 if thick else 4},
            opacity=1 if thick else 0.5,
            x=list(points),
            y=list(points.values()),
            hovertext=[hover(trial, study)] * len(points),
            hoverinfo="text",
        )
    figure.update_xaxes(title_text="Evaluation", **_whole(number for _, points in drawn for number in points))
    figure.update_yaxes(title_text=study.goal)
    return figure


def _points(trial: TrialRecord) -> dict[int, float]:
    return {number: one for number, one in sorted(trial.intermediate.items()) if math.isfinite(one)}


def slices(study: Study) -> Any:
    """One panel per searched key: value against the key, over a logarithm or over choices where its scale is that."""
    shown = [
        trial for arm in ARMS for trial in study.finished(arm) if trial.state in _SLICED and value(trial) is not None
    ]
    axes = study.axes([trial.params for trial in shown])
    if not axes:
        return None
    subtitle = "One dot per complete trial. Outlined: pruned, with the value it had then."
    figure, places = panels(len(axes), f"{study.metric} against each searched key", subtitle)
    for one, place in zip(axes, places, strict=True):
        for arm, state in product(ARMS, _SLICED):
            some = [trial for trial in shown if (trial.arm, trial.state) == (arm, state) and one.key in trial.params]
            if some:
                figure.add_scatter(
                    name=f"{arm}, {state}",
                    legendgroup=f"{arm}, {state}",
                    showlegend=is_new(figure, f"{arm}, {state}"),
                    mode="markers",
                    marker=_marker(state, ARMS[arm]),
                    x=[_at(one, trial.params[one.key]) for trial in some],
                    y=[value(trial) for trial in some],
                    hovertext=[hover(trial, study) for trial in some],
                    hoverinfo="text",
                    **place,
                )
        label_axis(figure, one, place, [trial.params for trial in shown if trial.arm == "search"])
    figure.update_yaxes(title_text=study.goal, col=1)
    return figure


def label_axis(figure: Any, one: Axis, place: dict[str, int], params: list[dict[str, Any]]) -> None:
    """Name a panel's horizontal axis after its key, and say how many of these configurations lack it."""
    lacking = sum(one.key not in each for each in params)
    note = f"<br>({lacking} trials without it)" if 0 < lacking < len(params) else ""
    figure.update_xaxes(title_text=escape(short(one.key, 40)) + note, **place)
    if one.kind == "choice":
        names = list(map(escape, one.choices))
        order = {"categoryorder": "array", "categoryarray": names, "range": [-0.5, len(names) - 0.5]}
        texts = list(map(escape, one.ticks().values()))
        figure.update_xaxes(type="category", tickvals=names, ticktext=texts, **order, **place)
    elif one.kind == "log":
        ticks = {"tickvals": [10**at for at in one.ticks()], "ticktext": list(one.ticks().values())}
        figure.update_xaxes(type="log", **ticks, **place)
    else:
        figure.update_xaxes(type="linear", **place)


def _at(one: Axis, picked: Any) -> float | str:
    """What plotly draws on such an axis: the number, or the choice's name."""
    return escape(label(picked)) if one.kind == "choice" else float(picked)
