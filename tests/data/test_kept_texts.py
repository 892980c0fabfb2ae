"""Texts on the disk: what is read is what was written, by whomever, and a larger corpus takes little more memory."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.data import dataset
from harness.data.dataset import Data, Splits
from harness.data.kept_texts import KeptTexts, TextFile
from harness.data.labelling import Texts
from harness.data.splitting import SPLITS
from harness.errors import StorageError
from harness.storage import PROJECT
from tests.data.test_dataset import write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: Path) -> Splits:
    return dataset.load(Data(name=str(path), text="text", label=None), Texts())


def test_what_is_kept_is_read(cache: Path) -> None:
    file = TextFile()
    rows = [("Größe",), ("", "語\n"), ("a\u2028b" * 9999,)]
    kept = [file.keep(texts) for texts in rows]
    assert [tuple(texts) for texts in kept] == [tuple(texts) for texts in kept] == rows
    assert not list(cache.iterdir()), "the file has no name"
    assert pickle.loads(pickle.dumps(kept)) == rows


def test_a_file_that_takes_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    file = TextFile()

    class Slow:
        def write(self, content: memoryview) -> int:
            return os.write(file._file.fileno(), content[:3])

    slow = TextFile()
    monkeypatch.setattr(slow, "_file", Slow())
    begins = [slow.keep((text,)).begin for text in ("one and two", "three")]
    assert [file.read(begins[0], 11), file.read(begins[1], 5)] == [["one and two"], ["three"]]


def test_threads_read_the_same_file() -> None:
    file = TextFile()
    texts = [f"{i} " * (i % 50) for i in range(2000)]
    kept = [file.keep((text,)) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda one: "".join(one), kept)] == texts


FORKED = """
import os, sys
from harness.data.kept_texts import TextFile

file = TextFile()
texts = [f"{i} " * 50 for i in range(5000)]
kept = [file.keep((text,)) for text in texts]
children = []
for _ in range(4):
    if not (child := os.fork()):
        os._exit(int(any(tuple(one) != (text,) for one, text in zip(kept, texts))))
    children.append(child)
own = any(tuple(one) != (text,) for one, text in zip(kept, texts))
sys.exit(own or any(os.waitpid(child, 0)[1] for child in children))
"""


def test_forked_processes_read_the_same_file() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(20)])
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"(?s)cannot keep texts in .*HARNESS_CACHE"):
        load(path)


def test_a_text_that_does_not_come_back() -> None:
    file = TextFile()
    file.keep(("text",))
    with pytest.raises(StorageError, match=r"cannot read a text that was kept\n  why: 3 of 9 bytes"):
        tuple(KeptTexts(file, 1, 9))


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet", ".txt"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"Text {i}\nof {i}"} for i in range(40)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(row["text"] for row in rows))
    else:
        write(path, list(rows))
    splits = load(path)
    found = [example for name in SPLITS for example in getattr(splits, name).examples]
    assert sorted(int(e.id) for e in found) == [*range(1, 41)]
    assert all(e.text == rows[int(e.id) - 1]["text"] and e.pair is e.label is None for e in found)
    train = splits.train.examples
    assert list(train[3:5]) == [train[3], train[4]] and train[-1] == [*train][-1] and len(train) == 28
    assert list(pickle.loads(pickle.dumps(splits)).train.examples) == list(train)
    expected = load(write(tmp_path / "b.csv", list(rows)))
    assert [getattr(splits, n).digest for n in SPLITS] == [getattr(expected, n).digest for n in SPLITS]


CODE = """
import json, sys
from pathlib import Path
from harness.data import dataset
from harness.data.dataset import Data
from harness.data.labelling import Texts

splits = dataset.load(Data(name=sys.argv[1], text="text", label=None), Texts())
size = sum(len(e.text) for split in (splits.train, splits.validation, splits.test) for e in split.examples)
peak = next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))  # ru_maxrss is the parent's
print(json.dumps([size, int(peak.split()[1]) / 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child's peak is not told apart from its parent's")
@pytest.mark.parametrize(("suffix", "most"), [(".txt", 10), (".jsonl", 10), (".parquet", 25)])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, suffix: str, most: int) -> None:
    """Ten times as many texts, 18 MB more; in memory a kilobyte for each row, and what pyarrow reads ahead."""
    peaks = []
    for number in (500, 5_000):
        path, texts = tmp_path / f"{number}{suffix}", (f"{i} {'some words ' * 363}" for i in range(number))
        if suffix == ".txt":
            path.write_text("\n\n".join(texts))
        else:
            write(path, [{"text": text} for text in texts])
        done = subprocess.run([sys.executable, "-c", CODE, path], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        size, peak = json.loads(done.stdout)
        assert size > number * 3990
        peaks.append(peak)
    assert peaks[1] - peaks[0] < most, peaks
