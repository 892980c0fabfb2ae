"""A matrix of counts as a figure: what is true by rows, what was predicted by columns, shaded by share of the row."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS_WITH_NUMBERS = 24


@dataclass(frozen=True)
class Matrix:
    """What is drawn. L names."""

    title: str
    names: list[str]
    """Of the rows, and of the columns. [L]"""
    counts: NDArray[np.int64]
    """[L, L]"""
    what: str
    """What a name is the name of."""
    units: str
    """What is counted."""


def write(of: Matrix, place: Path) -> None:
    """`place`.html (hover, no network needed) and `place`.png."""
    figures.save_html(_page(of), place.with_name(f"{place.name}.html"))
    figures.save_png(_image(of), place.with_name(f"{place.name}.png"))


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Percent of each row; 0 in rows without examples. [L, L]"""
    return np.asarray(100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), dtype=np.float64)


def _cell(count: int, share: float, newline: str) -> str:
    """The count and, unless nothing is there, its percent of the row."""
    return f"{count:,}{newline}{share:.0f} %" if count else "0"


def _page(of: Matrix) -> Any:
    """For a browser; columns stand by number, so that equal names stay apart."""
    counts, shares, size = of.counts, _shares(of.counts), len(of.names)
    plain = [escape(name) for name in of.names]
    edge = min(1000, max(360, 110 * size))
    figure = figures.page(of.title, width=edge + 280, height=edge + 170)
    figure.add_heatmap(
        z=shares.tolist(),
        zmin=0,
        zmax=100,
        colorscale=list(figures.SEQUENTIAL),
        text=[[_cell(*cell, "<br>") for cell in zip(*row, strict=True)] for row in zip(counts, shares, strict=True)],
        texttemplate="%{text}" if size <= _MOST_LABELS_WITH_NUMBERS else None,
        hovertext=[[f"true <b>{true}</b><br>predicted <b>{guess}</b>" for guess in plain] for true in plain],
        customdata=counts.tolist(),
        hovertemplate=f"%{{hovertext}}<br>%{{customdata:,}} {of.units}<br>%{{z:.1f}} % of row<extra></extra>",
        xgap=2,
        ygap=2,
        colorbar={"title": {"text": "% of row", "side": "right"}, "thickness": 12, "outlinewidth": 0},
    )
    ticks = {"tickvals": list(range(size)), "ticktext": plain, "showgrid": False, "automargin": True}
    figure.update_xaxes(title_text=f"Predicted {of.what}", constrain="domain", **ticks)
    figure.update_yaxes(
        title_text=f"True {of.what}", autorange="reversed", scaleanchor="x", constrain="domain", **ticks
    )
    return figure


def _image(of: Matrix) -> Figure:
    """On paper: light ink on dark cells and the reverse, numbers while they can be read."""
    from matplotlib.colors import LinearSegmentedColormap

    counts, shares, size = of.counts, _shares(of.counts), len(of.names)
    edge = min(15.0, max(3.6, 0.85 * size))
    figure = figures.image(of.title, edge + 2.2, edge + 1.3)
    axes = figures.calm(figure.subplots(), grid=False)
    colours = LinearSegmentedColormap.from_list("calm", list(figures.SEQUENTIAL))
    mesh = axes.pcolormesh(shares, cmap=colours, vmin=0, vmax=100, edgecolors="white", linewidth=min(1.5, 24 / size))
    axes.set(aspect="equal", xlabel=f"Predicted {of.what}", ylabel=f"True {of.what}")
    axes.invert_yaxis()
    _name_ticks(axes, of.names, room=edge / size)
    for row, column in np.ndindex(counts.shape if size <= _MOST_LABELS_WITH_NUMBERS else (0, 0)):
        count, share = int(counts[row, column]), float(shares[row, column])
        ink = figures.MUTED if count == 0 else "white" if share > 50 else figures.INK
        text = _cell(count, share, "\n")
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=9)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=5 * edge, label="% of row")
    figures.calm(bar.ax, grid=False)
    return figure


def _name_ticks(axes: Axes, names: list[str], room: float) -> None:
    """Write label names along both axes, slanted where `room` (inches per label) is too narrow for the longest."""
    middles = np.arange(len(names)) + 0.5
    size = min(9.0, 60 * room)
    axes.set_yticks(middles, names, parse_math=False, fontsize=size)
    axes.set_xticks(middles, names, parse_math=False, fontsize=size)
    if max(map(len, names)) * size * 0.6 / 72 > room:
        axes.tick_params(axis="x", labelrotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
