"""Where results of a benchmark go: the terminal, mlruns/benchmarks, and a run of MLflow's experiment `benchmarks`.

A benchmark repeats its measurement in rounds that hold every variant once, so that a machine that slows down slows all
of them. What it shows is the median over the rounds with the smallest and the largest; a ratio is one of two variants
of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from harness import figures
from harness.machine import device
from harness.markdown import markdown_table
from harness.tracking import stores

PROJECT = Path(__file__).resolve().parent.parent
OUTPUT = PROJECT / "mlruns"


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, the smallest and the largest."""

    middle: float
    low: float
    high: float

    def text(self, places: int = 2) -> str:
        """Such as `1.70 (1.57 to 1.85)`; of one round `1.70`."""
        around = f" ({self.low:.{places}f} to {self.high:.{places}f})" if self.low < self.high else ""
        return f"{self.middle:.{places}f}{around}"


def spread(values: Iterable[float]) -> Spread:
    """Of the measurements of all rounds."""
    measured = list(values)
    return Spread(statistics.median(measured), min(measured), max(measured))


def ratios(values: Iterable[float], references: Iterable[float]) -> Spread:
    """Of the ratios within each round, which is not the ratio of two medians."""
    return spread(value / reference for value, reference in zip(values, references, strict=True))


def parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The command line of a benchmark; `quick` says what `--quick` does."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def bars(
    title: str, unit: str, series: Mapping[str, Mapping[str, Spread]], must: Mapping[str, float] | None = None
) -> Any:
    """A plotly figure with a bar to each median and its range, one row per name, one colour per series.

    Args:
        title: of the figure.
        unit: what is shown, beside the axis.
        series: name -> row -> what was measured.
        must: row -> the value to keep, shown as a stroke.
    """
    size = sum(len(rows) for rows in series.values())
    figure = figures.page(title, 900, 180 + 34 * size)
    for (name, rows), colour in zip(series.items(), cycle(figures.COLOURS), strict=False):
        found = list(rows.values())
        whiskers = {"array": [one.high - one.middle for one in found], "color": figures.INK, "thickness": 1.2}
        whiskers |= {"arrayminus": [one.middle - one.low for one in found]}
        x, y = [one.middle for one in found], list(rows)
        figure.add_bar(x=x, y=y, name=name, orientation="h", error_x=whiskers, marker={"color": colour})
    if must:
        stroke = {"symbol": "line-ns", "size": 22, "line": {"width": 3, "color": figures.INK}}
        figure.add_scatter(x=list(must.values()), y=list(must), mode="markers", name="must", marker=stroke)
    figure.update_xaxes(title_text=unit, rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def publish(name: str, rows: list[dict[str, str]], measured: dict[str, Any], figure: Any, note: str = "") -> None:
    """Print the table, write it with the raw numbers and the figure, and log all of it.

    Args:
        name: of the benchmark, and of its files.
        rows: what a person reads; all have the same keys.
        measured: every number behind them; MLflow gets those that are not in lists.
        figure: a plotly figure.
        note: a line below the table.
    """
    told = facts()
    text = f"{markdown_table(list(rows[0]), [list(row.values()) for row in rows])}\n\n{note}".rstrip()
    print(f"\n{text}", flush=True)
    folder = OUTPUT / "benchmarks" / name
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(told | measured, indent=2, default=asdict)
    (folder / f"{name}.json").write_text(f"{content}\n", encoding="utf-8")
    heading = ", ".join(f"{key} {value}" for key, value in told.items())
    (folder / f"{name}.md").write_text(f"{heading}\n\n{text}\n", encoding="utf-8")
    figures.save_html(figure, folder / f"{name}.html")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    tracker = stores.start(stores.Tracking(), OUTPUT, "benchmarks", f"{name}-{stamp}", note=text)
    tracker.open()
    tracker.params(told)
    tracker.metrics(dict(numbers(measured)))
    tracker.artifacts(folder)
    tracker.finish()
    print(f"\n{folder}, and in MLflow as benchmarks/{name}-{stamp}{tracker.problem and f' ({tracker.problem})'}")


def numbers(measured: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What is not in a list, by its path: `ratio/awp sam` and its ends `ratio/awp sam/low` and `…/high`."""
    for key, value in measured.items():
        if isinstance(value, Spread):
            yield from ((key, value.middle), (f"{key}/low", value.low), (f"{key}/high", value.high))
        elif isinstance(value, Mapping):
            yield from ((f"{key}/{inner}", number) for inner, number in numbers(value))
        elif isinstance(value, int | float):
            yield key, float(value)


def facts() -> dict[str, str]:
    """Date, commit and machine."""
    asked = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True).stdout.strip()
    when = {"date": time.strftime("%Y-%m-%d"), "commit": commit}
    waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "")}
    return {**when, "processor": _processor(), **device.describe(), **waiting}


def _processor() -> str:
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    flags = next((line.split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    widest = next((name for name in ("amx_bf16", "avx512f", "avx2") if name in flags), "")
    return f"{len(names)} cores of {names[0].split(':')[1].strip()} {widest}" if names else platform.processor()


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
