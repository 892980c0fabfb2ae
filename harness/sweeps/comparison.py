"""A study against its baseline: the trade-offs between objectives, and what a key does to the score."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from harness import figures
from harness.sweeps.axes import Axis, brief, label
from harness.sweeps.trial_figures import ARMS, Study, chosen, goal, hover, is_new, label_axis, lines, panels, value
from harness.sweeps.trials import Arm, Confirmed, TrialRecord

_CURVES = 3
_AIR = 0.06
_ASIDE = 0.025
"""Share of an axis by which configurations with the same value stand beside each other."""

Point = tuple[TrialRecord, list[float]]
"""A trial, and its value in every objective."""


def non_dominated(values: list[list[float]], directions: list[str]) -> list[bool]:
    """Which rows no other row beats: as good in every objective, better in one. [trials, objectives] -> [trials].

    Equal rows do not beat each other.
    """
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in directions])  # [objectives]
    points = np.array(values, dtype=np.float64).reshape(-1, len(signs)) * signs  # [trials, objectives]
    return [not ((points >= one).all(axis=1) & (points > one).any(axis=1)).any() for one in points]


def pareto(study: Study) -> Any:
    """One panel per pair of objectives, with the trials that no other one beats in all objectives marked."""
    directions = [direction for _, direction in study.objectives]
    known = _known(study)
    if len(directions) < 2 or not known:
        return None
    best = non_dominated([row for _, row in known], directions)
    front = [point for point, kept in zip(known, best, strict=True) if kept]
    rest = [point for point, kept in zip(known, best, strict=True) if not kept]
    pairs = list(combinations(range(len(directions)), 2))
    subtitle = (
        f"Large: {len(front)} of {len(known)} complete trials; every other one is worse in some objective, or equal."
    )
    figure, places = panels(len(pairs), "Trade-offs", subtitle, shared=False)
    for pair, place in zip(pairs, places, strict=True):
        if len(directions) == 2:
            _stairs(figure, front, directions[0])
        for (points, kept), arm in product(((rest, False), (front, True)), ARMS):
            mine = [point for point in points if point[0].arm == arm]
            if mine:
                _scatter(figure, study, mine, pair, kept, place)
        first, second = (goal(*study.objectives[number]) for number in pair)
        figure.update_xaxes(title_text=first, **place)
        figure.update_yaxes(title_text=second, **place)
    return figure


def _known(study: Study) -> list[Point]:
    """Complete trials that have a finite value in every objective."""
    known = []
    for trial, _ in study.scored(*ARMS):
        row = [one for number in range(len(study.objectives)) if (one := value(trial, number)) is not None]
        if len(row) == len(study.objectives):
            known.append((trial, row))
    return known


def _stairs(figure: Any, front: list[Point], direction: str) -> None:
    """The border of what two objectives have reached together."""
    corners = sorted(row for _, row in front)
    figure.add_scatter(
        name="border of what was reached",
        mode="lines",
        line={"color": figures.MUTED, "width": 1.2, "dash": "dot", "shape": "hv" if direction == "minimize" else "vh"},
        x=[x for x, _ in corners],
        y=[y for _, y in corners],
        hoverinfo="skip",
    )


def _scatter(
    figure: Any, study: Study, points: list[Point], pair: tuple[int, int], kept: bool, place: dict[str, int]
) -> None:
    """The trials of one arm that are on the front, or are not."""
    arm = points[0][0].arm
    name = f"{arm}, not beaten" if kept else arm
    line = {"color": figures.INK if kept else "white", "width": 1.2}
    figure.add_scatter(
        name=name,
        legendgroup=name,
        showlegend=is_new(figure, name),
        mode="markers",
        marker={"color": ARMS[arm], "size": 12 if kept else 8, "opacity": 1 if kept else 0.55, "line": line},
        x=[row[pair[0]] for _, row in points],
        y=[row[pair[1]] for _, row in points],
        hovertext=[hover(trial, study) for trial, _ in points],
        hoverinfo="text",
        **place,
    )


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t interval (Student 1908): mean ± t(0.975, n - 1) · sd / sqrt(n).

    Of one value, which tells no spread, all three are that value.
    """
    from scipy import stats

    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Mean:
    """A configuration that was trained again: its mean over fresh seeds, and the interval around it."""

    of: Confirmed
    seeds: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = f" ({brief(self.low)} to {brief(self.high)})" if self.seeds > 1 else ""
        return f"{brief(self.mean)}{ends} on {self.seeds} fresh seed{'s' if self.seeds > 1 else ''}"


def means(study: Study, arm: Arm) -> list[Mean]:
    """The confirmed configurations of an arm that have a finite value, best mean first."""
    finite = [(one, [score for score in one.values.values() if math.isfinite(score)]) for one in study.confirmed]
    found = [Mean(one, len(scores), *interval(scores)) for one, scores in finite if one.arm == arm and scores]
    return sorted(found, key=lambda one: one.mean, reverse=study.upwards)


def curve(study: Study) -> Any:
    """Score against the most important keys that are ordered, beside the baseline, one panel per key.

    Faint dots: search trials. Diamonds: confirmed configurations, mean over fresh seeds and its interval. Band: the
    best confirmed baseline configuration; a line instead: the best baseline trial, where none was confirmed.
    """
    scored, again = study.scored("search"), means(study, "search")
    axes = study.axes([trial.params for trial, _ in scored] + [one.of.params for one in again])
    ranked = sorted(axes, key=lambda one: -study.shares.get(one.key, 0.0))
    shown = [one for one in ranked if one.ordered][:_CURVES]
    if not shown:
        return None
    level = _Level.of(study)
    bounds, outside = _bounds(study, [found for _, found in scored], again, level)
    figure, places = panels(len(shown), f"{study.metric} against what matters most", f"{level.text}{outside}")
    for one, place in zip(shown, places, strict=True):
        _dots(figure, study, one.as_number(), scored, place)
        _diamonds(figure, one.as_number(), again, place)
        level.draw(figure, place)  # plotly leaves out what is drawn over a panel without data
        label_axis(figure, one.as_number(), place, [trial.params for trial, _ in scored])
        if one.kind == "choice":
            ticks = {"tickvals": list(one.numbers), "ticktext": list(map(label, one.numbers))}
            figure.update_xaxes(**ticks, **place)
    figure.update_yaxes(range=bounds)
    figure.update_yaxes(title_text=study.goal, col=1)
    return figure


@dataclass(frozen=True)
class _Level:
    """What the search has to beat: low = high where there is a line and no band; empty: nothing."""

    text: str
    name: str = ""
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, study: Study) -> _Level:
        """The best confirmed baseline configuration, else the best baseline trial."""
        again, best = means(study, "baseline"), study.best("baseline")
        if again:
            top = again[0]
            text = f"Baseline: trial {top.of.number}, {top}."
            return cls(text, "baseline, confirmed: mean", top.mean, top.low, top.high)
        if best:
            text = f"Baseline: the search value of trial {best[0].number}, {brief(best[1])}, not confirmed."
            return cls(text, "baseline, best of the search", best[1], best[1], best[1])
        return cls("No baseline trial was completed.")

    def draw(self, figure: Any, place: dict[str, int]) -> None:
        """A line, and the band around it."""
        if self.name:
            colour, first = ARMS["baseline"], place == {"row": 1, "col": 1}
            line = {"color": colour, "width": 2, "dash": "dash"}  # in the layer "between" browsers show no shape at all
            figure.add_hline(y=self.mean, line=line, layer="below", name=self.name, showlegend=first, **place)
            if self.low < self.high:
                band = {"fillcolor": colour, "opacity": 0.18, "line_width": 0, "layer": "below"}
                name = "baseline, confirmed: 95 % t interval"
                figure.add_hrect(y0=self.low, y1=self.high, name=name, showlegend=first, **band, **place)


def _bounds(study: Study, dots: list[float], again: list[Mean], level: _Level) -> tuple[list[float] | None, str]:
    """Range of the vertical axis, and a sentence on the dots that lie outside.

    A dot of the worst quarter is cut off where it lies farther from the others than they lie from each other.
    """
    ends = [end for one in again for end in (one.low, one.high)] + [level.low, level.high] * bool(level.name)
    kept = sorted(dots, reverse=study.upwards)[: math.ceil(0.75 * len(dots))] + ends
    span = max(kept) - min(kept)
    near = [one for one in dots + ends if min(kept) - span <= one <= max(kept) + span]
    cut = len(dots + ends) - len(near)
    if cut == 0 or span == 0:
        return None, ""
    air = _AIR * (max(near) - min(near))
    return [min(near) - air, max(near) + air], f" Beyond the axis: {cut} of {len(dots)} search trials."


def _dots(figure: Any, study: Study, one: Axis, scored: list[tuple[TrialRecord, float]], place: dict[str, int]) -> None:
    having = [(trial, found) for trial, found in scored if one.key in trial.params]
    figure.add_scatter(
        name="search trials",
        legendgroup="trials",
        showlegend=is_new(figure, "trials"),
        mode="markers",
        marker={"color": ARMS["search"], "size": 8, "opacity": 0.35},
        x=[trial.params[one.key] for trial, _ in having],
        y=[found for _, found in having],
        hovertext=[hover(trial, study) for trial, _ in having],
        hoverinfo="text",
        **place,
    )


def _diamonds(figure: Any, one: Axis, again: list[Mean], place: dict[str, int]) -> None:
    having = [mean for mean in again if one.key in mean.of.params]
    if having:
        figure.add_scatter(
            name="search, confirmed: mean, 95 % t interval",
            legendgroup="confirmed",
            showlegend=is_new(figure, "confirmed"),
            mode="markers",
            marker={"symbol": "diamond", "color": ARMS["search"], "size": 11, "line": {"color": "white", "width": 1}},
            error_y={"array": [mean.high - mean.mean for mean in having], "thickness": 1.6, "width": 4},
            x=_beside(one, [mean.of.params[one.key] for mean in having]),
            y=[mean.mean for mean in having],
            hovertext=[_says(mean) for mean in having],
            hoverinfo="text",
            **place,
        )


def _says(mean: Mean) -> str:
    """What a confirmed configuration says of itself under the pointer."""
    head = [f"{mean.of.arm} {mean.of.number}, {mean}", f"in the search: {brief(mean.of.searched)}"]
    return lines([*head, *chosen(mean.of.params)])


def _beside(one: Axis, values: list[float]) -> list[float]:
    """Where configurations are drawn: those with the same value beside each other, so that no interval hides one."""
    places = [one.place(number) for number in values]
    step = _ASIDE * (one.place(one.numbers[-1]) - one.place(one.numbers[0]))
    before = [places[:number].count(place) for number, place in enumerate(places)]
    moved = [at + step * (rank - (places.count(at) - 1) / 2) for at, rank in zip(places, before, strict=True)]
    return [10**at for at in moved] if one.kind == "log" else moved
