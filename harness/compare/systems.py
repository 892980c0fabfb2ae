"""What is compared: finished runs alike in all but the seed, as their signed end statements tell them."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import digests, keys, provenance, spec, tracking, yaml_source
from harness.errors import HarnessError, SpecError, did_you_mean
from harness.item_significance import Labels
from harness.keys import Key
from harness.significance import Floats

OF_THE_RUN = ("name", "seeds", "output", "tracking", "provenance", "latency", "evaluation", "compression", "checkpoint")
"""Settings that do not change what is trained."""
_COLUMNS = ("label", "predicted")
_FILTER = re.compile(r"(=|!=|<|>|\b(LIKE|ILIKE|IN|IS)\b)", re.IGNORECASE)


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
    """Digest of the test split: scores on different ones are never compared."""
    test_rows: int
    finished: str
    """When, as the end statement says."""
    predictions: Predictions | None = None


@dataclass(frozen=True)
class System:
    """A method with its settings, trained with one seed or several."""

    label: str
    """The experiment, with every setting that its file does not have; what one types to name it again."""
    entries: dict[int, Entry]
    """By seed."""
    name: str = ""
    """For people: as short as it is clear beside the others."""

    @property
    def first(self) -> Entry:
        """Any of them: for what does not depend on the seed."""
        return next(iter(self.entries.values()))

    def values(self, metric: str, seeds: Iterable[int] | None = None) -> list[float]:
        """A metric of the end statements, seed by seed. Raises KeyError where a run has none."""
        return [self.entries[seed].scores[metric] for seed in (self.entries if seeds is None else seeds)]


@dataclass
class Found:
    """What the names stood for, and what there is to say about it."""

    systems: list[System] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(asked: Sequence[str], output: Path, uri: str | None = None) -> Found:
    """The systems that these names stand for, in that order; without names all that have finished runs.

    Args:
        asked: experiments, with all their finished runs (`lora`, or `"lora train.epochs=2"` for one variant of it);
            runs by name, MLflow id, or the name of a group of replicates; studies, with the winners of search and
            baseline; filters in MLflow's language (`tags.team = 'blue'`).
        output: the folder of runs.
        uri: MLflow's store, for filters and ids; default: the one that is set, else SQLite in `output`.

    Raises:
        SpecError: a name that nothing is called, or nothing finished.
        StorageError: the store cannot be read.
    """
    reader, found = _Reader(output, keys.load_keyring()), Found()
    pinned: list[tuple[str, Entry]] = []
    for name in asked or [""]:
        entries = list(_resolve(name, reader, output, uri, found))
        pinned += [(one, entry) for one, entry in entries if all(entry.run != other.run for _, other in pinned)]
    found.notes = [*dict.fromkeys([*found.notes, *reader.notes])]
    found.systems = _group(pinned, found.notes)
    return found


def _resolve(name: str, reader: _Reader, output: Path, uri: str | None, found: Found) -> Iterator[tuple[str, Entry]]:
    """The runs that one name stands for, each with the name of its system."""
    folder, study = output / "runs" / name, output / "studies" / name
    exp = name.split(" ")[0]
    if not name or exp in spec.names():
        yield from _of_experiment(name, reader, output, found)
    elif (study / "test").is_dir():
        yield from _of_study(study, reader)
    elif (folder / "replicates.json").is_file():
        for child in json.loads((folder / "replicates.json").read_text(encoding="utf-8")):
            yield from reader.finished(child)
    elif folder.is_dir():
        if not (one := list(reader.finished(name))):
            raise SpecError(f"{name} did not finish, or cannot be read", where=str(folder), fix="\n".join(reader.notes))
        yield from one
    elif _FILTER.search(name):
        runs = tracking.find_runs(uri, output, name)
        entries = [one for run in runs for one in reader.finished(run.name)]
        if missing := [run.name for run in runs if not (output / "runs" / run.name).is_dir()]:
            found.notes.append(f"not in {output / 'runs'}, left out: {', '.join(missing)}")
        if not entries:
            raise SpecError(f"no finished run fits the filter {name}", fix="try it in MLflow's search field")
        yield from entries
    elif re.fullmatch(r"[0-9a-f]{32}", name) and (run := tracking.find_run(uri, output, name)):
        yield from reader.finished(run.name)
    else:
        places = [*(output / "runs").glob("*"), *(output / "studies").glob("*")]
        known = [*spec.names(), *(path.name for path in places)]
        what = f"no experiment, run or study is called '{name}'"
        raise SpecError(what, where=str(output), fix=did_you_mean(name, known))


def _of_experiment(name: str, reader: _Reader, output: Path, found: Found) -> Iterator[tuple[str, Entry]]:
    """All finished runs of an experiment as its file has it, or of the variant that is named; without a name, of all.

    Where there is no run of it as its file has it, all its variants.
    """
    exp = name.split(" ")[0]
    begun = [path.parent for path in sorted((output / "runs").glob("*/start.envelope.json"))]
    names = [folder.name for folder in begun if not (folder / "trial.json").exists()]
    of_experiment = [run for run in names if not exp or run.startswith(f"{exp[:40]}-")]
    entries = [one for run in of_experiment for one in reader.finished(run)]
    variants = [(label, entry) for label, entry in entries if not name or label.split(" ")[0] == exp]
    exact = [(label, entry) for label, entry in variants if label == name]
    others = ", ".join(sorted({f'"{label}"' for label, _ in variants if label != name}))
    if exact and others:
        found.notes.append(f"not asked for: {others}")
    chosen = exact or (variants if name == exp else [])
    if not chosen:
        what = f"no finished run of {name or 'any experiment'} in {output / 'runs'}"
        fix = f"accelerate launch launch.py exp={exp or 'full_finetune'} seeds=[0,1,2]"
        raise SpecError(what, why=f"there are {others}" if others else "", fix=fix)
    yield from chosen


def _of_study(study: Path, reader: _Reader) -> Iterator[tuple[str, Entry]]:
    """The confirmed runs of a study that met the test split, as their systems."""
    latency = study / "latency" / "latency.json"
    rows = json.loads(latency.read_text(encoding="utf-8")) if latency.exists() else []
    for file in sorted((study / "test").glob("*.json")):
        judged = json.loads(file.read_text(encoding="utf-8"))
        labels, predicted = (np.asarray(judged[key], dtype=np.int64) for key in ("labels", "predicted"))
        predictions = Predictions(labels, predicted, judged["label_names"])
        scores = judged["scores"] | _latency(rows, reader.arm(file.stem))
        for label, entry in reader.finished(file.stem, scores, predictions):
            yield f"{study.name}: {label}", entry


def _latency(rows: list[dict[str, Any]], arm: str) -> dict[str, float]:
    """What a study measured of the winner of one arm, under the names that runs use."""
    names = {arm: "unmerged", f"{arm} merged": "merged"}
    return {
        f"latency/{names[row['variant']]}_b{row['batch_size']}_t{row['length']}_{key}": row[key]
        for row in rows
        for key in ("p50_ms", "p95_ms")
        if row["variant"] in names
    }


def _group(named: list[tuple[str, Entry]], notes: list[str]) -> list[System]:
    """Runs by system; of several with one seed the latest counts."""
    systems: dict[tuple[str, str], dict[int, Entry]] = {}
    for name, entry in sorted(named, key=lambda one: one[1].finished):
        of = systems.setdefault((name, entry.test), {})
        if entry.seed in of:
            notes.append(f"{name}, seed {entry.seed}: {entry.run} counts, {of[entry.seed].run} does not")
        of[entry.seed] = entry
    order = dict.fromkeys((name, entry.test) for name, entry in named)
    return named_apart([System(key[0], dict(sorted(systems[key].items()))) for key in order])


def named_apart(systems: list[System]) -> list[System]:
    """The same with names: the experiment, and of its settings only those that tell it from others of this name."""
    words = [system.label.rpartition(": ")[2].split(" ") for system in systems]
    names = []
    for own in words:
        rivals = [other for other in words if other[0] == own[0]]
        telling = [word for word in own[1:] if any(word not in rival for rival in rivals)]
        names.append(" ".join([own[0], *map(_short, telling)]))
    return [
        replace(system, name=name if names.count(name) == 1 else system.label)
        for system, name in zip(systems, names, strict=True)
    ]


def _short(word: str) -> str:
    """A setting with the last part of its key, and four digits of a number."""
    key, _, value = word.rpartition("=")
    return f"{key.rpartition('.')[2]}={told(value)}"


def told(value: Any) -> str:
    """A setting's value for people: four digits of a number that is not whole."""
    try:
        return f"{float(value):.4g}" if isinstance(value, float) or re.search(r"\d\.\d", str(value)) else str(value)
    except (TypeError, ValueError):
        return str(value)


class _Reader:
    """Reads folders of runs, and notes what cannot be trusted."""

    def __init__(self, output: Path, keyring: list[Key]) -> None:
        self._output, self._keyring = output, keyring
        self.notes: list[str] = []

    def arm(self, run: str) -> str:
        """The arm of a study that a run belongs to."""
        file = self._output / "runs" / run / "trial.json"
        return str(json.loads(file.read_text(encoding="utf-8"))["arm"]) if file.exists() else ""

    def finished(
        self, run: str, scores: dict[str, float] | None = None, predictions: Predictions | None = None
    ) -> Iterator[tuple[str, Entry]]:
        """A finished run and the name of its system; nothing but a note if it is unfinished or was edited.

        `scores`, `predictions`: on the test split, where the run itself was not judged on it.
        """
        folder = self._output / "runs" / run
        if not (folder / "end.envelope.json").exists():
            self.notes.append(f"left out, it did not finish: {run}")
            return
        envelope = provenance.open_envelope(folder / "end.envelope.json", self._keyring)
        if envelope.predicate is None:
            self.notes.append(f"left out, its end statement cannot be trusted ({envelope.check.detail}): {run}")
            return
        if not any(key.startswith("test/") for key in (scores or {}) | envelope.predicate["metrics"]):
            return  # a trial: it never met the test split
        used = [name for name in ("spec.yaml", "parameters.json", "test/predictions.csv") if name in envelope.subjects]
        if odd := [name for name in used if digests.file_digest(folder / name) != envelope.subjects[name]]:
            self.notes.append(f"left out, {' and '.join(odd)} changed after it ended: {run}")
            return
        resolved = yaml_source.load(folder / "spec.yaml")
        yield label(resolved), _entry(folder, resolved, envelope.predicate, scores or {}, predictions)


def _entry(
    folder: Path, resolved: dict[str, Any], end: dict[str, Any], scores: dict[str, float], judged: Predictions | None
) -> Entry:
    parameters = json.loads((folder / "parameters.json").read_text(encoding="utf-8"))
    test = next(split for split in end["data"] if split["split"] == "test")
    weights = folder / "weights" / "trained.safetensors"
    size = weights.stat().st_size / 1024**2 if weights.exists() else float("nan")
    return Entry(
        folder.name, int(end["seeds"][0]), dict(spec.flatten(resolved)), {**end["metrics"], **scores},
        parameters["trainable"], parameters["share_of_full_fine_tuning"], size,
        test["sha256"], test["rows"], end.get("finishedAt", ""),
        judged or _predictions(folder / "test" / "predictions.csv"),
    )  # fmt: skip


def _predictions(file: Path) -> Predictions | None:
    """Those of a classifier; None: there are none, or they are of another kind."""
    if not file.exists():
        return None
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
    name = str(resolved["name"])
    if (shipped := _shipped(name)) is None:
        return name
    own = {key: value for key, value in spec.flatten(resolved) if key.split(".")[0] not in OF_THE_RUN}
    return " ".join([name, *(f"{k}={v}" for k, v in own.items() if shipped.get(k, v if k in shipped else None) != v)])


@functools.cache
def _shipped(name: str) -> dict[str, Any] | None:
    """An experiment as its file has it now; None: there is none."""
    try:
        return spec.load(name).flat()
    except HarnessError:
        return None
