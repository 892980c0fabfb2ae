"""What is compared: finished runs alike in all but the seed, found by the names that a person gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import keys, spec, tracking
from harness.compare.runs import Entry, Predictions, Reader, Run
from harness.errors import SpecError, did_you_mean
from harness.tracking import REHEARSALS

_FILTER = re.compile(r"(=|!=|<|>|\b(LIKE|ILIKE|IN|IS)\b)", re.IGNORECASE)


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
    reader = Reader(output, keys.load_keyring())
    chosen: dict[str, Run] = {}
    for name in asked or [""]:
        before = len(reader.notes)
        if not (runs := list(_resolve(name, reader, uri))):
            why = "; ".join(reader.notes[before:])
            raise SpecError(f"no finished run of {name or 'any experiment'}", where=str(output), why=why)
        chosen |= {run.entry.run: run for run in runs if run.entry.run not in chosen}
    systems = _grouped(list(chosen.values()), reader.notes)
    return Found(systems, [*dict.fromkeys(reader.notes)])


def _resolve(name: str, reader: Reader, uri: str | None) -> Iterator[Run]:
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


def _of_experiment(name: str, reader: Reader) -> Iterator[Run]:
    """All finished runs of an experiment as its file has it, or of the variant that is named; without a name, of all.

    Where there is no run of it as its file has it, all its variants.
    """
    exp = name.split(" ")[0]
    begun = [path.parent for path in sorted((reader.output / "runs").glob("*/start.envelope.json"))]
    names = [folder.name for folder in begun if not (folder / "trial.json").exists()]
    found = [one for run in names if not exp or run.startswith(f"{exp[:40]}-") for one in reader.finished(run)]
    rehearsed = {one.entry.run for one in found if one.entry.settings.get("tracking.experiment") == REHEARSALS}
    entries = [one for one in found if one.entry.run not in rehearsed]
    if rehearsed:
        reader.notes.append(f"left out unless they are named, runs with --smoke: {', '.join(sorted(rehearsed))}")
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


def _of_study(study: Path, reader: Reader) -> Iterator[Run]:
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


def _grouped(runs: list[Run], notes: list[str]) -> list[System]:
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
