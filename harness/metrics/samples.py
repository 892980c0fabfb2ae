"""What a language model wrote beside what was to be written, for people to read."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.markdown import markdown_table
from harness.metric import Metric
from harness.predictions import Completed
from harness.storage import write_json, write_text

_COLUMNS = ("id", "prompt", "reference", "generated", "exact", "nll", "tokens")


class Samples(Metric[Completed]):
    """No numbers, three files: samples.csv and samples.json with every row, samples.md with the first ones."""

    shown: int = Field(default=50, ge=1)
    """Rows in samples.md, the table for reading; the other files have all."""

    def write(self, predictions: Completed, folder: Path) -> None:
        """Id, prompt, reference, generated text, whether they are equal, summed nll and number of target tokens."""
        rows = _rows(predictions)
        file = io.StringIO(newline="")
        table = csv.DictWriter(file, _COLUMNS)
        table.writeheader()
        table.writerows(rows)
        write_text(folder / "samples.csv", file.getvalue())
        # The layout of MLflow's tables, which its pages show side by side.
        split = {"columns": list(_COLUMNS), "data": [[row[name] for name in _COLUMNS] for row in rows]}
        write_json(folder / "samples.json", split)
        cells = [[_cell(row[name]) for name in _COLUMNS[:5]] for row in rows[: self.shown]]
        title = f"{min(self.shown, len(rows))} of {len(rows)} rows"
        write_text(folder / "samples.md", f"{title}\n\n{markdown_table(list(_COLUMNS[:5]), cells, numbers=False)}\n")


def _rows(predictions: Completed) -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"], "prompt": "\n\n".join(filter(None, (row["text"], row.get("pair")))),
            "reference": reference, "generated": text, "exact": text is not None and text.strip() == reference.strip(),
            "nll": nll, "tokens": tokens,
        }
        for row, reference, text, nll, tokens in zip(
            predictions.rows, predictions.references, predictions.generated,
            predictions.nll.tolist(), predictions.targets.tolist(), strict=True,
        )
    ]  # fmt: skip


def _cell(value: Any) -> str:
    """A value in one cell of a Markdown table; nothing of it is read as HTML, which MLflow shows as it is written."""
    text = "" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\r", ""), ("\n", " ↵ ")):
        text = text.replace(mark, written)
    return text
