from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.data import conll
from harness.errors import DataError

FILE = Path("some.conll")


def test_sentences_documents_and_columns() -> None:
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\n-DOCSTART- -X- O\nParis NNP  B-LOC\r\n"
    assert conll.read(FILE, text) == [
        ("some.conll:3", {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"], "document": "1"}),
        ("some.conll:8", {"tokens": ["Paris"], "ner_tags": ["B-LOC"], "document": "2"}),
    ]


def test_tabs_let_words_hold_spaces() -> None:
    ((_, row),) = conll.read(FILE, "New York\tB-LOC\n#\tO\n")
    assert row == {"tokens": ["New York", "#"], "ner_tags": ["B-LOC", "O"]}


def test_a_document_may_follow_without_a_blank_line() -> None:
    assert [row["document"] for _, row in conll.read(FILE, "-DOCSTART- O\na O\n-DOCSTART- O\nb O")] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "some.conll:2: the word 'b' has no tag"),
        ("a\tO\nb\t\n", "some.conll:2: the word 'b' has no tag"),
        ("a\tO\n\n\tO\n", "some.conll:3: a tag without a word"),
        ("a O\n\nParis LOC\n", "some.conll:3: 'LOC' of the word 'Paris' is no tag"),
        ("a O\nb X-LOC\n", "some.conll:2: 'X-LOC' of the word 'b' is no tag"),
        ("a NN O\nNew York NNP B-LOC\n", "some.conll:2: 4 columns, but line 1 has 3"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}\n  fix: "):
        conll.read(FILE, text)
