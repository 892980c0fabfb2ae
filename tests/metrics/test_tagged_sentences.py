from __future__ import annotations

from pathlib import Path

from harness.data import conll
from harness.metrics.tagged_sentences import TaggedSentences
from tests.metrics.tagged import random_tagged


def test_the_file_is_read_as_conll(tmp_path: Path) -> None:
    """Its last column is the predicted tag, the one before it the true one, as `conlleval` wants them."""
    of = random_tagged(2)
    TaggedSentences().write(of, tmp_path)
    path = tmp_path / "predictions.conll"
    rows = [row for _, row in conll.read(path, path.read_text(encoding="utf-8"))]
    assert [tuple(row["tokens"]) for row in rows] == of.words
    assert [row["ner_tags"] for row in rows] == of.by_sentence(of.predicted)
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [line[2] for line in lines] == [tag for tags in of.by_sentence(of.tags) for tag in tags]
    assert all(0 < float(line[1]) <= 1 for line in lines)
