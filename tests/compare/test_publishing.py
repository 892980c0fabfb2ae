from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.commands import app
from tests.compare.runs import finished
from tests.stores import QUIET

pytestmark = QUIET


def test_a_report_is_a_page_and_its_text_in_the_folder_and_in_mlflow_once(tmp_path: Path) -> None:
    for name, f1 in (("full_finetune", 0.7), ("lora", 0.6)):
        for seed in (0, 1):
            finished(tmp_path, name, seed, f1 + seed / 100, predicted=[0, 1, 1, 1], curve=[0.5, 0.6])
    for _ in range(2):
        done = CliRunner().invoke(app, ["report", "full_finetune", "lora", "--output", str(tmp_path)])
        assert done.exit_code == 0, done.output
    folder = tmp_path / "reports" / "full_finetune-lora"
    assert str(folder / "report.html") in done.output and "lora - full_finetune: -0.1000 f1_macro" in done.output
    page, text = (
        (folder / "report.html").read_text(encoding="utf-8"),
        (folder / "report.md").read_text(encoding="utf-8"),
    )
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    assert "Learning curves" in page
    assert text.startswith("# full_finetune, lora\n") and "### Scores on 7 test rows" in text
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["comparisons"][0]["pairs"]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        runs = database.execute("select run_uuid, name, status from runs").fetchall()
        assert [row[1:] for row in runs] == [("full_finetune-lora", "FINISHED")]
        (note,) = database.execute("select value from tags where key = 'mlflow.note.content'").fetchone()
        metrics = database.execute("select key, value from latest_metrics").fetchall()
    assert note == text
    assert dict(metrics)["difference/lora"] == pytest.approx(-0.1)
    (kept,) = (tmp_path / "artifacts").rglob("report.html")
    assert kept.read_bytes() == (folder / "report.html").read_bytes()


def test_the_report_of_a_study_follows_and_its_html_stays_text(tmp_path: Path) -> None:
    from harness.compare import rendering
    from harness.compare.comparison import compare

    finished(tmp_path, "lora", 0, 0.5)
    comparisons, notes = compare([], tmp_path)
    report = "# Study x\n\n| a | b |\n|---|---|\n| <script>1</script> | 2 |\n"
    rendering.write_page(comparisons, notes, tmp_path / "page.html", "a title", [report])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1>Study x</h1>" in page and "<td>2</td>" in page and "&lt;script&gt;1" in page
    assert rendering.to_report(comparisons, notes, "a title", [report]).endswith(f"{report}\n")
