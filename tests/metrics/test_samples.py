"""The table of prompts, references and generated texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from harness.metrics.samples import Samples
from tests.metrics.samples import completed


def test_every_row_is_in_the_tables_and_the_first_in_the_page(tmp_path: Path) -> None:
    predictions = completed(["a | <b>\nc", None, "z"], ["a", "b", "z "])
    Samples(shown=2).write(predictions, tmp_path)
    with (tmp_path / "samples.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["generated"] for row in rows] == ["a | <b>\nc", "", "z"]
    assert [row["exact"] for row in rows] == ["False", "False", "True"]
    assert [row["prompt"] for row in rows] == ["ask 0", "ask 1", "ask 2"]
    table = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert table["columns"] == list(rows[0])
    assert [row[table["columns"].index("generated")] for row in table["data"]] == ["a | <b>\nc", None, "z"]
    page = (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert page.startswith("2 of 3 rows\n\n| id | prompt | reference | generated | exact |\n|---|---|---|---|---|\n")
    assert "| no |" in page
    assert "a \\| &lt;b&gt; ↵ c" in page
    assert "ask 2" not in page
