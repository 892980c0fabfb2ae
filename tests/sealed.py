"""Signed runs with checkpoints, as the package leaves them, made of small files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.signing.keys import Key
from harness.signing.provenance import seal

FILES = ("trained.safetensors", "optimizer.safetensors", "best.safetensors", "progress.json")
COMMON: dict[str, Any] = {
    "runId": "lora-s1-ab12", "specId": "sha256:" + "0" * 64, "seeds": ["1"],
    "data": [{"split": "test", "sha256": "sha256:" + "1" * 64, "rows": 9}],
    "baseModel": {"id": "builtin:minilm", "revision": ""}, "startedAt": "2026-01-02T03:04:05+00:00",
}  # fmt: skip


def start(folder: Path, key: Key | None, **claims: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text("rank: 8\n")
    return seal(folder, "start", {**COMMON, **claims}, key, subjects=["spec.yaml"])


def checkpoint(folder: Path, step: int, prev: str, key: Key | None, attempt: int = 1, /, **claims: Any) -> str:
    place = folder / "checkpoints" / f"step-{step:07d}"
    place.mkdir(parents=True)
    for name in FILES:
        (place / name).write_text(f"{name} {step}\n")
    claim = {**COMMON, "prev": prev, "step": step, "attempt": attempt, "savedAt": "2026-01-02T03:05:00+00:00", **claims}
    statement = seal(place, "checkpoint", claim, key)
    (folder / "chain").mkdir(exist_ok=True)
    shutil.copy(place / "checkpoint.envelope.json", folder / "chain" / f"{place.name}.json")
    return statement


def end(folder: Path, prev: str, key: Key | None, attempt: int = 1, **claims: Any) -> str:
    """Seal the end, after which the checkpoints go."""
    (folder / "card.md").write_text("# lora\n")
    scores = {"metrics": {"test/f1_macro": 0.75}, "finishedAt": "2026-01-02T03:06:00+00:00"}
    claim = {**COMMON, **scores, "prev": prev, "attempt": attempt, **claims}
    statement = seal(folder, "end", claim, key, exclude=["checkpoints"])
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return statement


def interrupted(folder: Path, key: Key | None) -> str:
    """A run that was stopped after two checkpoints; returns the last statement."""
    return checkpoint(folder, 20, checkpoint(folder, 10, start(folder, key), key), key)


def finished(folder: Path, key: Key | None) -> Path:
    """10 <- 20 in the first attempt, 10 <- 15 <- 25 <- end in the second: the statement of step 20 is abandoned."""
    first = checkpoint(folder, 10, start(folder, key), key)
    checkpoint(folder, 20, first, key)
    last = checkpoint(folder, 25, checkpoint(folder, 15, first, key, 2), key, 2)
    end(folder, last, key, 2)
    return folder
