"""Folders of finished runs as `harness.run` leaves them, as far as a comparison reads them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.signing import provenance
from harness.specs import spec

LABELS = ("bad", "good")


def finished(
    output: Path, name: str, seed: int, f1: float, test: str = "a", predicted: Sequence[int] | None = None,
    run: str = "", scores: dict[str, float] | None = None, without: Sequence[str] = (), is_judged: bool = True,
    tokens: int = 0, trainable: int = 1234, memory: dict[str, float] | None = None,
    curve: Sequence[float | None] = (), **settings: Any,
) -> Path:  # fmt: skip
    """A run of an experiment with this score, and with these predictions of items whose true labels alternate.

    `tokens`: of the test split; `memory`: its estimate; `curve`: its validation score after each ten steps.
    """
    folder = output / "runs" / (run or f"{name}-s{seed}-{len(list(output.glob('runs/*'))):04x}")
    (folder / "test").mkdir(parents=True)
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    overrides += [f"~{key}" for key in without]
    resolved = {**spec.load(name, overrides).resolved(), "seeds": [seed]}
    (folder / "spec.yaml").write_text(yaml.safe_dump(resolved))
    parameters: dict[str, Any] = {"trainable": trainable, "share_of_full_fine_tuning": 0.5}
    parameters |= {"memory_estimate_gib": memory} if memory else {}
    (folder / "parameters.json").write_text(json.dumps(parameters))
    if tokens:
        known_tokens = {"splits": {"train": {"labels": {}}}, "tokens": {"test": {"tokens": tokens}}}
        (folder / "data.json").write_text(json.dumps(known_tokens))
    if curve:
        points = [[10 * i, value] for i, value in enumerate(curve, start=1)]
        known = {"kept": 10, "curves": {"validation/f1_macro": points}}
        (folder / "learning_curves.json").write_text(json.dumps(known))
    if predicted is not None:
        with (folder / "test" / "predictions.csv").open("w", newline="") as file:
            table = csv.writer(file)
            probabilities = [f"probability_{label}" for label in LABELS]
            table.writerow(["id", "text", "label", "predicted", "correct", "confidence", *probabilities])
            rows = [[i, f"text {i}", LABELS[i % 2], LABELS[one], one == i % 2] for i, one in enumerate(predicted)]
            table.writerows([*row, 0.75, 0.25, 0.75] for row in rows)
    measured = {"time/train_s": 10.0 + seed, "memory/peak_gib": 1.5 + seed}
    measured |= {"test/f1_macro": f1, "test/accuracy": 0.9} if is_judged else {}
    data = [{"split": "test", "sha256": f"sha256:{test * 64}", "rows": 7}]
    when = f"2026-01-01T00:00:{len(list(output.glob('runs/*'))):02d}+00:00"
    predicate = {"runId": folder.name, "seeds": [str(seed)], "data": data, "finishedAt": when}
    provenance.seal(folder, "start", predicate, None, subjects=["spec.yaml"])
    end: dict[str, Any] = {**predicate, "metrics": {**measured, **(scores or {})}, "env": {"device": "cpu"}}
    provenance.seal(folder, "end", end, None)
    return folder
