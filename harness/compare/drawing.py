"""Pictures of a comparison: differences with their intervals, scores against costs, matrices, classes, calibration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from html import escape
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import figures
from harness.compare.comparison import Comparison, measured_latency
from harness.compare.runs import Predictions
from harness.compare.systems import System
from harness.statistics import significance

_MOST_MATRICES = 6
_BINS = 10


def differences(comparison: Comparison) -> Any:
    """Each system minus the reference: intervals over seeds, and over seeds and items; None: there is no pair."""
    pairs = [pair for pair in comparison.pairs if len(pair.seeds) > 1]
    if not pairs:
        return None
    height = 150 + 46 * len(pairs)
    figure = figures.page(f"{_metric(comparison)}: difference from {comparison.reference.name}", 900, height)
    rows = list(range(len(pairs)))
    for name, colour, width, ends in (
        ("95 %, seeds and items", figures.SEQUENTIAL[2], 8, [pair.interval for pair in pairs]),
        ("95 %, seeds", figures.COLOURS[0], 2.5, [(pair.low, pair.high) for pair in pairs]),
    ):
        x = [None if value is not None and math.isnan(value) else value for of in ends for value in (*of, None)]
        y = [value for row in rows for value in (row, row, None)]
        figure.add_scatter(x=x, y=y, mode="lines", line={"color": colour, "width": width}, name=name, hoverinfo="skip")
    figure.add_scatter(
        x=[pair.mean for pair in pairs],
        y=rows,
        mode="markers",
        marker={"color": figures.INK, "size": 9},
        name="mean",
        customdata=[
            [len(one.seeds), "" if math.isnan(one.holm) else f", p = {one.holm:.3f}", one.verdict] for one in pairs
        ],
        hovertemplate="%{x:+.4f}, n = %{customdata[0]}%{customdata[1]}: %{customdata[2]}<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": figures.MUTED, "dash": "dot"})
    ticks = {"tickvals": rows, "ticktext": [escape(pair.system) for pair in pairs], "autorange": "reversed"}
    figure.update_yaxes(showgrid=False, automargin=True, **ticks)
    known = [end for pair in pairs for end in (pair.mean, *pair.interval) if not math.isnan(end)]
    far = 1.05 * max(map(abs, known)) or 1.0
    figure.update_xaxes(title_text=f"difference in {_metric(comparison)}", range=[-far, far])
    return figure


def score_against_parameters(comparison: Comparison) -> Any:
    """Score with its interval over seeds, against trainable parameters."""
    points = [(system, float(system.first.trainable)) for system in comparison.systems]
    figure = _scores(comparison, "Score against trainable parameters", {"": points})
    figure.update_xaxes(type="log", title_text="trainable parameters")
    return figure


def score_against_convergence(comparison: Comparison) -> Any:
    """Score against the seconds of training up to the checkpoint that was kept, mean over seeds; None: not known."""
    wanted = ("best/step", "train/steps", "time/train_s")
    points = [
        (system, statistics.fmean(best / steps * seconds for best, steps, seconds in known))
        for system in comparison.systems
        if (known := [[entry.scores[key] for key in wanted] for entry in system.entries.values()
                      if all(key in entry.scores for key in wanted)])
    ]  # fmt: skip
    if not points:
        return None
    figure = _scores(comparison, "Score against time to the best checkpoint", {"": points})
    figure.update_xaxes(title_text="seconds of training", rangemode="tozero")
    return figure


def score_against_latency(comparison: Comparison) -> Any:
    """Score against the median latency, merged where a method merges; None: latency was not measured."""
    panels = {}
    for name, is_merged in (("as trained", False), ("merged", True)):
        times = ((one, measured_latency(one, is_merged, comparison.shape)[:1]) for one in comparison.systems)
        panels[name] = [(system, found[0]) for system, found in times if found]
    if not any(panels.values()) or comparison.shape is None:
        return None
    figure = _scores(comparison, "Score against latency", {name: of for name, of in panels.items() if of})
    batch, length = comparison.shape
    figure.update_xaxes(title_text=f"p50 in ms, batch {batch}, {length} tokens", rangemode="tozero")
    return figure


def _scores(comparison: Comparison, title: str, groups: dict[str, list[tuple[System, float]]]) -> Any:
    """One point per system, with Student's interval over seeds; groups differ in their markers."""
    figure = figures.page(title, 900, 480)
    colours = dict(zip((system.name for system in comparison.systems), cycle(figures.COLOURS), strict=False))
    for symbol, (group, points) in zip(("circle", "diamond-open"), groups.items(), strict=False):
        for system, x in points:
            found = significance.mean_interval(system.values(comparison.metric))
            half = 0.0 if math.isnan(found.low) else found.mean - found.low
            figure.add_scatter(
                x=[x],
                y=[found.mean],
                error_y={"array": [half], "thickness": 1.5, "width": 4},
                mode="markers",
                marker={"color": colours[system.name], "symbol": symbol, "size": 11},
                name=escape(f"{system.name}, {group}" if group else system.name),
                hovertemplate=f"%{{x:,.4g}}: %{{y:.4f}}, n = {found.n}",
            )
    figure.update_yaxes(title_text=f"{_metric(comparison)}, 95 % over seeds")
    return figure


def learning_curves(comparison: Comparison) -> Any:
    """Loss and validation score by step: the mean over seeds, and the range of the seeds, as far as all of them went.

    None: no run has written its curves down.
    """
    keys = ["train/loss", f"validation/{_metric(comparison)}"]
    known = {key: [(one, of) for one in comparison.systems if (of := curve(one, key))] for key in keys}
    shown = [key for key in keys if known[key]]
    if not shown:
        return None
    figure = figures.subplots(rows=1, cols=len(shown), subplot_titles=shown, horizontal_spacing=0.1)
    figures.dress(figure, "Learning curves: mean and range of the seeds", 140 + 480 * len(shown), 440)
    colours = dict(zip((one.name for one in comparison.systems), cycle(figures.COLOURS), strict=False))
    for column, key in enumerate(shown, start=1):
        for system, of in known[key]:
            place = {"legendgroup": system.name, "row": 1, "col": column}
            colour, band = colours[system.name], [*((x, high) for x, _, _, high in of)]
            band += [(x, low) for x, _, low, _ in reversed(of)]
            x, y = zip(*band, strict=True)
            look = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": colour, "opacity": 0.18}
            figure.add_scatter(x=x, y=y, **look, hoverinfo="skip", showlegend=False, **place)
            figure.add_scatter(
                x=[step for step, *_ in of],
                y=[mean for _, mean, _, _ in of],
                mode="lines+markers" if len(of) <= 40 else "lines",
                line={"color": colour, "width": 2},
                marker={"size": 5},
                name=escape(system.name),
                showlegend=key == next(one for one in shown if any(system is rival for rival, _ in known[one])),
                **place,
            )
    figure.update_xaxes(title_text="step")
    return figure


def curve(system: System, key: str) -> list[tuple[int, float, float, float]]:
    """Step, mean, lowest and highest value over the seeds, at the steps that all of them have; [] without any."""
    seeds = [dict(entry.curves.get(key, [])) for entry in system.entries.values()]
    common = sorted(set.intersection(*map(set, seeds)))
    values = [[one[step] for one in seeds] for step in common]
    return [(step, sum(of) / len(of), min(of), max(of)) for step, of in zip(common, values, strict=True)]


def matrices(comparison: Comparison) -> Any:
    """Confusion matrices side by side, means over seeds in percent of each true label; below, minus the reference."""
    known = [(one.name, shares) for one in comparison.systems if (shares := confusion(one)) is not None]
    if not known or len(known) > _MOST_MATRICES:
        return None
    base = dict(known).get(comparison.reference.name)
    names = next(of[0].label_names for one in comparison.systems if (of := _predictions(one)))
    rows = 2 if base is not None and len(known) > 1 else 1
    titles = [*(name for name, _ in known), *(f"{name} - {comparison.reference.name}" for name, _ in known)]
    titles = [escape(title) for title in titles[: rows * len(known)]]
    figure = figures.subplots(rows=rows, cols=len(known), subplot_titles=titles, vertical_spacing=0.16)
    figures.dress(figure, "Confusion matrices, % of true label", 180 + 280 * len(known), 130 + 290 * rows)
    look = {"x": names, "y": names, "xgap": 2, "ygap": 2, "showscale": False}
    for column, (name, shares) in enumerate(known, start=1):
        text = [[f"{value:.0f}" for value in row] for row in shares]
        scale = {"zmin": 0, "zmax": 100, "colorscale": list(figures.SEQUENTIAL)}
        figure.add_heatmap(z=shares.tolist(), text=text, texttemplate="%{text}", **scale, **look, row=1, col=column)
        if rows == 2 and base is not None and name != comparison.reference.name:
            apart = shares - base
            text = [[f"{value:+.1f}" for value in row] for row in apart]
            scale = {"zmid": 0, "colorscale": "RdBu", "zmin": -30, "zmax": 30}
            figure.add_heatmap(z=apart.tolist(), text=text, texttemplate="%{text}", **scale, **look, row=2, col=column)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text="true label", col=1)
    figure.update_xaxes(title_text="predicted label", showgrid=False, row=rows)
    return figure


def confusion(system: System) -> NDArray[np.float64] | None:
    """Percent of each true label, mean over seeds; None without predictions. [L, L]"""
    if not (known := _predictions(system)):
        return None
    size, found = len(known[0].label_names), []
    for one in known:
        counts = np.bincount(one.labels * size + one.predicted, minlength=size * size).reshape(size, size)
        found.append(100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def classes(comparison: Comparison) -> Any:
    """F1 of each label, with Student's interval over seeds; None without predictions."""
    known = [(one.name, _predictions(one)) for one in comparison.systems]
    known = [(name, of) for name, of in known if of]
    if not known:
        return None
    figure = figures.page("F1 of each label", 900, 440)
    for (name, of), colour in zip(known, cycle(figures.COLOURS), strict=False):
        scores = np.array([f1_by_label(one) for one in of])  # [S, L]
        intervals = [significance.mean_interval(column) for column in scores.T]
        figure.add_bar(
            x=[escape(label) for label in of[0].label_names],
            y=[one.mean for one in intervals],
            error_y={"array": [0.0 if math.isnan(one.low) else one.mean - one.low for one in intervals]},
            name=escape(name),
            marker_color=colour,
        )
    figure.update_yaxes(title_text="F1, 95 % over seeds", range=[0, 1])
    figure.update_layout(barmode="group", bargap=0.25)
    return figure


def f1_by_label(one: Predictions) -> list[float]:
    """2TP / (2TP + FP + FN) of each label, 0 where it is neither there nor predicted. [L]"""
    found = []
    for label in range(len(one.label_names)):
        actual, claimed = one.labels == label, one.predicted == label
        total = int(actual.sum() + claimed.sum())
        found.append(2 * int((actual & claimed).sum()) / total if total else 0.0)
    return found


def calibration(comparison: Comparison) -> Any:
    """Accuracy against confidence in ten bins, all seeds together; None without confidences."""
    known = [(one.name, [of for of in _predictions(one) if of.confidence is not None]) for one in comparison.systems]
    if not any(of for _, of in known):
        return None
    figure = figures.page("Calibration", 900, 480)
    line = {"color": figures.MUTED, "dash": "dash", "width": 1.5}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="perfect", hoverinfo="skip")
    for (name, of), colour in zip(known, cycle(figures.COLOURS), strict=False):
        if of:
            confidence = np.concatenate([one.confidence for one in of if one.confidence is not None])
            correct = np.concatenate([one.labels == one.predicted for one in of])
            place = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
            kept = [number for number in range(_BINS) if (place == number).any()]
            figure.add_scatter(
                x=[float(confidence[place == number].mean()) for number in kept],
                y=[float(correct[place == number].mean()) for number in kept],
                customdata=[int((place == number).sum()) for number in kept],
                hovertemplate="%{customdata:,} predictions: %{y:.3f} right at %{x:.3f}",
                mode="lines+markers",
                line={"color": colour},
                name=escape(name),
            )
    figure.update_xaxes(title_text="mean confidence of a bin", range=[0, 1])
    figure.update_yaxes(title_text="share that is right", range=[0, 1])
    return figure


def _predictions(system: System) -> list[Predictions]:
    return [entry.predictions for entry in system.entries.values() if entry.predictions is not None]


def _metric(comparison: Comparison) -> str:
    return comparison.metric.partition("/")[2]


PICTURES: tuple[Callable[[Comparison], Any], ...] = (
    differences,
    score_against_parameters,
    score_against_convergence,
    score_against_latency,
    learning_curves,
    classes,
    matrices,
    calibration,
)
"""In the order of a page; each gives None where there is nothing to show."""


def disagreements(comparison: Comparison, most: int = 12) -> tuple[list[str], list[list[str]]]:
    """Items on which most seeds of the systems differ: id, text, true label, and how often each system was right.

    Columns and rows, the largest spread of the shares of seeds that are right first; only where texts are known.
    """
    known = [(one, _predictions(one)) for one in comparison.systems]
    known = [(one, of) for one, of in known if of and of[0].texts]
    columns = ["", "text", "true label", *(one.name for one, _ in known)]
    if len(known) < 2:
        return columns, []
    right = np.array([np.mean([one.labels == one.predicted for one in of], axis=0) for _, of in known])  # [systems, N]
    first = known[0][1][0]
    spread = right.max(axis=0) - right.min(axis=0)
    chosen = [int(i) for i in np.argsort(-spread, kind="stable")[:most] if spread[i] > 0]
    rows = []
    for item in chosen:
        shares = [f"{round(share * len(of))}/{len(of)}" for share, (_, of) in zip(right[:, item], known, strict=True)]
        rows.append([first.ids[item], first.texts[item], first.label_names[first.labels[item]], *shares])
    return columns, rows
