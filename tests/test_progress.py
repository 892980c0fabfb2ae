"""The progress line, on a clock that the test moves: what it says, when, how long, and until when."""

from __future__ import annotations

import io
import itertools
import math
import re
import sys

import pytest
from rich.console import Console

from harness.console import Terminal
from harness.progress import Estimate, Pace, ProgressLine, duration, fit

PACE = Pace(total=1000, per_epoch=100, per_validation=100)


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def line_of(clock: Clock, pace: Pace = PACE, terminal: Terminal | None = None, step: int = 0) -> ProgressLine:
    return ProgressLine(
        terminal or Terminal(), pace, "validation/f1_macro", step=step, clock=clock, memory=lambda: 1.5
    )  # fmt: skip


def train(
    line: ProgressLine, clock: Clock, first: int, last: int, seconds: float = 1.0, validation: float = 0.0
) -> None:
    for step in range(first, last + 1):
        clock.now += seconds
        line.take(step, 0.5, 640, 1e-3)
        is_validated = bool(validation) and step % line.pace.per_validation == 0
        clock.now += validation if is_validated else 0.0
        line.followed(0.75 if is_validated else None)


def seconds_left(fields: list[str]) -> int:
    (told,) = [field for field in fields if " left" in field]
    parts = [int(part) for part in told.split(" ")[0].split(":")]
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


def test_elsewhere_than_on_a_terminal_it_is_a_plain_line_at_calm_intervals(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with line_of(clock) as line:
        train(line, clock, 1, 9)
        assert capsys.readouterr().out == ""
        train(line, clock, 10, 25)
    assert capsys.readouterr().out.splitlines() == [
        f"step {step}/1000  {left} left + validation  loss 0.500  640 tok/s  1.50 GiB  epoch 1/10  "
        "1 steps/s  lr 1.0e-03"
        for step, left in ((10, "16:30"), (20, "16:20"))
    ]


def test_in_long_runs_the_lines_become_rarer_but_never_rarer_than_a_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    pace = Pace(20_000, 20_000, 20_000)
    with line_of(clock, pace) as line:
        train(line, clock, 1, 20_000)
    steps = [int(number) for number in re.findall(r"^step (\d+)/", capsys.readouterr().out, flags=re.MULTILINE)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert gaps[0] == 10 and gaps == sorted(gaps) and gaps[-1] == 60


@pytest.mark.parametrize("terminal", [Terminal(quiet=True), Terminal(speaks=False)])
def test_it_is_silent_where_the_terminal_is_and_reads_no_memory(
    terminal: Terminal, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine(terminal, PACE, "validation/f1_macro", clock=clock, memory=lambda: pytest.fail("was read"))
    train(line, clock, 1, 100)
    assert capsys.readouterr().out == ""


def test_memory_is_read_only_when_a_line_is_due(clock: Clock) -> None:
    reads: list[float] = []

    def memory() -> float:
        reads.append(clock.now)
        return 1.0

    line = ProgressLine(Terminal(), PACE, "f1", clock=clock, memory=memory)
    train(line, clock, 1, 35)
    assert len(reads) == 3


def test_after_a_resume_only_own_steps_count(clock: Clock) -> None:
    """500 steps that another process took say nothing of this one's pace: 10 steps in 20 seconds are 0.5 a second."""
    line = line_of(clock, step=500)
    train(line, clock, 501, 510, seconds=2.0)
    told = line.fields(clock.now)
    assert "0.5 steps/s" in told and "320 tok/s" in told and "step 510/1000" in told and "epoch 6/10" in told
    assert seconds_left(told) == 490 * 2


def test_tokens_per_second_are_those_of_training_without_validation(clock: Clock) -> None:
    line = line_of(clock)
    train(line, clock, 1, 200, seconds=0.5, validation=30.0)
    assert "1,280 tok/s" in line.fields(clock.now)


def test_the_time_left_has_the_validations_in_it_as_soon_as_one_is_known(clock: Clock) -> None:
    line = line_of(clock)
    train(line, clock, 1, 99, validation=30.0)
    assert "15:01 left + validation" in line.fields(clock.now)
    train(line, clock, 100, 100, validation=30.0)
    assert "19:30 left" in line.fields(clock.now), "900 steps of a second, 9 validations of 30"
    train(line, clock, 101, 950, validation=30.0)
    assert "1:20 left" in line.fields(clock.now), "50 steps, and the validation after the last"
    train(line, clock, 951, 1000, validation=30.0)
    assert "0:00 left" in line.fields(clock.now)


def test_validations_still_to_come() -> None:
    assert [PACE.validations_after(step) for step in (0, 99, 100, 950, 999, 1000)] == [10, 10, 9, 1, 1, 0]
    assert [Pace(25, 10, 10).validations_after(step) for step in (0, 10, 20, 24, 25)] == [3, 2, 1, 1, 0]
    assert [Pace(25, 10, 100).validations_after(step) for step in (0, 24, 25)] == [1, 1, 0]


def test_the_time_left_falls_although_steps_take_different_time(clock: Clock) -> None:
    estimate = Estimate(Pace(1000, 1000, 1000), clock.now)
    told = []
    for step in range(1, 501):
        clock.now += (0.5, 1.0, 1.5, 1.1, 0.9)[step % 5]
        estimate.took_step(100, clock.now)
        estimate.followed(clock.now, by_validation=False)
        if step >= 5:
            told.append(estimate.left(step, clock.now)[0])
    assert all(
        later is not None and earlier is not None and later < earlier for earlier, later in itertools.pairwise(told)
    )
    assert told[-1] == pytest.approx(500, rel=0.1)


def test_the_time_left_follows_a_machine_that_became_slower(clock: Clock) -> None:
    estimate = Estimate(Pace(2000, 2000, 2000), clock.now)
    for step in range(1, 801):
        clock.now += 1.0 if step <= 400 else 3.0
        estimate.took_step(100, clock.now)
    left, _ = estimate.left(800, clock.now)
    assert left == pytest.approx(1200 * 3, rel=0.1)


def test_the_time_left_goes_on_falling_while_a_step_is_under_way(clock: Clock) -> None:
    line = line_of(clock)
    train(line, clock, 1, 10, seconds=60.0)
    before = seconds_left(line.fields(clock.now))
    clock.now += 30
    assert seconds_left(line.fields(clock.now)) == before - 30


def test_the_loss_is_the_mean_of_the_last_twenty_that_are_finite(clock: Clock) -> None:
    line = line_of(clock)
    for step, loss in enumerate([9.0, *([1.0, 2.0] * 10), math.nan, math.inf], start=1):
        clock.now += 1.0
        line.take(step, loss, 10, 1e-3)
    assert "loss 1.500" in line.fields(clock.now)


def test_the_last_score_is_that_of_the_metric_that_selects(clock: Clock) -> None:
    line = ProgressLine(Terminal(), PACE, "validation/f1_macro", score=0.25, clock=clock, memory=lambda: 0.0)
    assert "f1_macro 0.2500" in line.fields(clock.now), "as it was when the run was stopped"
    train(line, clock, 1, 100, validation=2.0)
    assert "f1_macro 0.7500" in line.fields(clock.now)


FIELDS = ["step 245/1230", "4:10 left", "loss 0.512", "f1_macro 0.7421", "5,120 tok/s", "1.22 GiB"]


@pytest.mark.parametrize("width", [*range(1, 90), 200])
def test_the_line_never_is_wider_than_asked_and_loses_the_least_important_first(width: int) -> None:
    line = fit(FIELDS, width)
    assert len(line) <= width
    if width >= len(FIELDS[0]):
        assert line == "  ".join(FIELDS[: len(line.split("  "))])


@pytest.mark.parametrize(
    ("width", "last"), [(13, "245/1230"), (30, "left"), (40, "0.512"), (57, "0.7421"), (79, "1.22 GiB")]
)
def test_what_is_seen_at_some_widths(width: int, last: str) -> None:
    assert fit(FIELDS, width).endswith(last)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [10, 20, 40, 80, 160])
def test_the_live_line_is_one_line_on_any_screen(width: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal wraps it, which would leave a trail of lines."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Screen())
    terminal, screen = Terminal(), Screen()
    terminal.console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with line_of(clock, terminal=terminal) as line:
        train(line, clock, 1, 130, validation=2.0)
        assert line._live is not None
        line._live.refresh()
        shown = re.sub("\x1b\\[[0-9?]*[A-Za-z]|\r", "", screen.getvalue())
    *_, newest = shown.split("step ")
    assert "\n" not in newest and len("step " + newest) < width
    assert newest.startswith("130/1000"[: width - 6])


def test_durations_are_read_as_clocks_are() -> None:
    assert [duration(seconds) for seconds in (0.2, 42, 725, 11220, 360_000)] == [
        "0:00", "0:42", "12:05", "3:07:00", "100:00:00",
    ]  # fmt: skip
