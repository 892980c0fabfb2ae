"""Where results of a benchmark go: the terminal, mlruns/benchmarks, and a run of MLflow's experiment `benchmarks`."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from harness import device, tracking
from harness.figures import save_html
from harness.markdown import markdown_table

PROJECT = Path(__file__).resolve().parent.parent
OUTPUT = PROJECT / "mlruns"


def publish(name: str, rows: list[dict[str, str]], measured: dict[str, Any], figure: Any, note: str = "") -> None:
    """Print the table, write it with the raw numbers and the figure, and log all of it.

    Args:
        name: of the benchmark, and of its files.
        rows: what a person reads; all have the same keys.
        measured: every number behind them.
        figure: a plotly figure.
        note: a line below the table.
    """
    told = facts()
    text = f"{markdown_table(list(rows[0]), [list(row.values()) for row in rows])}\n\n{note}".rstrip()
    print(f"\n{text}", flush=True)
    folder = OUTPUT / "benchmarks" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(told | measured, indent=2) + "\n", encoding="utf-8")
    heading = ", ".join(f"{key} {value}" for key, value in told.items())
    (folder / f"{name}.md").write_text(f"{heading}\n\n{text}\n", encoding="utf-8")
    save_html(figure, folder / f"{name}.html")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    tracker = tracking.start(tracking.Tracking(), OUTPUT, "benchmarks", f"{name}-{stamp}", note=text)
    tracker.open()
    tracker.params(told)
    tracker.metrics({key: value for key, value in measured.items() if isinstance(value, float)})
    tracker.artifacts(folder)
    tracker.finish()
    print(f"\n{folder}, and in MLflow as benchmarks/{name}-{stamp}{tracker.problem and f' ({tracker.problem})'}")


def facts() -> dict[str, str]:
    """Date, commit and machine."""
    asked = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True).stdout.strip()
    return {"date": time.strftime("%Y-%m-%d"), "commit": commit, "processor": _processor(), **device.describe()}


def _processor() -> str:
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    flags = next((line.split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    widest = next((name for name in ("amx_bf16", "avx512f", "avx2") if name in flags), "")
    return f"{len(names)} cores of {names[0].split(':')[1].strip()} {widest}" if names else platform.processor()


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
