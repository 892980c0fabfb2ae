"""What is said, what is not said in quiet runs, and without colours where nobody wants them."""

from __future__ import annotations

import io
import re
import sys

import pytest

from harness.console import Terminal


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def everything(terminal: Terminal) -> None:
    terminal.title("a title")
    terminal.say("a line")
    terminal.say("NOTE a note")
    terminal.facts({"one": "1", "none": "", "three": "3"})
    terminal.table(["a", "b"], [["1", "2"]])
    terminal.say("resume  a command", always=True)


def test_it_says_everything_unless_it_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    everything(Terminal())
    told = said(capsys)
    assert [word in told for word in ("title", "line", "note", "one    1", "three  3", "a  b", "resume")] == [True] * 7
    assert "none" not in told
    everything(Terminal(quiet=True))
    assert said(capsys) == "NOTE a note\nresume  a command\n"
    everything(Terminal(speaks=False))
    assert said(capsys) == ""


def test_sentences_are_broken_between_words_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "a tie is not equality: more seeds may tell them apart"
    Terminal().prose(sentence)
    assert said(capsys) == f"{sentence}\n"
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Terminal().prose(sentence)
    assert [line.rstrip() for line in said(capsys).splitlines()] == [
        "a tie is not",
        "equality: more seeds",
        "may tell them apart",
    ]


def test_what_holds_for_all_replicates_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    for _ in range(2):
        terminal.say_once("NOTE the machine has no such thing")
        terminal.say("NOTE it happened")
    assert said(capsys).split("\n")[:-1] == [
        "NOTE the machine has no such thing",
        "NOTE it happened",
        "NOTE it happened",
    ]


def test_trials_of_a_study_say_their_notes_alone_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    aside = Terminal().aside()
    for _ in range(2):
        aside.say("a line")
        aside.say("NOTE the machine has no such thing")
        aside.say_once("NOTE nor that")
    assert said(capsys).split("\n")[:-1] == ["NOTE the machine has no such thing", "NOTE nor that"]


@pytest.mark.parametrize(("variables", "coloured"), [({"FORCE_COLOR": "1"}, True), ({}, False)])
@pytest.mark.parametrize("no_color", ["1", ""])
def test_no_color_wins_over_whatever_forces_colours(
    variables: dict[str, str], coloured: bool, no_color: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """https://no-color.org: set and not empty."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    everything(Terminal())
    assert bool(re.search("\x1b", said(capsys))) == (coloured and not no_color)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("options", "term", "live"),
    [({}, "xterm", True), ({"quiet": True}, "xterm", False), ({"speaks": False}, "xterm", False), ({}, "dumb", False)],
)
def test_a_line_is_drawn_over_only_where_a_person_sees_it(
    options: dict[str, bool], term: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", Screen())
    assert Terminal(**options).is_live is live


def narrow(monkeypatch: pytest.MonkeyPatch, width: int) -> Terminal:
    """A terminal with room for so many characters in a line."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    return Terminal()


def test_a_narrow_terminal_leaves_columns_out_and_breaks_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ["", "difference", "95 % seeds and items", "Wilcoxon", "McNemar by seed"]
    rows = [["lora rank=4", "-0.190", "[-0.389, +0.038]", "0.500", "0.078 1.000"]]
    spare = ["McNemar by seed", "Wilcoxon"]
    for width, left_out in ((90, []), (63, []), (60, ["McNemar by seed"]), (45, spare)):
        assert narrow(monkeypatch, width).table(columns, rows, spare=spare) == left_out
        told = said(capsys)
        kept = {word for column in columns if column not in left_out for word in column.split()}
        assert kept <= set(told.split()) and "[-0.389, +0.038]" in told
        assert max(map(len, told.splitlines())) <= width
        assert ("Wilcoxon" in told) == ("Wilcoxon" not in left_out)
    assert narrow(monkeypatch, 20).table(columns, rows, spare=spare) == []
    assert said(capsys).splitlines()[:2] == ["lora rank=4", "  difference            -0.190"]
