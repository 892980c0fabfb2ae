"""What the statements of a run say: which spec, data, code, model and machine it started from, what it ended with."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from harness.assembly import Loaded
from harness.errors import UnusableRun, UserError
from harness.machine import device
from harness.signing import digests, provenance
from harness.signing.keys import Key
from harness.specs.schema import Spec
from harness.storage import PROJECT

_INPUTS = ("spec.yaml", "data.json", "parameters.json", "environment.txt")


class Statement:
    """The start statement of a run, and the end statement chained to it."""

    def __init__(
        self, spec: Spec, seed: int, name: str, loaded: Loaded, accelerator: Accelerator, key: Key | None
    ) -> None:
        self._key = key
        self.latest = ""
        """The attestation id of the last statement: the next one follows it."""
        self._attempt = 1
        self.changes: list[str] = []
        """What is not as it was when the run began, and may be: after `resume`."""
        splits = (loaded.splits.train, loaded.splits.validation, loaded.splits.test)
        self._common: dict[str, Any] = {
            "runId": name,
            "specId": digests.identity(spec.resolved()),
            "code": code_state(),
            "data": [{"split": s.name, "sha256": s.digest, "rows": len(s.examples)} for s in splits],
            "baseModel": loaded.base_model,
            "seeds": [str(seed)],
            "world": {"size": accelerator.num_processes, "precision": str(accelerator.mixed_precision)},
            "host": {"machineHmac": digests.machine_id_digest()},
            "env": {"python": platform.python_version(), **device.describe(), "torch": torch.__version__},
            "startedAt": _now(),
        }

    @property
    def signed_by(self) -> str:
        """A sentence for people."""
        if self._key is None:
            return "UNSIGNED: no signing key (make one with `harness keygen`)."
        return f"Signed with key {self._key.keyid}."

    def start(self, folder: Path) -> None:
        """Seal what the run starts from, before training."""
        self.latest = provenance.seal(folder, "start", self._common, self._key, subjects=_INPUTS)

    def resume(self, folder: Path, keys: Sequence[Key], *, insecure: bool = False) -> None:
        """Go on under the start statement that is there.

        Raises:
            StorageError: it is not authentic, or the inputs it covers were edited.
            UserError: data, model or precision are not those the run began with.
        """
        envelope = provenance.open_envelope(folder / "start.envelope.json", keys)
        is_unsigned = envelope.check.ok is None and envelope.predicate is not None
        if envelope.predicate is None or (is_unsigned and keys and not insecure):
            before = "; it began before there was a key here, or somebody without it wrote it" if is_unsigned else ""
            fix = "--insecure goes on with a run that is not signed" if is_unsigned else "start the experiment anew"
            why = f"{envelope.check.detail}{before}"
            raise UnusableRun("the start statement cannot be authenticated", why=why, fix=fix)
        for name, digest in envelope.subjects.items():
            if not digests.same(digests.file_digest(folder / name), digest):
                fix = "start the experiment anew: a run keeps what it began with"
                raise UnusableRun(f"{name} was edited since the run began", where=str(folder), fix=fix)
        if not digests.same(envelope.predicate.get("runId"), self._common["runId"]):
            fix = f"call the folder {envelope.predicate.get('runId')!r} again"
            raise UserError("the folder of another run", where=str(folder), fix=fix)
        for key in ("data", "baseModel", "seeds"):
            if envelope.predicate.get(key) != self._common[key]:
                why = f"then {envelope.predicate.get(key)}, now {self._common[key]}"
                raise UserError(f"{key} is not what the run began with", where=str(folder), why=why)
        self.changes = [
            f"{key}.{name} was {_short(before)}, is {_short(now)}"
            for key in ("code", "world", "env")
            for name, before, now in _differences(envelope.predicate.get(key), self._common[key])
        ]
        self._common["specId"] = envelope.predicate.get("specId")  # places (output, tracking.uri) may have changed
        self.latest = envelope.attestation_id

    def follow(self, statement: str, attempt: int | None = None) -> None:
        """Let the next statement follow this one; `attempt` counts the processes that worked on the run."""
        self.latest, self._attempt = statement, attempt or self._attempt

    def checkpoint(self, folder: Path, step: int) -> str:
        """Seal the files of a checkpoint, chained to the statement before it; returns its attestation id.

        The next statement does not follow it before `follow` says that the checkpoint was committed.
        """
        claim = {**self._common, "prev": self.latest, "step": step, "attempt": self._attempt, "savedAt": _now()}
        return provenance.seal(folder, "checkpoint", claim, self._key)

    def end(self, folder: Path, scores: dict[str, float]) -> None:
        """Seal every file of the folder but its checkpoints, which go, and the scores."""
        own = {"prev": self.latest, "attempt": self._attempt, "metrics": scores, "finishedAt": _now()}
        self.latest = provenance.seal(folder, "end", {**self._common, **own}, self._key, exclude=["checkpoints"])


def _differences(before: Any, now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, value before and value now of each entry that differs."""
    known = before if isinstance(before, dict) else {}
    return [(k, known.get(k), now.get(k)) for k in sorted({*known, *now}) if known.get(k) != now.get(k)]


def _short(value: object) -> str:
    return "nothing" if value is None else str(value)[:12]


def code_state() -> dict[str, str]:
    """Commit of the project, digest of what differs from it, and digest of the harness's source files."""
    sources = sorted([*(PROJECT / "harness").rglob("*.py"), PROJECT / "launch.py"])
    tree = hashlib.sha256()
    for path in sources:
        tree.update(f"{path.relative_to(PROJECT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    state = {"treeSha256": tree.hexdigest()}
    commit, difference = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    if commit is not None and difference is not None:
        state |= {"commit": commit.decode().strip()}
        state |= {"dirtyDiffSha256": hashlib.sha256(difference).hexdigest()} if difference else {}
    return state


def _git(*arguments: str) -> bytes | None:
    try:
        return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
