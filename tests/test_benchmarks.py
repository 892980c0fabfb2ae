"""What benchmarks make of what they measured; nothing is timed here."""

from __future__ import annotations

import csv
import json
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from harness.storage import PROJECT
from harness.tracking.tracker import MemoryTracker
from tests import pages

PROGRAMS = re.findall(r"benchmarks/(\w+)\.py \$\(BENCH\)", (PROJECT / "Makefile").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _as_a_program_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")


def module(name: str) -> Any:
    return import_module(name)


def test_a_spread_is_median_smallest_and_largest() -> None:
    found = module("recording").spread([3.0, 1.0, 2.0, 10.0])
    assert (found.middle, found.low, found.high) == (2.5, 1.0, 10.0)
    assert found.text() == "2.50 (1.00 to 10.00)"
    assert found.text(0) == "2 (1 to 10)"
    assert module("recording").spread([1.7]).text() == "1.70"


def test_ratios_are_those_within_a_round() -> None:
    """Rounds of 2/1, 9/3 and 4/4; the ratio of the medians, 4 and 3, would be another."""
    found = module("recording").ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert (found.middle, found.low, found.high) == (2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="shorter"):
        module("recording").ratios([1.0, 2.0], [1.0])


def test_bars_show_medians_their_ranges_and_what_must_be() -> None:
    recording = module("recording")
    rows = {"a": recording.Spread(2.0, 1.0, 5.0), "b": recording.Spread(1.0, 1.0, 1.0)}
    bar, stroke = recording.bars("Title", "unit", {"one": rows}, {"a": 1.5}).data
    assert list(bar.x) == [2.0, 1.0]
    assert list(bar.y) == ["a", "b"]
    assert (list(bar.error_x.array), list(bar.error_x.arrayminus)) == ([3.0, 0.0], [1.0, 0.0])
    assert (list(stroke.x), list(stroke.y)) == ([1.5], ["a"])
    assert len(recording.bars("Title", "unit", {"one": rows, "two": rows}).data) == 2


def test_what_is_measured_is_published_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, tracker = module("recording"), MemoryTracker()
    monkeypatch.setattr(recording, "OUTPUT", tmp_path)
    monkeypatch.setattr(recording.stores, "start", lambda *_, **__: tracker)
    ratio = recording.Spread(2.0, 1.0, 5.0)
    measured = {"ratio": {"awp sam": ratio}, "steps": 20, "rounds": [1.0, 2.0, 5.0]}
    figure = recording.bars("Title", "unit", {"one": {"awp sam": ratio}})
    recording.publish("cost", [{"variant": "awp sam", "ratio": ratio.text()}], measured, figure, "a note")
    folder = tmp_path / "benchmarks" / "cost"
    assert json.loads((folder / "cost.json").read_text())["ratio"]["awp sam"] == {"middle": 2, "low": 1, "high": 5}
    assert "| awp sam | 2.00 (1.00 to 5.00) |\n\na note\n" in (folder / "cost.md").read_text()
    assert "awp sam" in (folder / "cost.html").read_text(encoding="utf-8")
    expected = {"ratio/awp sam": 2.0, "ratio/awp sam/low": 1.0, "ratio/awp sam/high": 5.0, "steps": 20.0}
    assert {name: value for name, ((_, value),) in tracker.history.items()} == expected
    assert (tracker.status, tracker.all_params["device"]) == ("FINISHED", recording.facts()["device"])


def test_a_round_of_a_study_has_the_trials_it_drew(tmp_path: Path) -> None:
    study_cost = module("study_cost")
    columns = ["number", "state", study_cost.RANK, study_cost.RATE]
    with (tmp_path / "trials.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, [0, "complete", 8, 0.001], [1, "complete", 1, 0.0003]])
    assert study_cost.drawn_by(tmp_path) == [{"rank": 8, "learning_rate": 0.001}, {"rank": 1, "learning_rate": 0.0003}]


def test_a_study_is_compared_with_every_other_way() -> None:
    study_cost = module("study_cost")
    walls = {"study, 2 workers": [10.0, 20.0], **{name: [30.0, 40.0] for name in study_cost.MUST}}
    studies = {"study, 2 workers": study_cost.faster(walls, "study, 2 workers")}
    rows = study_cost.table(walls, studies)
    assert rows[0] == {
        "way": "study, 2 workers", "s": "15 (10 to 20)", "x study, 2 workers": "", "must be at least": ""
    }  # fmt: skip
    assert rows[1]["x study, 2 workers"] == "2.50 (2.00 to 3.00)"
    assert rows[1]["must be at least"] == "2.3"


def test_latency_is_compared_shape_by_shape() -> None:
    latency_cost = module("latency_cost")
    found = {"plain": {"1 x 32": [10.0, 20.0, 40.0]}, "LoRA": {"1 x 32": [11.0, 20.0, 60.0]}}
    ratio = latency_cost.against_plain(found)
    assert (ratio["LoRA"]["1 x 32"].middle, ratio["LoRA"]["1 x 32"].high) == (1.1, 1.5)
    (row,) = latency_cost.table(found, ratio)
    assert row == {
        "a call of": "1 x 32", "plain, ms": "20.0 (10.0 to 40.0)", "LoRA, times plain": "1.10 (1.00 to 1.50)"
    }  # fmt: skip


def test_what_must_be_kept_is_measured() -> None:
    method_cost = module("method_cost")
    assert set(method_cost.MUST) < set(method_cost.VARIANTS)
    contestants = {name for _, name in module("peers").MUST}
    assert contestants < set(module("contestants").CONTESTANTS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_of_make_bench_has_a_quick_form(name: str) -> None:
    text = (PROJECT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert re.search(rf"^    python benchmarks/{name}\.py \[--quick\]", text, flags=re.MULTILINE)
    assert "publish(" in text


def test_make_bench_runs_them() -> None:
    assert len(PROGRAMS) == 8
    assert "bench" in pages.make_targets()


@pytest.mark.parametrize(("given", "busy", "taken"), [("", 0.1, ""), ("", 0.9, "PASSIVE"), ("ACTIVE", 0.9, "ACTIVE")])
def test_one_decision_how_all_contestants_wait(
    given: str, busy: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contestants = module("contestants")
    monkeypatch.setattr(contestants.threads, "busy_share", lambda: busy)
    monkeypatch.setenv("OMP_WAIT_POLICY", given)
    if not given:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    contestants.settle_wait_policy()
    assert os.environ.get("OMP_WAIT_POLICY", "") == taken
