from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from harness import faults
from harness.errors import SpecError
from harness.storage import PROJECT

POINT = re.compile(r'faults\.point\("([^"]+)"\)')


def test_every_point_of_the_list_stands_in_the_code_and_every_point_of_the_code_in_the_list() -> None:
    found = [name for path in Path(PROJECT / "harness").rglob("*.py") for name in POINT.findall(path.read_text())]
    assert sorted(found) == sorted(faults.POINTS)


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    assert faults.point("report") == ""


def test_a_clause_fires_once_at_its_point_step_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "report:oom@step=3@rank=1, gradient.result:nan")
    assert faults.point("gradient.result") == "nan"
    assert faults.point("gradient.result") == ""
    for step, rank in ((2, "1"), (3, "0")):
        faults.begin_step(step)
        monkeypatch.setenv("RANK", rank)
        assert faults.point("report") == ""
    faults.begin_step(3)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(torch.OutOfMemoryError):
        faults.point("report")
    assert faults.point("report") == ""


@pytest.mark.parametrize("text", ["reprt:kill", "report:explode", "report", "report:kill@stop=3", "report:kill@step=x"])
def test_a_fault_that_does_not_exist_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, text)
    with pytest.raises(SpecError, match=r"HARNESS_FAULT: '.*' is no fault\n  fix: <point>:<action>"):
        faults.point("report")


def test_the_table_of_faults_names_tests_that_exist() -> None:
    table = (PROJECT / "tests" / "FAULTS.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", table)
    assert len(named) > 50
    for file, test in named:
        assert f"def {test}(" in (PROJECT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"
    rows = {int(number) for row in re.findall(r"^\| (F[^|]*)\|", table, flags=re.MULTILINE)
            for number in re.findall(r"F(\d+)", row)}  # fmt: skip
    assert rows == {*range(1, 37), *range(50, 55), 60}
