"""What a run trains, on disk: weights, and checkpoints to go on from. Safetensors and JSON, nothing that could execute.

A checkpoint is the folder `step-0000123`:

    trained.safetensors        trainable parameters and persistent buffers
    optimizer.safetensors      moments and step counts
    best.safetensors           the weights of the best validation score so far
    progress.json              position in the data, schedule, generators of every process, scores, micro-batch size
    checkpoint.envelope.json   digests of these files, signed, chained to the statement before it

It is written beside its place, forced to the disk, and renamed: the rename is the commit. Only then does an old one go.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import faults, storage
from harness.errors import StorageError, UnusableRun
from harness.signing import digests, provenance
from harness.signing.keys import Key

WEIGHTS = "trained.safetensors"
ENVELOPE = "checkpoint.envelope.json"
_FILES = (WEIGHTS, "optimizer.safetensors", "best.safetensors", "progress.json")
_SPARE = 1.2


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters and the persistent buffers, copied to the host, by name."""
    persistent = model.state_dict()
    kept: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in kept.items()}


def save(state: dict[str, Tensor], folder: Path) -> Path:
    """Write `trained.safetensors`, whole or not at all. Raises StorageError."""
    path = folder / WEIGHTS
    storage.write_tensors(path, state)
    return path


def load(folder: Path) -> dict[str, Tensor]:
    """Read `trained.safetensors`. Raises StorageError."""
    try:
        return dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot read {folder / WEIGHTS}", why=str(error)) from error


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put saved values back, in place. Raises StorageError if they are not those of what this model trains."""
    expected = trained_state(model).keys()
    if expected != state.keys():
        odd = sorted(expected ^ state.keys())[:3]
        raise StorageError("these weights belong to another model or other methods", why=f"differing: {', '.join(odd)}")
    model.load_state_dict(state, strict=False)


@dataclass(frozen=True)
class Snapshot:
    """Everything a later process needs to go on from a step as if nothing had happened."""

    step: int
    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]
    progress: dict[str, Any]
    """Values that JSON can hold."""
    statement: str = ""
    """The attestation id of its statement, once it was saved."""
    attempt: int = 1
    """Counts the processes that worked on the run, one after the other."""


class _Damaged(StorageError):
    """A checkpoint that is proven not to be what was saved."""


class Signer(Protocol):
    """Signs a run's statements, each chained to the one before it."""

    def checkpoint(self, folder: Path, step: int) -> str:
        """Seal the files of a folder; returns the attestation id."""

    def follow(self, statement: str, attempt: int | None = None) -> None:
        """Let the next statement follow this one: its checkpoint is committed."""


class Unsigned:
    """Signs nothing: for whoever only reads."""

    def checkpoint(self, folder: Path, step: int) -> str:
        """Not to be called."""
        raise AssertionError("nothing is saved here")

    def follow(self, statement: str, attempt: int | None = None) -> None:
        """Nothing follows."""


class Checkpoints:
    """The checkpoints of one run, in `<run>/checkpoints`; copies of their statements stay in `<run>/chain`."""

    def __init__(
        self,
        run: Path,
        keep: int,
        signer: Signer,
        keys: Sequence[Key] = (),
        *,
        insecure: bool = False,
        notice: Callable[[str], None] = print,
    ) -> None:
        """`keys` authenticate what is read.

        Without `insecure` a checkpoint that none of them signed is refused, as soon as there is one.
        """
        self.folder, self.chain, self.keep = run / "checkpoints", run / "chain", keep
        self._signer, self._keys, self._insecure, self._notice = signer, keys, insecure, notice
        self._saved: int | None = None
        """The step of the newest checkpoint that this process wrote or read."""

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint whole or not at all, then remove the oldest beyond `keep`. Raises StorageError."""
        if snapshot.step == self._saved:
            return
        faults.point("checkpoint.before")
        self._sweep()
        for folder in self._committed():
            self._remember(folder)  # in case a full disk kept a statement from the chain
        temporary = self.folder / f".tmp-{snapshot.step:07d}-{os.getpid()}"
        try:
            self._refuse_full_disk(snapshot)
            statement = self._write(snapshot, temporary)
            final = self.folder / f"step-{snapshot.step:07d}"
            temporary.rename(final)
            faults.point("checkpoint.after_rename")
            storage.sync(self.folder)
            self._signer.follow(statement)
            self._saved = snapshot.step
            self._remember(final)
        except OSError as error:
            raise StorageError(f"cannot save the checkpoint of step {snapshot.step}", why=str(error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        faults.point("checkpoint.before_prune")
        for old in self._committed()[self.keep :]:
            with suppress(OSError):  # the next save tries again
                _remove(old)

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole and ours; None if none was ever saved.

        One that is proven to be damaged is set aside as `corrupt-...`, and the reason is told.

        Raises:
            StorageError: one cannot be read or authenticated here, or there were checkpoints and none is left.
        """
        self._sweep()
        reasons = []
        for folder in self._committed():
            try:
                snapshot = self._read(folder)
            except _Damaged as error:
                reasons.append(str(error))
                aside = folder.with_name(f"corrupt-{folder.name.removeprefix('step-')}-{os.urandom(2).hex()}")
                folder.rename(aside)
                self._notice(f"NOTE checkpoint {folder.name} cannot be used and is kept as {aside.name}: {error}")
                continue
            self._remember(folder)
            self._signer.follow(snapshot.statement)
            self._saved = snapshot.step
            return snapshot
        if reasons or any(self.folder.glob("corrupt-*")) or any(self.chain.glob("step-*")):
            why = "; ".join(reasons) or "those there were are gone, or were set aside as corrupt"
            fix = "start the experiment anew"
            raise UnusableRun(f"no checkpoint in {self.folder} can be used", why=why, fix=fix)
        return None

    def clear(self) -> None:
        """Remove all checkpoints of a run that is finished; their statements stay."""
        shutil.rmtree(self.folder, ignore_errors=True)  # in its place, which the end statement leaves out

    def _write(self, snapshot: Snapshot, folder: Path) -> str:
        storage.write_tensors(folder / WEIGHTS, snapshot.trained)
        faults.point("checkpoint.after_model")
        storage.write_tensors(folder / "optimizer.safetensors", snapshot.optimizer)
        faults.point("checkpoint.after_optimizer")
        storage.write_tensors(folder / "best.safetensors", snapshot.best)
        faults.point("checkpoint.after_best")
        storage.write_text(folder / "progress.json", json.dumps(snapshot.progress) + "\n")
        faults.point("checkpoint.after_progress")
        statement = self._signer.checkpoint(folder, snapshot.step)
        faults.point("checkpoint.after_envelope")
        storage.sync(folder)
        return statement

    def _refuse_full_disk(self, snapshot: Snapshot) -> None:
        tensors = [*snapshot.trained.values(), *snapshot.optimizer.values(), *snapshot.best.values()]
        needed = int(_SPARE * sum(tensor.nbytes for tensor in tensors)) + 2**16
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            what = f"disk full: the checkpoint of step {snapshot.step} needs {needed:,} bytes, {free:,} are free"
            raise StorageError(what, where=str(self.folder), fix="free some disk space, then resume")

    def _read(self, folder: Path) -> Snapshot:
        """One checkpoint, every file authenticated before it is parsed. Raises StorageError, _Damaged."""
        if not (folder / ENVELOPE).exists():
            raise _Damaged(f"{folder.name}/{ENVELOPE}: missing")
        envelope = provenance.open_envelope(folder / ENVELOPE, self._keys, "checkpoint")
        if envelope.check.ok is False:
            raise _Damaged(f"{folder.name}/{ENVELOPE}: {envelope.check.detail}")
        if envelope.predicate is None:
            fix = "put the key it was signed with into the keyring (harness keys list)"
            raise StorageError(f"{folder.name} cannot be authenticated", why=envelope.check.detail, fix=fix)
        if envelope.check.ok is None and self._keys and not self._insecure:
            fix = "--insecure accepts checkpoints that are not signed"
            raise StorageError(f"{folder.name} cannot be authenticated", why=envelope.check.detail, fix=fix)
        names = {path.name for path in folder.iterdir()} - {ENVELOPE}
        if odd := sorted(names ^ envelope.subjects.keys() | set(_FILES) - names):
            raise _Damaged(f"{folder.name}/{odd[0]}: missing, or not part of the checkpoint")
        content = {name: _authentic(folder / name, digest) for name, digest in envelope.subjects.items()}
        try:
            trained, optimizer, best = (parse_tensors(content[name]) for name in _FILES[:3])
            progress = json.loads(content["progress.json"])
            step, attempt = int(envelope.predicate["step"]), int(envelope.predicate["attempt"])
        except (SafetensorError, ValueError, KeyError) as error:
            raise _Damaged(f"{folder.name}: of another format", why=f"{type(error).__name__}: {error}") from error
        told = f"step-{step:07d} of {envelope.predicate.get('runId')}"
        if told != f"{folder.name} of {self.folder.parent.name}":
            raise _Damaged(f"{folder.name}: the statement is about {told}")
        return Snapshot(step, trained, optimizer, best, progress, envelope.attestation_id, attempt)

    def _remember(self, folder: Path) -> None:
        """Keep a copy of the statement: the chain stays whole when the checkpoint goes."""
        content, place, number = (folder / ENVELOPE).read_bytes(), self.chain / f"{folder.name}.json", 1
        while place.exists() and place.read_bytes() != content:  # a corrupt checkpoint was made again
            number += 1
            place = self.chain / f"{folder.name}-{number}.json"
        if not place.exists():
            storage.write_bytes(place, content)

    def _committed(self) -> list[Path]:
        """Newest first."""
        names = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{7,}", path.name)]
        return sorted(names, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def _sweep(self) -> None:
        """Remove what a dead process left half written; the run's lock is ours, so no living one does."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)


def _authentic(path: Path, digest: str) -> bytes:
    """The content of a file, if it is what was sealed. Raises StorageError, _Damaged."""
    try:
        content = digests.read(path, path.lstat().st_size)
    except (OSError, ValueError) as error:
        raise StorageError(f"{path.parent.name}/{path.name}: cannot be read", why=str(error)) from error
    found = hashlib.sha256(content).hexdigest()
    if not digests.same(found, digest):
        what = f"{path.parent.name}/{path.name}: changed since it was saved"
        raise _Damaged(what, why=f"{len(content)} bytes, sha256 {found[:12]}... instead of {digest[:12]}...")
    return content


def _remove(folder: Path) -> None:
    """Out of the way first, so that an interruption leaves nothing that looks like a checkpoint."""
    doomed = folder.with_name(f".tmp-{folder.name}-{os.urandom(4).hex()}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
