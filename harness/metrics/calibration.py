"""Calibration: does a model that says 80 % get 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness import figures
from harness.metric import Metric
from harness.predictions import Classified

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Calibration(Metric[Classified]):
    """`ece`, `brier` and `nll`; the last two need no bins.

    ece: sum over bins of (examples in bin / N) x |accuracy - mean confidence| (Guo 2017, arXiv:1706.04599, equation 3);
        biased for few examples (Kumar 2019, arXiv:1909.10155).
    brier: mean over examples of the sum over labels of (probability - is true label)^2, from 0 to 2 (Brier 1950).
    nll: mean over examples of -ln probability of the true label.
    """

    produces: ClassVar[tuple[str, ...]] = ("ece", "brier", "nll")
    less_is_better: ClassVar[tuple[str, ...]] = ("ece", "brier", "nll")

    bins: int = Field(default=15, ge=1)
    """Bins of equal width (low, high] over the confidence, which is the highest probability."""

    def compute(self, predictions: Classified) -> dict[str, float]:
        """The three numbers over all N examples."""
        found = reliability(predictions, self.bins)
        gaps = np.abs(found.accuracy - found.confidence)  # [bins]
        examples = np.arange(len(predictions.labels))
        difference = predictions.probabilities  # a fresh array: softmax is computed on each access
        difference[examples, predictions.labels] -= 1.0
        return {
            "ece": float(found.count @ gaps / found.count.sum()),
            "brier": float((difference**2).sum(axis=1).mean()),
            "nll": float(-_log_probabilities(predictions.scores)[examples, predictions.labels].mean()),
        }

    def write(self, predictions: Classified, folder: Path) -> None:
        """calibration.html and calibration.png: accuracy over confidence, and how many examples each bin holds."""
        bins = reliability(predictions, self.bins)
        ece = self.compute(predictions)["ece"]
        title = f"Reliability · ECE {ece:.3f} · {len(predictions.labels):,} examples"
        figures.save_html(_page(title, bins), folder / "calibration.html")
        figures.save_png(_image(title, bins), folder / "calibration.png")


@dataclass(frozen=True)
class Bins:
    """What each confidence bin holds; the means are 0 in empty bins. [bins] each"""

    count: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]


def reliability(predictions: Classified, bins: int) -> Bins:
    """Sort examples into bins; a confidence on an edge belongs to the bin below, so that 1.0 falls into the last."""
    confidence = predictions.probabilities.max(axis=1)  # [N]
    correct = (predictions.predicted == predictions.labels).astype(np.float64)  # [N]
    place = np.searchsorted(np.linspace(0.0, 1.0, bins + 1), confidence, side="left") - 1  # [N]
    count = np.bincount(place, minlength=bins)
    divisor = np.maximum(count, 1)
    return Bins(
        count,
        np.bincount(place, weights=correct, minlength=bins) / divisor,
        np.bincount(place, weights=confidence, minlength=bins) / divisor,
    )


def _log_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-softmax, finite where the softmax underflows to 0. [N, L]"""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def _bars(bins: Bins) -> list[tuple[str, str, NDArray[np.float64], NDArray[np.float64]]]:
    """Name, colour, bottom and height [bins] of what a bar is stacked from: the agreement, then the gap either way."""
    common = np.minimum(bins.accuracy, bins.confidence)
    return [
        ("accuracy", figures.SEQUENTIAL[3], np.zeros(len(common)), common),
        ("accuracy above confidence", figures.SEQUENTIAL[5], common, bins.accuracy - common),
        ("accuracy below confidence", figures.ACCENT, common, bins.confidence - common),
    ]


def _middles(bins: Bins) -> NDArray[np.float64]:
    """The middle of each bin. [bins]"""
    return (np.arange(len(bins.count)) + 0.5) / len(bins.count)


def _page(title: str, bins: Bins) -> Any:
    """The diagram for a browser: hover tells a bin's numbers."""
    figure = figures.subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.74, 0.26], vertical_spacing=0.06)
    figures.dress(figure, title, width=680, height=760)
    bar = {
        "x": _middles(bins).tolist(),
        "width": 1 / len(bins.count),
        "customdata": np.stack([bins.confidence, bins.accuracy, bins.count], axis=1).tolist(),
        "hovertemplate": "confidence %{customdata[0]:.3f}<br>accuracy %{customdata[1]:.3f}"
        "<br>%{customdata[2]} examples<extra></extra>",
        "marker_line": {"color": "white", "width": 1},
    }
    for name, colour, bottom, height in _bars(bins):
        figure.add_bar(name=name, y=height.tolist(), base=bottom.tolist(), marker_color=colour, row=1, col=1, **bar)
    figure.add_bar(y=bins.count.tolist(), marker_color=figures.SEQUENTIAL[2], showlegend=False, row=2, col=1, **bar)
    line = {"color": figures.MUTED, "dash": "dash", "width": 1.5}
    diagonal = {"name": "perfectly calibrated", "x": [0, 1], "y": [0, 1], "mode": "lines", "hoverinfo": "skip"}
    figure.add_scatter(**diagonal, line=line, row=1, col=1)
    figure.update_layout(barmode="overlay", legend={"x": 0.02, "y": 0.98, "bgcolor": "rgba(255, 255, 255, 0.8)"})
    figure.update_xaxes(range=[0, 1])
    figure.update_xaxes(title_text="Confidence", row=2)
    figure.update_yaxes(title_text="Accuracy", range=[0, 1], row=1)
    figure.update_yaxes(title_text="Examples", row=2)
    return figure


def _image(title: str, bins: Bins) -> Figure:
    """The diagram on paper."""
    figure = figures.image(title, 5.6, 6.4)
    upper, lower = (figures.calm(axes) for axes in figure.subplots(2, 1, sharex=True, height_ratios=[3, 1]))
    middles, width = _middles(bins), 1 / len(bins.count)
    for name, colour, bottom, height in _bars(bins):
        upper.bar(middles, height, width, bottom, color=colour, label=name, edgecolor="white", linewidth=0.8)
    upper.plot([0, 1], [0, 1], color=figures.MUTED, linestyle="--", linewidth=1.2, label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="Accuracy")
    upper.legend(frameon=False, fontsize=9, labelcolor=figures.INK, loc="upper left")
    lower.bar(middles, bins.count, width, color=figures.SEQUENTIAL[2], edgecolor="white", linewidth=0.8)
    lower.set(xlabel="Confidence", ylabel="Examples")
    return figure
