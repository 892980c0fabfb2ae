"""A corpus as numbers in files: its tokens one after the other, and where each chunk begins and ends.

Overlapping chunks share their tokens on the disk. Both files are written as the documents come and are read as memory
maps, so that neither the tokens nor the list of chunks has to fit into memory. They stay in the cache under the digest
of what decides them. Legend: N tokens, C chunks.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import StorageError
from harness.storage import cache_folder, write_json

_TOKENS, _CHUNKS, _FACTS = "tokens.i32", "chunks.i64", "facts.json"
_BLOCK = 4096
"""Chunks that are written at once."""


@dataclass(frozen=True)
class Cut:
    """How documents become chunks."""

    length: int
    """Tokens of a chunk; the last one of a document may be shorter."""
    overlap: float
    """Share of a chunk that is the end of the one before it."""
    ahead: int
    """Tokens after a chunk that it needs as targets: 1 for a causal model, which predicts the next one, else 0."""
    across_documents: bool = False
    """Whether the documents are one long one."""

    @property
    def stride(self) -> int:
        """Tokens from the beginning of a chunk to that of the next."""
        return max(1, self.length - round(self.overlap * self.length))


@dataclass(frozen=True)
class Chunks:
    """A corpus that was cut."""

    tokens: NDArray[np.int32]
    """All documents, one after the other. [N]"""
    bounds: NDArray[np.int64]
    """Document, first token, the one after its last, and the first that no chunk before it has. [C, 4]"""
    facts: dict[str, Any]
    """What whoever wrote it wants to be known."""

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each chunk. [C]"""
        return np.asarray(self.bounds[:, 2] - self.bounds[:, 1])


def spans(first: int, end: int, cut: Cut) -> Iterator[tuple[int, int, int]]:
    """The chunks of a document that holds the tokens first..end: begin, end, and the first token that is new."""
    last, new = end - cut.ahead, first
    while new < last:
        stop = min(first + cut.length, last)
        yield first, stop, new
        first, new = first + cut.stride, stop


def write(documents: Iterable[Sequence[int]], cut: Cut, folder: Path) -> dict[str, int]:
    """Write documents as chunks into a folder, one after the other; returns how many there are of what."""
    size = document = begin = count = repeated = longest = 0

    def add(number: int, first: int, end: int) -> None:
        nonlocal count, repeated, longest
        found = spans(first, end, cut)
        while block := [(number, *span) for span in islice(found, _BLOCK)]:
            rows = np.array(block, dtype=np.int64)
            rows.tofile(index)
            count, repeated = count + len(rows), repeated + int((rows[:, 3] - rows[:, 1]).sum())
            longest = max(longest, int((rows[:, 2] - rows[:, 1]).max()))

    with (folder / _TOKENS).open("wb") as stream, (folder / _CHUNKS).open("wb") as index:
        for document, ids in enumerate(documents, 1):
            np.asarray(ids, dtype=np.int32).tofile(stream)
            size += len(ids)
            if not cut.across_documents:
                add(document - 1, begin, size)
                begin = size
        if cut.across_documents:
            add(0, 0, size)
    return {"documents": document, "tokens": size, "chunks": count, "overlap_tokens": repeated, "longest": longest}


def cached(key: str, make: Callable[[Path], dict[str, Any]]) -> Chunks:
    """The chunks of this key: those in the cache, or what `make` writes into a folder, whole or not at all.

    Raises:
        StorageError: the cache cannot be written.
    """
    from filelock import FileLock

    folder = cache_folder() / "chunks" / key
    try:
        if (found := _read(folder)) is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                found = _read(folder) or _made(folder, make)
    except OSError as error:
        fix = "free some disk space, or set HARNESS_CACHE to a folder that can be written"
        raise StorageError(f"cannot keep chunks in {folder}", why=str(error), fix=fix) from error
    return found


def _made(folder: Path, make: Callable[[Path], dict[str, Any]]) -> Chunks:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".chunks.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        facts = make(new)
        sizes = {name: (new / name).stat().st_size for name in (_TOKENS, _CHUNKS)}
        write_json(new / _FACTS, {"sizes": sizes, "facts": facts})
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    found = _read(folder)
    assert found is not None
    return found


def _read(folder: Path) -> Chunks | None:
    """What a folder holds; None if it is not there or not whole."""
    try:
        known = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != size for name, size in known["sizes"].items()):
            return None
        tokens = _mapped(folder / _TOKENS, np.int32)
        return Chunks(tokens, _mapped(folder / _CHUNKS, np.int64).reshape(-1, 4), known["facts"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _mapped(path: Path, kind: Any) -> NDArray[Any]:
    """A file of numbers; one of none cannot be mapped."""
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.zeros(0, dtype=kind)
