"""F18: whatever writes a file gives it the mode that the umask asks for, also where a library would not."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from harness import checkpoint, storage
from harness.signing import digests, ledger
from harness.signing.keys import Key
from harness.signing.ledger import Entry
from harness.signing.provenance import resign, seal

KEY, OTHER = Key(b"k" * 32), Key(b"o" * 32)


def _sealed(folder: Path) -> Path:
    seal(folder, "start", {}, KEY)
    return folder / "start.envelope.json"


def _sealed_twice(folder: Path) -> Path:
    resign(_sealed(folder), [KEY], OTHER)
    return folder / "start.envelope.json"


def _entered(folder: Path) -> Path:
    ledger.append(folder, Entry("harness1:0", "start", "run"))
    return folder / ledger.NAME


def _written(write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def act(folder: Path) -> Path:
        write(folder / "sub" / "file")
        return folder / "sub" / "file"

    return act


def _digested(folder: Path) -> Path:
    digests.write(folder / "file", b"1")
    return folder / "file"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "storage.write_bytes": _written(lambda path: storage.write_bytes(path, b"1")),
    "storage.write_text": _written(lambda path: storage.write_text(path, "1")),
    "storage.write_json": _written(lambda path: storage.write_json(path, {"a": 1})),
    "storage.write_tensors": _written(lambda path: storage.write_tensors(path, {"w": torch.zeros(2)})),
    "checkpoint.save": lambda folder: checkpoint.save({"w": torch.zeros(2)}, folder / "weights"),
    "digests.write": _digested,
    "provenance.seal": _sealed,
    "provenance.resign": _sealed_twice,
    "ledger.append": _entered,
}


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield int(request.param)
    os.umask(old)


@pytest.mark.parametrize("writer", WRITERS)
def test_the_mode_of_a_file_is_that_of_the_umask(tmp_path: Path, mask: int, writer: str) -> None:
    path = WRITERS[writer](tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert [beside.name for beside in path.parent.iterdir()] == [path.name]
    WRITERS[writer](tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
