"""A study of a search space that a test writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.sweeps import space
from harness.sweeps.mistakes import check
from harness.sweeps.plan import Plan

HEAD = "objective: {metric: validation/f1_macro, direction: maximize}\ntrials: 4\nspace:\n"
Make = Callable[..., Plan]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A plan of a search space of this text."""

    def make_plan(
        text: str, exp: str | None = "lora", own: tuple[str, ...] = (), overrides: tuple[str, ...] = ()
    ) -> Plan:
        (tmp_path / "mine.yaml").write_text(HEAD + text)
        return check(space.load("mine", list(own)), exp, list(overrides))

    monkeypatch.setattr(space, "SPACES", tmp_path)
    return make_plan
