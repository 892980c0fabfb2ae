"""The notebooks are tests: what they claim is asserted in their cells, and their outputs are those of their sources."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbclient.exceptions import CellExecutionError

from harness.storage import PROJECT
from tests import notebooks

ALL = notebooks.paths()
IDS = [path.stem for path in ALL]
MACHINE = re.compile(r"(?<![\w.])/(home|tmp|work|root|Users|usr|opt|var|private|mnt|srv|data)\b")


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell: Any) -> Iterator[str]:
    """Everything in a cell's outputs but pictures."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def pictures_of(cell: Any) -> list[bytes]:
    return [base64.b64decode(o.data["image/png"]) for o in cell.outputs if "image/png" in o.get("data", {})]


@pytest.mark.slow
@pytest.mark.timeout(900)  # under a minute where nothing else runs; 158 s were seen on two cores under a load of 10
@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_it_runs_from_its_sources_in_a_fresh_kernel(path: Path, tmp_path: Path) -> None:
    notebook = notebooks.execute(path, tmp_path)
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    assert list(tmp_path.iterdir()) == []  # whatever they write goes into a folder of their own


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_its_outputs_are_those_of_its_sources_and_of_no_machine(path: Path) -> None:
    notebook = notebooks.read(path)
    cells = code_of(notebook)
    fix = f"python -m tests.notebooks {path.stem}"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), fix
    assert notebook.metadata.sources == notebooks.digest_of_sources(notebook), f"edited since it was executed: {fix}"
    for cell in cells:
        speaks = re.search(r"^(print\(|shown\(|Image\(|plt\.show\()", cell.source, flags=re.MULTILINE)
        assert cell.outputs or not speaks, cell.source
        assert {output.output_type for output in cell.outputs} <= {"stream", "display_data", "execute_result"}
        assert all(output.get("name") != "stderr" for output in cell.outputs), cell.outputs
        for text in texts_of(cell):
            assert not MACHINE.search(text), text
            assert "warning" not in text.lower(), text
            assert len(text) < 10_000
        assert all(len(picture) < 100_000 for picture in pictures_of(cell))
    assert sum(len(pictures_of(cell)) for cell in cells) >= 1
    assert sum(cell.source.count("assert ") for cell in cells) >= 10
    assert all(len(cell.source.splitlines()) <= 35 for cell in cells)


def test_every_notebook_has_its_line_in_the_readme_of_their_folder() -> None:
    text = (notebooks.FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\w+\.ipynb)\]\(\1\)", text, flags=re.MULTILINE) == [path.name for path in ALL]
    assert "python -m tests.notebooks" in text
    assert re.search(r"^docs/ .*notebooks/", (PROJECT / "README.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.slow
def test_a_claim_that_does_not_hold_fails(tmp_path: Path) -> None:
    """What executes them has no way of letting an error pass."""
    wrong = tmp_path / "wrong.ipynb"
    source = (
        '{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": 1, "source": "assert 0"}'
    )
    wrong.write_text(f'{{"nbformat": 4, "nbformat_minor": 5, "metadata": {{}}, "cells": [{source}]}}', encoding="utf-8")
    with pytest.raises(CellExecutionError, match="AssertionError"):
        notebooks.execute(wrong, tmp_path)
