"""How figures look and are written: plotly pages that need no network, matplotlib images without global state.

The calm sequential scale runs from paper to deep blue; its lightness falls evenly, so that it also reads in grey.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import StorageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2933"
MUTED = "#6b7885"
GRID = "#e4e9ee"
SEQUENTIAL = ("#f7fafc", "#d9e7f1", "#a9cae0", "#6ba3c8", "#38789f", "#1d5279", "#0f3554")
ACCENT = "#e3a066"
COLOURS = ("#2f6f9f", "#d98032", "#4b9b7a", "#a35a94", "#8a8f3c", "#c2565a", "#5c6bb0", "#7a6552")
"""One colour per series, in this order; from the ninth on they repeat."""


def page(title: str, width: int, height: int) -> Any:
    """An empty plotly figure in the project's manner. Title: plain text. Size: pixels."""
    _wait_for_pandas()
    import plotly.graph_objects as go

    figure = go.Figure()
    dress(figure, title, width, height)
    return figure


def subplots(**options: Any) -> Any:
    """An empty plotly figure with panels: `make_subplots` of plotly, which every figure with panels begins with."""
    _wait_for_pandas()
    from plotly.subplots import make_subplots

    return make_subplots(**options)


def _wait_for_pandas() -> None:
    """plotly takes pandas from sys.modules, half imported as it may be there by the tracker's thread: wait for that."""
    import pandas  # noqa: F401


def _wait_for_ipython() -> None:
    """matplotlib does the same with IPython, which MLflow imports where it is installed: wait for that."""
    if "IPython" in sys.modules:
        importlib.import_module("IPython")


def dress(figure: Any, title: str, width: int, height: int) -> None:
    """Give a plotly figure the project's fonts, colours and size (pixels)."""
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "title": {"font": {"color": MUTED, "size": 13}}}
    figure.update_layout(
        title={"text": escape(title), "font": {"size": 18, "color": INK}, "x": 0.02, "xanchor": "left"},
        font={"family": "Inter, Helvetica Neue, Arial, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        width=width,
        height=height,
        margin={"l": 80, "r": 40, "t": 80, "b": 70},
        hoverlabel={"bgcolor": "white", "bordercolor": GRID, "font": {"color": INK}},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)


def image(title: str, width: float, height: float) -> Figure:
    """An empty matplotlib figure (inches) with a title, made without pyplot and therefore safe in any thread."""
    from matplotlib.figure import Figure

    _wait_for_ipython()
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.14)  # type: ignore[union-attr, call-arg]
    figure.suptitle(title, x=0.03, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)
    return figure


def calm(axes: Axes, *, grid: bool = True) -> Axes:
    """Quiet axes, returned: no frame, and behind the data light horizontal lines unless `grid` is false."""
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.label.set(color=MUTED, fontsize=10)
    axes.yaxis.label.set(color=MUTED, fontsize=10)
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.8)
    return axes


def save_html(figure: Any, path: Path) -> None:
    """Write a plotly figure as one page that holds everything it needs. Raises StorageError."""
    quiet = {"displaylogo": False}
    text = figure.to_html(quiet, include_plotlyjs=True, include_mathjax=False, full_html=True, div_id=path.stem)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}", why=str(error)) from error


def as_part(figure: Any, *, library: bool) -> str:
    """A plotly figure as part of a page, with plotly itself where it is the page's first."""
    options = {"include_plotlyjs": library, "include_mathjax": False, "full_html": False}
    return str(figure.to_html({"displaylogo": False}, **options))


def save_png(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure as an image, drawn by Agg; equal figures give equal bytes. Raises StorageError."""
    _wait_for_ipython()
    try:
        figure.savefig(path, format="png", dpi=160, metadata={"Software": None})
    except OSError as error:
        raise StorageError(f"cannot write {path}", why=str(error)) from error


@dataclass(frozen=True)
class Series:
    """A line through `middle` with a whisker up to `high` at every `x`, the three equally long; positive values."""

    name: str
    x: list[float]
    middle: list[float]
    high: list[float]


def whisker_page(title: str, panels: Mapping[str, list[Series]], x_title: str, y_title: str) -> Any:
    """A plotly figure with one panel per entry, x on a logarithmic scale; a series keeps its colour in every panel."""
    figure = subplots(rows=1, cols=len(panels), subplot_titles=list(map(escape, panels)), horizontal_spacing=0.07)
    dress(figure, title, width=180 + 340 * len(panels), height=480)
    for column, lines in enumerate(panels.values(), start=1):
        for number, (line, colour) in enumerate(zip(lines, cycle(COLOURS), strict=False)):
            figure.add_scatter(
                name=escape(line.name),
                legendgroup=line.name,
                showlegend=column == 1,
                x=_beside(line.x, number, len(lines)),
                y=line.middle,
                customdata=list(zip(line.x, line.high, strict=True)),
                error_y={"array": _lengths(line), "arrayminus": [0.0] * len(line.x), "thickness": 1.2, "width": 3},
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 7},
                hovertemplate="%{customdata[0]}: %{y:.3g}, whisker to %{customdata[1]:.3g}",
                row=1,
                col=column,
            )
        ticks = sorted({x for line in lines for x in line.x})
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{x:g}" for x in ticks], col=column)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=y_title, col=1)
    return figure


def whisker_image(title: str, panels: Mapping[str, list[Series]], x_title: str, y_title: str) -> Figure:
    """The same as a matplotlib figure."""
    figure = image(title, 1.2 + 3.1 * len(panels), 4.2)
    for axes, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        calm(axes)
        for number, (line, colour) in enumerate(zip(lines, cycle(COLOURS), strict=False)):
            x, whisker = _beside(line.x, number, len(lines)), [[0.0] * len(line.x), _lengths(line)]
            axes.errorbar(
                x, line.middle, whisker, color=colour, marker="o", lw=1.6, elinewidth=1, capsize=2.5, label=line.name
            )
        ticks = sorted({x for line in lines for x in line.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_title)
        axes.set_title(name, fontsize=10, color=INK, parse_math=False)
    figure.axes[0].set_ylabel(y_title)
    handles, names = figure.axes[0].get_legend_handles_labels()
    look = {"frameon": False, "fontsize": 9, "labelcolor": INK}
    figure.legend(handles, names, loc="outside lower center", ncols=4, **look)
    return figure


def _beside(x: list[float], number: int, count: int) -> list[float]:
    """Move a series a little aside on a logarithmic axis, so that whiskers do not hide each other."""
    return [value * 1.05 ** (number - (count - 1) / 2) for value in x]


def _lengths(line: Series) -> list[float]:
    """How long each whisker is."""
    return [high - middle for high, middle in zip(line.high, line.middle, strict=True)]
