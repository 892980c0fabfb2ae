"""Finished runs, read from their folders as their signed end statements tell them, and what each is a run of."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.metric import History
from harness.signing import digests, provenance
from harness.signing.keys import Key
from harness.specs import changes, schema, spec, yaml_source
from harness.statistics.item_significance import Labels
from harness.statistics.significance import Floats

_USED = ("spec.yaml", "parameters.json", "data.json", "test/predictions.csv", "learning_curves.json")
_COLUMNS = ("label", "predicted")


@dataclass(frozen=True)
class Predictions:
    """What a run said of each item of the test split."""

    labels: Labels
    """[N]"""
    predicted: Labels
    """[N]"""
    label_names: list[str]
    confidence: Floats | None = None
    """Probability of the predicted label, where it is known. [N]"""
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """What was judged, where it is known. [N]"""


@dataclass(frozen=True)
class Entry:
    """One finished run."""

    run: str
    seed: int
    settings: dict[str, Any]
    """Its spec, with dotted keys."""
    scores: dict[str, float]
    """Of the end statement."""
    trainable: int
    share: float
    """Trainable parameters against those of full fine-tuning."""
    weights_mib: float
    """Size of what was trained, as it lies on the disk; nan: it is not here."""
    test: str
    """The task, the digest of the test split, and the labels in their order: scores on different ones are never
    compared."""
    test_rows: int
    finished: str
    """When, as the end statement says."""
    device: str
    """What it trained on: `cpu`, or names of GPUs."""
    test_tokens: int = 0
    """Of the test split that were to be predicted, or that it has; 0: the run did not write it down."""
    memory: dict[str, float] = field(default_factory=dict)
    """Estimated GiB, as `footprint.estimate`; empty where the run did not write it down."""
    curves: History = field(default_factory=dict)
    """Learning curves: of each metric, step and value."""
    predictions: Predictions | None = None


@dataclass(frozen=True)
class Run:
    """A finished run, and what it is a run of."""

    experiment: str
    words: tuple[str, ...]
    entry: Entry
    study: str = ""

    @property
    def key(self) -> tuple[str, str, tuple[str, ...], str]:
        """Runs with the same one differ in their seed only."""
        return self.study, self.experiment, self.words, self.entry.test

    @property
    def label(self) -> str:
        """What one types to name it and those like it."""
        return " ".join([self.experiment, *self.words])


class Reader:
    """Reads folders of runs, and notes what cannot be used."""

    def __init__(self, output: Path, keyring: list[Key]) -> None:
        self.output, self._keyring = output, keyring
        self.notes: list[str] = []

    def whole(self, run: str) -> Iterator[Run]:
        """A finished run, or those of a group of replicates."""
        group = self.output / "runs" / run / "replicates.json"
        names = json.loads(group.read_text(encoding="utf-8")) if group.is_file() else [run]
        for name in names:
            yield from self.finished(name)

    def finished(
        self, run: str, scores: dict[str, float] | None = None, predictions: Predictions | None = None
    ) -> Iterator[Run]:
        """A finished run; nothing but a note if it is not here, unfinished, unreadable, or was edited.

        `scores`, `predictions`: on the test split, where the run itself was not judged on it.
        """
        try:
            yield self._read(self.output / "runs" / run, scores or {}, predictions)
        except _Unusable as error:
            self.notes.append(f"left out, {error}: {run}")
        except (HarnessError, OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            self.notes.append(f"left out, it cannot be read ({type(error).__name__}: {error}): {run}")

    def _read(self, folder: Path, scores: dict[str, float], predictions: Predictions | None) -> Run:
        if not folder.is_dir():
            raise _Unusable(f"it is not in {folder.parent}")
        if not (folder / "end.envelope.json").exists():
            raise _Unusable("it did not finish")
        envelope = provenance.open_envelope(folder / "end.envelope.json", self._keyring)
        if (end := envelope.predicate) is None:
            raise _Unusable(f"its end statement cannot be trusted ({envelope.check.detail})")
        if not any(key.startswith("test/") for key in scores | end["metrics"]):
            raise _Unusable("it was not judged on the test split")
        used = [name for name in _USED if name in envelope.subjects]
        if odd := [name for name in used if digests.file_digest(folder / name) != envelope.subjects[name]]:
            raise _Unusable(f"{' and '.join(odd)} changed after it ended")
        resolved = yaml_source.load(folder / "spec.yaml")
        entry = _entry(folder, resolved, end, scores, predictions)
        return Run(str(resolved["name"]), tuple(words(resolved)), entry)


class _Unusable(Exception):
    """A run that is left out, and why."""


def _entry(
    folder: Path, resolved: dict[str, Any], end: dict[str, Any], scores: dict[str, float], judged: Predictions | None
) -> Entry:
    parameters = json.loads((folder / "parameters.json").read_text(encoding="utf-8"))
    test = next(split for split in end["data"] if split["split"] == "test")
    data = folder / "data.json"
    facts = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    labels = facts["splits"]["train"]["labels"] if facts else []
    counted = facts.get("tokens", {}).get("test", {})
    weights = folder / "weights" / "trained.safetensors"
    size = weights.stat().st_size / 1024**2 if weights.exists() else float("nan")
    return Entry(
        folder.name, int(end["seeds"][0]), dict(schema.flatten(resolved)), {**end["metrics"], **scores},
        parameters["trainable"], parameters["share_of_full_fine_tuning"], size,
        " ".join([*resolved["task"], test["sha256"], *labels]), test["rows"], end.get("finishedAt", ""),
        end.get("env", {}).get("device", ""), counted.get("targets", counted.get("tokens", 0)),
        parameters.get("memory_estimate_gib", {}), _curves(folder / "learning_curves.json"),
        judged or _predictions(folder / "test" / "predictions.csv"),
    )  # fmt: skip


def _curves(file: Path) -> History:
    """{}: the run did not write them down."""
    known = json.loads(file.read_text(encoding="utf-8"))["curves"] if file.exists() else {}
    return {key: [(int(step), float(y)) for step, y in of if y is not None] for key, of in known.items()}


def _predictions(file: Path) -> Predictions | None:
    """Those of a classifier; None: there are none, or they are of another kind."""
    if not file.exists():
        return None
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8", newline="") as opened:
        table = csv.DictReader(opened)
        names = [key.removeprefix("probability_") for key in table.fieldnames or () if key.startswith("probability_")]
        rows = list(table)
    if not names or any(row[key] not in names for row in rows for key in _COLUMNS):
        return None
    labels, predicted = (np.array([names.index(row[key]) for row in rows], dtype=np.int64) for key in _COLUMNS)
    confidence = np.array([float(row["confidence"]) for row in rows])
    texts = [" | ".join(filter(None, (row["text"], row.get("pair")))) for row in rows]
    return Predictions(labels, predicted, names, confidence, [row["id"] for row in rows], texts)


def label(resolved: dict[str, Any]) -> str:
    """The experiment's name, and what was set differently on its command line."""
    return " ".join([str(resolved["name"]), *words(resolved)])


def words(resolved: dict[str, Any]) -> list[str]:
    """What a spec has that its experiment's file does not; where that is gone, what base.yaml does not have."""
    shipped = _shipped(str(resolved["name"]))
    own = {key: value for key, value in schema.flatten(resolved) if changes.is_of_training(key)}
    given = [f"{key}={own[key]}" for key in changes.changed(own, shipped)]
    return [*given, *(f"~{plugin}" for plugin in changes.removed(own, shipped))]


@functools.cache
def _shipped(name: str) -> dict[str, Any]:
    """An experiment as its file has it now, or base.yaml alone where there is none that can be read."""
    try:
        return spec.load(name).flat()
    except HarnessError:
        return spec.defaults()
