"""Chunks: what they hold, that they stay in the cache, and that their making needs no more memory for more text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.errors import StorageError
from harness.language import chunks
from harness.language.chunks import Chunks, Cut, spans
from harness.storage import PROJECT


def made(documents: list[list[int]], cut: Cut) -> Chunks:
    return chunks.cached("key", lambda folder: dict(chunks.write(documents, cut, folder)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chunks"


def test_spans_by_hand() -> None:
    assert [*spans(0, 10, Cut(4, 0.0, 0))] == [(0, 4, 0), (4, 8, 4), (8, 10, 8)]
    assert [*spans(0, 10, Cut(4, 0.5, 0))] == [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
    assert [*spans(0, 9, Cut(4, 0.0, 1))] == [(0, 4, 0), (4, 8, 4)], "the last token is a target only"
    assert [*spans(0, 1, Cut(4, 0.0, 1))] == []
    assert [*spans(5, 5, Cut(4, 0.0, 0))] == []


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_every_target_is_new_in_exactly_one_chunk(length: int, overlap: float, ahead: int) -> None:
    for size in range(40):
        found = [*spans(100, 100 + size, Cut(length, overlap, ahead))]
        new = [place for _, stop, first in found for place in range(first, stop)]
        assert new == [*range(100, 100 + size - ahead)]
        assert all(start <= first < stop <= start + length for start, stop, first in found)


def test_what_is_written_is_read() -> None:
    documents = [[1, 2, 3, 4, 5], [], [6], [7, 8]]
    found = made(documents, Cut(2, 0.5, 0))
    assert found.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.bounds.tolist() == [
        [0, 0, 2, 0], [0, 1, 3, 2], [0, 2, 4, 3], [0, 3, 5, 4], [2, 5, 6, 5], [3, 6, 8, 6],
    ]  # fmt: skip
    assert found.facts == {"documents": 4, "tokens": 8, "chunks": 6, "overlap_tokens": 3, "longest": 2}
    assert isinstance(found.tokens, np.memmap)


def test_across_documents_they_are_one() -> None:
    found = made([[1, 2, 3], [4, 5], [6]], Cut(4, 0.0, 0, across_documents=True))
    assert found.bounds.tolist() == [[0, 0, 4, 0], [0, 4, 6, 4]]
    assert found.facts["documents"] == 3


def test_they_are_made_once_and_again_if_damaged(cache: Path) -> None:
    calls = []

    def make(folder: Path) -> dict[str, object]:
        calls.append(folder)
        return dict(chunks.write([[1, 2, 3]], Cut(2, 0.0, 0), folder))

    for _ in range(2):
        assert chunks.cached("one", make).tokens.tolist() == [1, 2, 3]
    assert len(calls) == 1
    (cache / "one" / "tokens.i32").write_bytes(b"half")
    assert chunks.cached("one", make).tokens.tolist() == [1, 2, 3]
    assert len(calls) == 2
    assert {path.name for path in cache.iterdir()} == {"one", "one.lock"}


def test_nothing_half_written_stays(cache: Path) -> None:
    def break_off(folder: Path) -> dict[str, object]:
        def documents() -> Iterator[list[int]]:
            yield [1, 2]
            raise ValueError("torn")

        return dict(chunks.write(documents(), Cut(2, 0.0, 0), folder))

    with pytest.raises(ValueError, match="torn"):
        chunks.cached("one", break_off)
    assert {path.name for path in cache.iterdir()} == {"one.lock"}


def test_no_documents_are_no_chunks() -> None:
    found = made([], Cut(4, 0.0, 0))
    assert len(found) == 0
    assert len(found.tokens) == 0


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"(?s)cannot keep chunks in .*HARNESS_CACHE"):
        made([[1]], Cut(2, 0.0, 0))


CODE = """
import json, sys
from collections.abc import Iterator
from pathlib import Path
from harness.language import modelling as lm
from harness.language.chunks import Cut
from harness.language.cleaning import Cleaning
from harness.data.dataset import Example
from tests.tasks.language_models import text, tokenizer

class Texts(list):
    "Examples that are made when they are read."
    def __iter__(self):
        for number in range(int(sys.argv[1])):
            yield Example(str(number), text(400, number), None, None)

rules = Cleaning("repair", "text", "latin", 0.3, "any", 0.1)
lm._CHARACTERS = 100_000
found = lm.read("train", Texts(), tokenizer(), rules, Cut(32, 0.5, 1), [5], [6])
peak = next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))  # ru_maxrss is the parent's
print(json.dumps([found.facts["tokens"], int(peak.split()[1]) / 1024]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child's peak is not told apart from its parent's")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen times as many documents, 26 MB of tokens and chunks on the disk, and not 8 MB more in memory."""
    peaks = []
    for number in (1_000, 16_000):
        done = subprocess.run([sys.executable, "-c", CODE, str(number)], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        tokens, peak = json.loads(done.stdout.splitlines()[-1])
        assert tokens == number * 402
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 8, peaks
