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

_OF_THE_RUN = ("name", "seeds", "output", "tracking", "provenance", "latency", "compression", "checkpoint")
_OF_THE_END = ("evaluation.final", "evaluation.baselines")
_USED = ("spec.yaml", "parameters.json", "data.json", "test/predictions.csv")
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
    """Digest of the test split, and the labels in their order: scores on different ones are never compared."""
    test_rows: int
    finished: str
    """When, as the end statement says."""
    predictions: Predictions | None = None


@dataclass(frozen=True)
class System:
    """A method with its settings, trained with one seed or several."""

    experiment: str
    words: tuple[str, ...]
    """Every setting that the experiment's file does not have, as one types it; `~methods.awp`: a method left out."""
    entries: dict[int, Entry]
    """By seed."""
    study: str = ""
    """The study that it won; "": an experiment of its own."""
    name: str = ""
    """For people: as short as it is clear beside the others."""

    @property
    def label(self) -> str:
        """The whole name."""
        return f"{self.study}: {self.own_label}" if self.study else self.own_label

    @property
    def own_label(self) -> str:
        """The same without its study: what one types to name an experiment's runs."""
        return " ".join([self.experiment, *self.words])

    @property
    def first(self) -> Entry:
        """Any of them: for what does not depend on the seed."""
        return next(iter(self.entries.values()))

    def values(self, metric: str, seeds: Iterable[int] | None = None) -> list[float]:
        """A metric of the end statements, seed by seed. Raises KeyError where a run has none."""
        return [self.entries[seed].scores[metric] for seed in (self.entries if seeds is None else seeds)]


@dataclass(frozen=True)
class _Read:
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
        return " ".join([self.experiment, *self.words])


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
    reader = _Reader(output, keys.load_keyring())
    chosen: dict[str, _Read] = {}
    for name in asked or [""]:
        before = len(reader.notes)
        if not (runs := list(_resolve(name, reader, uri))):
            why = "; ".join(reader.notes[before:])
            raise SpecError(f"no finished run of {name or 'any experiment'}", where=str(output), why=why)
        chosen |= {run.entry.run: run for run in runs if run.entry.run not in chosen}
    systems = _grouped(list(chosen.values()), reader.notes)
    return Found(systems, [*dict.fromkeys(reader.notes)])


def _resolve(name: str, reader: _Reader, uri: str | None) -> Iterator[_Read]:
    """The runs that one name stands for."""
    output, exp = reader.output, name.split(" ")[0]
    study = output / "studies" / name
    if not name or exp in spec.names():
        if name and (study / "test").is_dir():
            reader.notes.append(
                f"'{name}' is an experiment here, and a study, too: its runs are those of the experiment"
            )
        yield from _of_experiment(name, reader)
    elif (study / "test").is_dir():
        yield from _of_study(study, reader)
    elif (output / "runs" / name).is_dir():
        yield from reader.whole(name)
    elif _FILTER.search(name):
        for run in tracking.find_runs(uri, output, name):
            yield from reader.whole(run.name)
    elif re.fullmatch(r"[0-9a-f]{32}", name) and (found := tracking.find_run(uri, output, name)):
        yield from reader.whole(found.name)
    else:
        places = [*(output / "runs").glob("*"), *(output / "studies").glob("*")]
        known = [*spec.names(), *(path.name for path in places)]
        what = f"no experiment, run or study is called '{name}'"
        raise SpecError(what, where=str(output), fix=did_you_mean(name, known))


def _of_experiment(name: str, reader: _Reader) -> Iterator[_Read]:
    """All finished runs of an experiment as its file has it, or of the variant that is named; without a name, of all.

    Where there is no run of it as its file has it, all its variants.
    """
    exp = name.split(" ")[0]
    begun = [path.parent for path in sorted((reader.output / "runs").glob("*/start.envelope.json"))]
    names = [folder.name for folder in begun if not (folder / "trial.json").exists()]
    entries = [one for run in names if not exp or run.startswith(f"{exp[:40]}-") for one in reader.finished(run)]
    variants = [one for one in entries if not name or one.experiment == exp]
    exact = [one for one in variants if one.label == name]
    others = ", ".join(sorted({f'"{one.label}"' for one in variants if one.label != name}))
    if exact and others:
        reader.notes.append(f"not asked for: {others}")
    chosen = exact or (variants if name == exp else [])
    if not chosen:
        what = f"no finished run of {name or 'any experiment'} in {reader.output / 'runs'}"
        fix = f"accelerate launch launch.py exp={exp or 'full_finetune'} seeds=[0,1,2]"
        raise SpecError(what, why=f"there are {others}" if others else "", fix=fix)
    yield from chosen


def _of_study(study: Path, reader: _Reader) -> Iterator[_Read]:
    """The runs of a study's winners, which met the test split; those of earlier reports are left out."""
    report = json.loads((study / "report.json").read_text(encoding="utf-8")) if (study / "report.json").exists() else {}
    winners = [run for runs in report.get("winners", {}).values() for run in runs]
    for file in sorted((study / "test").glob("*.json")):
        if winners and file.stem not in winners:
            continue
        judged = json.loads(file.read_text(encoding="utf-8"))
        labels, predicted = (np.asarray(judged[key], dtype=np.int64) for key in ("labels", "predicted"))
        predictions = Predictions(labels, predicted, judged["label_names"])
        for one in reader.finished(file.stem, judged["scores"] | _latency(study, file.stem), predictions):
            yield replace(one, study=study.name)


def _latency(study: Path, run: str) -> dict[str, float]:
    """What a study measured of a winner's configuration, under the names that runs use; {} if it was of another one."""
    measured, of = study / "latency" / "latency.json", study / "latency" / "of.json"
    if not (measured.exists() and of.exists()):
        return {}
    arms = json.loads(of.read_text(encoding="utf-8"))
    names = {name: kind for arm, runs in arms.items() if run in runs
             for name, kind in ((arm, "unmerged"), (f"{arm} merged", "merged"))}  # fmt: skip
    return {
        f"latency/{names[row['variant']]}_b{row['batch_size']}_t{row['length']}_{key}": row[key]
        for row in json.loads(measured.read_text(encoding="utf-8"))
        for key in ("p50_ms", "p95_ms")
        if row["variant"] in names
    }


def _grouped(runs: list[_Read], notes: list[str]) -> list[System]:
    """Runs by what they are runs of; of several with one seed the latest counts."""
    systems: dict[tuple[str, str, tuple[str, ...], str], dict[int, Entry]] = {run.key: {} for run in runs}
    for run in sorted(runs, key=lambda one: one.entry.finished):
        of, entry = systems[run.key], run.entry
        if entry.seed in of:
            notes.append(f"{run.label}, seed {entry.seed}: {entry.run} counts, {of[entry.seed].run} does not")
        of[entry.seed] = entry
    made = ((key, dict(sorted(of.items()))) for key, of in systems.items())
    return _named_apart([System(experiment, words, of, study) for (study, experiment, words, _), of in made])


def _named_apart(systems: list[System]) -> list[System]:
    """The same with names: the experiment, and of its settings only those that tell it from others of this name."""
    names = []
    for one in systems:
        rivals = [other for other in systems if other.experiment == one.experiment]
        telling = [word for word in one.words if any(word not in rival.words for rival in rivals)]
        names.append(" ".join([one.experiment, *map(_short, telling)]))
    return [
        replace(system, name=name if names.count(name) == 1 else system.label)
        for system, name in zip(systems, names, strict=True)
    ]


def _short(word: str) -> str:
    """A setting with the last part of its key, and four digits of a number."""
    key, is_set, value = word.partition("=")
    return f"{key.rpartition('.')[2]}={told(value)}" if is_set else word


def told(value: Any) -> str:
    """A setting's value for people: four digits of a number that is not whole."""
    try:
        return f"{float(value):.4g}" if isinstance(value, float) or re.search(r"\d\.\d", str(value)) else str(value)
    except (TypeError, ValueError):
        return str(value)


class _Reader:
    """Reads folders of runs, and notes what cannot be used."""

    def __init__(self, output: Path, keyring: list[Key]) -> None:
        self.output, self._keyring = output, keyring
        self.notes: list[str] = []

    def whole(self, run: str) -> Iterator[_Read]:
        """A finished run, or those of a group of replicates."""
        group = self.output / "runs" / run / "replicates.json"
        names = json.loads(group.read_text(encoding="utf-8")) if group.is_file() else [run]
        for name in names:
            yield from self.finished(name)

    def finished(
        self, run: str, scores: dict[str, float] | None = None, predictions: Predictions | None = None
    ) -> Iterator[_Read]:
        """A finished run; nothing but a note if it is not here, unfinished, unreadable, or was edited.

        `scores`, `predictions`: on the test split, where the run itself was not judged on it.
        """
        try:
            yield self._read(self.output / "runs" / run, scores or {}, predictions)
        except _Unusable as error:
            self.notes.append(f"left out, {error}: {run}")
        except (HarnessError, OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            self.notes.append(f"left out, it cannot be read ({type(error).__name__}: {error}): {run}")

    def _read(self, folder: Path, scores: dict[str, float], predictions: Predictions | None) -> _Read:
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
        return _Read(str(resolved["name"]), tuple(words(resolved)), entry)


class _Unusable(Exception):
    """A run that is left out, and why."""


def _entry(
    folder: Path, resolved: dict[str, Any], end: dict[str, Any], scores: dict[str, float], judged: Predictions | None
) -> Entry:
    parameters = json.loads((folder / "parameters.json").read_text(encoding="utf-8"))
    test = next(split for split in end["data"] if split["split"] == "test")
    data = folder / "data.json"
    labels = json.loads(data.read_text(encoding="utf-8"))["splits"]["train"]["labels"] if data.exists() else []
    weights = folder / "weights" / "trained.safetensors"
    size = weights.stat().st_size / 1024**2 if weights.exists() else float("nan")
    return Entry(
        folder.name, int(end["seeds"][0]), dict(spec.flatten(resolved)), {**end["metrics"], **scores},
        parameters["trainable"], parameters["share_of_full_fine_tuning"], size,
        " ".join([test["sha256"], *labels]), test["rows"], end.get("finishedAt", ""),
        judged or _predictions(folder / "test" / "predictions.csv"),
    )  # fmt: skip


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
    own = {key: value for key, value in spec.flatten(resolved) if is_of_training(key)}
    gone = {_head(key) for key in shipped if _head(key)} - {_head(key) for key in own}
    changed = [f"{k}={v}" for k, v in own.items() if shipped.get(k, v if k in shipped else None) != v]
    return [*(word for word in changed if word != "methods={}"), *(f"~{head}" for head in sorted(filter(None, gone)))]


def is_of_training(key: str) -> bool:
    """Whether a setting can change what is trained."""
    return key.split(".")[0] not in _OF_THE_RUN and key not in _OF_THE_END


def _head(key: str) -> str:
    """`methods.lora` of a key below it; "" for other keys."""
    parts = key.split(".")
    return ".".join(parts[:2]) if parts[0] in ("methods", "metrics") and len(parts) > 1 else ""


@functools.cache
def _shipped(name: str) -> dict[str, Any]:
    """An experiment as its file has it now, or base.yaml alone where there is none that can be read."""
    try:
        return spec.load(name).flat()
    except HarnessError:
        return spec.defaults()
