from __future__ import annotations

import pytest

from harness import notes


def test_a_note_is_said_once_on_stderr_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notes, "_told", set())
    monkeypatch.setenv("RANK", "1")
    notes.note("that instead of this")
    monkeypatch.setenv("RANK", "0")
    for _ in range(2):
        notes.note("that instead of this")
    notes.note("something else")
    told = capsys.readouterr()
    assert told.out == "" and told.err == "NOTE that instead of this\nNOTE something else\n"
