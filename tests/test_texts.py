"""Text alone: paragraphs of .txt files, the labelling without labels, and what is told of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.data import dataset, files
from harness.data.dataset import Data
from harness.data.labelling import Classes, Texts
from harness.errors import DataError

BOOK = "One line\nand its next.\n\nSecond paragraph.\n  \n\n\nAnother document\n\nEnds here."


def book(folder: Path, text: str = BOOK) -> Path:
    path = folder / "book.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_text_file_is_paragraphs_with_their_lines(tmp_path: Path, ends: str) -> None:
    path = book(tmp_path, BOOK.replace("\n", ends))
    table = files.read_file(path)
    assert table.columns == ["text", "document"]
    assert list(table.cells) == [
        (f"{path}:1", {"text": "One line\nand its next.", "document": "1"}),
        (f"{path}:4", {"text": "Second paragraph.", "document": "1"}),
        (f"{path}:8", {"text": "Another document", "document": "2"}),
        (f"{path}:10", {"text": "Ends here.", "document": "2"}),
    ]


def test_documents_of_a_text_file_stay_in_one_split(tmp_path: Path) -> None:
    text = "\n\n\n".join(f"first of {i}\n\nsecond of {i}\n\nthird of {i}" for i in range(12))
    path = book(tmp_path, text)
    found = dataset.load(
        Data(name=str(path), text="text", label=None, group="document", validation=0.2, test=0.2), Texts()
    )
    numbers = [{e.text.split()[-1] for e in split.examples} for split in (found.train, found.validation, found.test)]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 12
    assert found.labels == []
    assert {e.label for e in found.train.examples} == {None}
    assert "0 labels" not in dataset.describe(found)


def test_mistakes_are_told_with_their_place(tmp_path: Path) -> None:
    path = book(tmp_path)
    with pytest.raises(DataError, match=r"^data\.label: this task learns from text alone\n.*data\.label=null"):
        dataset.load(Data(name=str(path), text="text", label="document"), Texts())
    with pytest.raises(DataError, match=r"^data\.label: this task learns labels"):
        dataset.load(Data(name=str(path), text="text", label=None), Classes())
    with pytest.raises(DataError, match=r"^data\.text: a language model reads one column of text\n.*name one column"):
        dataset.load(Data(name=str(path), text=["text", "document"], label=None), Texts())
    with pytest.raises(DataError, match=r"^data\.text: no column is called 'txt'\n.*\n.*'text'"):
        dataset.load(Data(name=str(path), text="txt", label=None), Texts())
    with pytest.raises(DataError, match=r"book\.txt:4: not utf-8"):
        path.write_bytes("One.\n\nTwo.\nGrün".encode("latin-1"))
        dataset.load(Data(name=str(path), text="text", label=None), Texts())
    with pytest.raises(DataError, match=r"book\.txt is empty"):
        dataset.load(Data(name=str(book(tmp_path, "\n\n")), text="text", label=None), Texts())


def test_the_news() -> None:
    found = dataset.load(Data(name="builtin:news", text="text", label=None, missing="drop"), Texts())
    assert found.report["rows"] == 3788
    assert found.report["dropped"] == 36
    assert found.report["splits"]["test"]["in_train"] == {"exact": 0, "normalised": 0}
