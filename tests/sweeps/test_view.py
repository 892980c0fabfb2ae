"""What a person sees of a study: a live table on a terminal, elsewhere a line for each trial that ended."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from harness.console import Terminal
from harness.errors import StorageError
from harness.sweeps import space
from harness.sweeps.trials import TrialRecord
from harness.sweeps.view import StudyView

SPACE = space.load("lora_rank", ["trials=4"])


def trial(number: int, state: str, value: float | None = None, arm: str = "search", **known: object) -> TrialRecord:
    params = {"methods.lora.rank": 2**number, "train.learning_rate": 0.001234567}
    values = [] if value is None else [value]
    return TrialRecord(arm, number, state, params, values, **known)  # type: ignore[arg-type]


class Kept:
    """A study at some moment."""

    def __init__(self) -> None:
        self.trials: dict[str, list[TrialRecord]] = {"search": [], "baseline": [], "confirm": []}

    def look(self, stage: str) -> list[TrialRecord]:
        return self.trials[stage]


class Gone(Kept):
    def look(self, stage: str) -> list[TrialRecord]:
        raise StorageError("the study's storage cannot be reached")


@pytest.fixture
def view(monkeypatch: pytest.MonkeyPatch) -> StudyView:
    """On a terminal of 80 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    return StudyView(SPACE, terminal)


def lines(view: StudyView, kept: Kept) -> list[str]:
    """The table as it stands on 80 columns, bold and dim as marks."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(view._table(kept.trials))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.replace("\x1b[1m", "<b>").replace("\x1b[2m", "<dim>") for line in text.splitlines()]


def test_the_table_has_a_line_per_trial_on_eighty_columns(view: StudyView) -> None:
    kept = Kept()
    kept.trials["search"] = [
        trial(0, "complete", 0.71, seconds=204.0),
        trial(1, "complete", 0.74, seconds=190.0),
        trial(5, "running", intermediate={41: 0.5, 82: 0.625}),
    ]
    kept.trials["baseline"] = [trial(0, "pruned", intermediate={41: 0.3}, arm="baseline"), trial(1, "waiting")]
    title, *rows = lines(view, kept)
    assert "f1_macro" in title and "validation" not in title
    assert len(rows) == 4, "one line each, and what waits is not shown"
    plain, bold, dim = (False, False), (True, False), (False, True)
    assert [("<b>" in row, "<dim>" in row) for row in rows] == [plain, bold, dim, dim]
    assert "0.7400" in rows[1] and "190" in rows[1] and "rank=2 learning_rate=0.00123" in rows[1]
    assert "running" in rows[3] and "0.6250" in rows[3], "what runs stands last, with its newest value"


def test_the_table_shows_the_newest(view: StudyView) -> None:
    kept = Kept()
    kept.trials["search"] = [trial(number, "complete", 0.5) for number in range(30)]
    rows = lines(view, kept)[1:]
    assert len(rows) == 12 and "search 29" in rows[-1]


def test_the_last_line_says_how_far_how_good_and_how_long(view: StudyView) -> None:
    kept = Kept()
    kept.trials["search"] = [trial(0, "complete", 0.5, seconds=60.0), trial(1, "failed"), trial(2, "pruned")]
    kept.trials["baseline"] = [trial(0, "complete", 0.625, "baseline", seconds=120.0)]
    told = view.status(kept.trials)
    assert "search 3/4, best 0.5000, 1 pruned, 1 failed; baseline 1/4, best 0.6250" in told
    assert "about 9 min of trials left" in told, "3 x 1 min of the search, 3 x 2 min of the baseline"


def test_elsewhere_each_end_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    kept, view = Kept(), StudyView(SPACE, Terminal())
    view.show(kept, at_once=True)
    assert capsys.readouterr().out == ""
    kept.trials["search"] = [trial(0, "failed", reason="the loss is nan\nat step 3"), trial(1, "running")]
    for _ in range(2):
        view.show(kept, at_once=True)
    told = capsys.readouterr().out
    assert told.count("search     0  failed") == 1 and "(the loss is nan)" in told and "step 3" not in told
    assert "running" not in told
    later = StudyView(SPACE, Terminal())
    later.begin(kept)
    assert capsys.readouterr().out.startswith("going on: search 1/4")
    later.show(kept, at_once=True)
    assert capsys.readouterr().out == "", "no news"


def test_a_study_goes_on_also_with_trials_of_which_none_finished(capsys: pytest.CaptureFixture[str]) -> None:
    kept, view = Kept(), StudyView(SPACE, Terminal())
    view.begin(kept)
    assert capsys.readouterr().out == ""
    kept.trials["search"] = [trial(0, "waiting"), trial(1, "complete", 0.5)]
    view.show(kept, at_once=True)
    assert "search     1  complete" in capsys.readouterr().out, "it ended before anybody looked, and is news"
    kept.trials["search"] = [trial(0, "waiting"), trial(1, "running")]
    StudyView(SPACE, Terminal()).begin(kept)
    assert capsys.readouterr().out.startswith("going on: search 0/4; baseline 0/4; 2 not finished")


def test_a_storage_that_is_away_is_no_reason_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    StudyView(SPACE, Terminal()).begin(Gone())
    StudyView(SPACE, Terminal()).show(Gone(), at_once=True)
    assert capsys.readouterr().out == ""
