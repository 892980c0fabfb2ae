"""Several seeds of one spec: mean and spread of every score, as the parent run of the replicates shows them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from harness import storage
from harness.console import Terminal
from harness.markdown import markdown_table
from harness.tracking.tracker import Tracker

_COSTS = ("train/examples_per_second", "time/total_s", "memory/peak_gib")


def spread(scores: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every score as itself, and its standard deviation over seeds (n - 1) as `<score>_sd`."""
    common = [key for key in scores[0] if all(key in one for one in scores)]
    means = {key: statistics.fmean(one[key] for one in scores) for key in common}
    return means | {f"{key}_sd": statistics.stdev(one[key] for one in scores) for key in common}


def summarise(
    scores: list[dict[str, float]], names: list[str], headline: Iterable[str], folder: Path, parent: Tracker,
    terminal: Terminal,
) -> None:  # fmt: skip
    """Write replicates.md and replicates.json, log means and spreads to the parent run, and show them."""
    values = spread(scores)
    shown = [key for key in (*(f"test/{key}" for key in headline), *_COSTS) if key in values]
    rows = [[name, *(f"{one[key]:.4g}" for key in shown)] for name, one in zip(names, scores, strict=True)]
    rows.append([f"mean ± sd, n = {len(scores)}", *(f"{values[key]:.4g} ± {values[f'{key}_sd']:.2g}" for key in shown)])
    terminal.say()
    terminal.table(["replicates", *(key.split("/")[1] for key in shown)], rows)
    storage.write_text(folder / "replicates.md", markdown_table(["run", *shown], rows) + "\n")
    storage.write_json(folder / "replicates.json", dict(zip(names, scores, strict=True)))
    parent.metrics(values)
    parent.tags({"mlflow.note.content": markdown_table(["run", *shown], rows)})
    parent.artifacts(folder)
