"""Memory that runs out on demand: a limit on the bytes of new tensors, on any machine."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class MemCap(TorchDispatchMode):
    """Raises torch's own `OutOfMemoryError` where an operation's new tensors would take more than `cap` bytes.

        with MemCap(cap=1_000_000) as memory:
            with memory.in_phase("backward"):
                loss.backward()

    Tensors made before it was entered count as nothing, views and changes in place neither. The error comes after the
    operation ran, so that what it changes in place is changed, as in a kernel that failed half way. What an operation
    takes inside and gives back is not seen.
    """

    def __init__(self, cap: float = math.inf, times: float = math.inf) -> None:
        """`times`: after so many errors the cap is lifted, as if somebody else had given memory back."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.cap, self.times = cap, times
        self.current = self.peak = 0
        self.live: dict[int, int] = {}
        self.phase = ""
        self.levels: list[tuple[str, int]] = []
        """Phase and bytes in use after every new tensor: one byte less as a cap, and that tensor does not fit."""
        self.failed: list[tuple[str, str]] = []
        """Phase and operation of every error."""

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @contextmanager
    def in_phase(self, phase: str) -> Iterator[None]:
        """Name what happens inside, for `levels` and `failed`."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def caps(self, phase: str) -> list[int]:
        """Every cap at which another tensor of this phase is the first that does not fit, largest first."""
        highest, found = 0, set()
        for where, level in self.levels:
            if level > highest and where == phase:
                found.add(level - 1)
            highest = max(highest, level)
        return sorted(found, reverse=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.live:
                self._note(storage, 0)  # made before: whatever was made since is known
        outputs = func(*args, **(kwargs or {}))
        for storage in _storages(outputs):
            if storage._cdata not in self.live:
                self._take(storage, str(func))
        return outputs

    def _take(self, storage: torch.UntypedStorage, name: str) -> None:
        size = storage.nbytes()
        if self.current + size > self.cap and len(self.failed) < self.times:
            self.failed.append((self.phase, name))
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self._note(storage, size)
        if size:
            self.levels.append((self.phase, self.current))

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        self.live[storage._cdata] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.current -= self.live.pop(key, 0)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_flatten(tree)[0]:
        if isinstance(leaf, torch.Tensor):
            parts = (leaf._indices(), leaf._values()) if leaf.is_sparse else (leaf,)
            yield from (part.untyped_storage() for part in parts)
