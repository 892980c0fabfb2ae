"""Texts in a temporary file instead of memory, and sequences that are made of them when they are asked for."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from harness.errors import StorageError
from harness.storage import cache_folder

_T = TypeVar("_T")


class TextFile:
    """A file without a name, in the cache's file system: it is gone with the last of its texts, or with the process.

    Reading has no position of its own, so threads and forked processes may share the file.
    """

    def __init__(self) -> None:
        """Raises StorageError: the cache cannot be written."""
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            # not buffered: a fork inherits nothing that is half written
            self._file = tempfile.TemporaryFile(dir=cache_folder(), buffering=0)  # noqa: SIM115 - the finalizer closes
        except OSError as error:
            raise _not_kept(error) from error
        weakref.finalize(self, self._file.close)
        self._size = 0

    def keep(self, texts: Sequence[str]) -> KeptTexts:
        """Write the texts of a row, which hold no NUL character. Raises StorageError."""
        content = "\0".join(texts).encode()
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _not_kept(error) from error
        self._size += len(content)
        return KeptTexts(self, self._size - len(content), len(content))

    def read(self, begin: int, size: int) -> list[str]:
        """The texts in so many bytes from there on. Raises StorageError."""
        try:
            content = os.pread(self._file.fileno(), size, begin)
        except OSError as error:
            raise StorageError("cannot read a text that was kept", why=str(error)) from error
        if len(content) < size:
            raise StorageError("cannot read a text that was kept", why=f"{len(content)} of {size} bytes came back")
        return content.decode().split("\0")


@dataclass(frozen=True, slots=True)
class KeptTexts:
    """The texts of a row, read each time they are gone through. Raises StorageError where they cannot be."""

    file: TextFile
    begin: int
    size: int

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.read(self.begin, self.size))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the texts themselves."""
        return tuple, (tuple(self),)


class Made(Sequence[_T], Generic[_T]):
    """A sequence whose items are made of their parts each time they are asked for."""

    def __init__(self, make: Callable[..., _T], parts: list[tuple[Any, ...]]) -> None:
        self._make, self._parts = make, parts

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> Made[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | Made[_T]:
        if isinstance(index, slice):
            return Made(self._make, self._parts[index])
        return self._make(*self._parts[index])


def _not_kept(error: OSError) -> StorageError:
    fix = "free some disk space, or set HARNESS_CACHE to a folder that can be written"
    return StorageError(f"cannot keep texts in {cache_folder()}", why=str(error), fix=fix)
