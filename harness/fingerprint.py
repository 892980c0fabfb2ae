"""What the statements of a run say: which spec, data, code, model and machine it started from, what it ended with."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from harness import device, digests, provenance
from harness.assembly import Loaded
from harness.keys import Key
from harness.spec import Spec
from harness.storage import PROJECT

_INPUTS = ("spec.yaml", "data.json", "parameters.json", "environment.txt")


class Statement:
    """The start statement of a run, and the end statement chained to it."""

    def __init__(
        self, spec: Spec, seed: int, name: str, loaded: Loaded, accelerator: Accelerator, key: Key | None
    ) -> None:
        self._key = key
        self._prev = ""
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
        self._prev = provenance.seal(folder, "start", self._common, self._key, subjects=_INPUTS)

    def end(self, folder: Path, scores: dict[str, float]) -> None:
        """Seal every file of the folder and the scores."""
        ending = {**self._common, "prev": self._prev, "metrics": scores, "finishedAt": _now()}
        provenance.seal(folder, "end", ending, self._key)


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
