"""A comparison that stays: a page and its Markdown in the folder of runs, and in MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness import storage
from harness.compare import rendering
from harness.compare.comparison import Comparison
from harness.signing import digests
from harness.tracking import stores
from harness.tracking.stores import Tracking

EXPERIMENT = "reports"
"""MLflow's experiment."""
_MOST_NAME = 50


def publish(
    asked: Sequence[str], comparisons: list[Comparison], notes: list[str], output: Path, uri: str | None = None
) -> tuple[Path, str]:
    """Write report.html, report.md and comparison.json, and record them; a report of the same names is replaced.

    Args:
        asked: the names that were compared.
        comparisons: of them.
        notes: what was left out.
        output: the folder of runs; reports lie in `reports/`.
        uri: MLflow's store.

    Returns:
        The folder, and what is missing in MLflow; "" if nothing is.

    Raises:
        StorageError: the files cannot be written.
        UserError: MLflow's experiment was deleted.
    """
    title = ", ".join(asked) or "all experiments"
    name = _name(title)
    folder = storage.writable(output) / "reports" / name
    found = [output / "studies" / one / "report.md" for one in asked]
    studies = [file.read_text(encoding="utf-8") for file in found if file.is_file()]
    text = rendering.to_report(comparisons, notes, title, studies)
    rendering.write_page(comparisons, notes, folder / "report.html", title, studies)
    storage.write_text(folder / "report.md", text)
    storage.write_text(folder / "comparison.json", rendering.to_json(comparisons, notes) + "\n")
    tags = {"kind": "report", "compared": title, "folder": str(folder)}
    tracker = stores.start(Tracking(uri=uri), output, EXPERIMENT, name, tags=tags, resume=True)
    tracker.open()
    for one in comparisons:
        tracker.metrics({f"difference/{_name(pair.system)}": pair.mean for pair in one.pairs})
    tracker.tags({"mlflow.note.content": text})
    tracker.artifacts(folder)
    tracker.finish()
    return folder, tracker.problem


def _name(title: str) -> str:
    """A title as the name of a folder; with a digest where it had to be shortened."""
    plain = re.sub(r"[^A-Za-z0-9_.=-]+", "-", title).strip("-.")
    return plain if len(plain) <= _MOST_NAME else f"{plain[:_MOST_NAME]}-{digests.identity(title)[-8:]}"
