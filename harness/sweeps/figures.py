"""The pages of a study: which there are, which keys matter, and how all keys together lead to the value."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from harness import figures
from harness.sweeps import comparison, trial_figures
from harness.sweeps.axes import Axis, axis, brief, short
from harness.sweeps.trial_figures import ARMS, Study, dress
from harness.sweeps.trials import Confirmed, TrialRecord

_MARGIN = 0.15
"""How far below the lowest value "none" stands, as a share of the axis."""
_CLOSE = 0.06
"""Closer than this to a tick, as a share of the axis, an end of it gets none of its own."""


def write(
    folder: Path,
    trials: list[TrialRecord],
    confirmed: list[Confirmed],
    objectives: list[tuple[str, str]],
    scales: dict[str, str],
    importances: dict[str, float],
) -> list[str]:
    """Write the pages that have something to show into a folder that exists, and return their file names.

    objectives: (metric, "maximize" or "minimize") in the order of the trials' values; scales: dotted key -> "log",
    "linear" or "choice"; importances: dotted key -> share. Raises StorageError.
    """
    study = Study(trials, confirmed, objectives, scales, importances)
    written = []
    for name, draw in _PAGES.items():
        figure = draw(study) if objectives else None
        if figure is not None:
            figures.save_html(figure, folder / name)
            written.append(name)
    return written


def importances(study: Study) -> Any:
    """Horizontal bars, the longest on top; None with fewer than two keys."""
    shares = sorted((share, key) for key, share in study.shares.items())
    if len(shares) < 2:
        return None
    height = 170 + 34 * len(shares)
    figure = figures.page("", 820, height)
    dress(figure, "Which key matters", f"Share of the differences in {study.metric} that it explains", 820, height)
    figure.add_bar(
        orientation="h",
        x=[share for share, _ in shares],
        y=[escape(key) for _, key in shares],
        text=[f"{share:.0%}" for share, _ in shares],
        textposition="outside",
        cliponaxis=False,
        marker_color=ARMS["search"],
        hoverinfo="skip",
    )
    figure.update_xaxes(tickformat=".0%", range=[0, 1.12 * (shares[-1][0] or 1)], title_text="Importance")
    figure.update_yaxes(type="category", automargin=True)
    return figure


def parallel(study: Study) -> Any:
    """One line per complete trial through its keys to its value, the darker the better; drag along an axis to select.

    A trial that lacks a key passes its axis at a tick "none", below the lowest value.
    """
    scored = study.scored(*ARMS)
    axes = study.axes([trial.params for trial, _ in scored])
    if not axes:
        return None
    found = [one for _, one in scored]
    dimensions = [_dimension(one, [trial.params for trial, _ in scored]) for one in axes]
    if len({trial.arm for trial, _ in scored}) == 2:
        arms = {"label": "arm", "tickvals": [0, 1], "ticktext": list(ARMS), "range": [-_MARGIN, 1 + _MARGIN]}
        dimensions.insert(0, arms | {"values": [list(ARMS).index(trial.arm) for trial, _ in scored]})
    last = _dimension(axis(study.metric, "linear", found), [{study.metric: one} for one in found])
    width = 260 + 190 * len(dimensions)
    figure = figures.page("", width, 600)
    title, subtitle = f"{study.metric} and what led to it", "One line per complete trial, the darker the better."
    dress(figure, title, f"{subtitle} Drag along an axis to select; “none”: the trial lacks the key.", width, 600)
    ranks = [sorted(found, reverse=not study.upwards).index(one) for one in found]
    line = {"color": ranks, "colorscale": list(figures.SEQUENTIAL[2:]), "showscale": False}
    figure.add_parcoords(dimensions=[*dimensions, last], line=line, labelfont={"size": 13}, tickfont={"size": 12})
    figure.update_layout(margin={"t": 150, "l": 120, "r": 90})
    return figure


def _dimension(one: Axis, params: list[dict[str, Any]]) -> dict[str, Any]:
    """One vertical axis; where configurations lack the key it begins with a tick "none"."""
    places = [one.place(each[one.key]) if one.key in each else None for each in params]
    known = [place for place in places if place is not None]
    low, high = min(known), max(known)
    ticks = one.ticks()
    if one.kind != "choice":  # the axis is drawn from the first tick to the last one: it should reach all values
        far = [end for end in (low, high) if min(abs(end - at) for at in ticks) > _CLOSE * (high - low)]
        ticks |= {end: brief(10**end if one.kind == "log" else end) for end in far}
    below = low - _MARGIN * (high - low or 1)
    if len(known) < len(places):
        ticks = {below: "none", **ticks}
        known.append(below)
    return {
        "label": escape(short(one.key, 26)),
        "values": [below if place is None else place for place in places],
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),  # taken as it is, unlike a label, which plotly reads as HTML
        "range": _around(known),
    }


def _around(values: list[float]) -> list[float]:
    """From the lowest to the highest with a little air, also where they are one."""
    low, high = min(values), max(values)
    air = 0.04 * (high - low) or 0.5
    return [low - air, high + air]


_PAGES: dict[str, Callable[[Study], Any]] = {
    "history.html": trial_figures.history,
    "learning.html": trial_figures.learning,
    "importances.html": importances,
    "slices.html": trial_figures.slices,
    "parallel.html": parallel,
    "pareto.html": comparison.pareto,
    "curve.html": comparison.curve,
}
"""File -> what draws it: a plotly figure, or None where there is nothing to show."""
