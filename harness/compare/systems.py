"""What is compared: finished runs alike in all but the seed, found by the names that a person gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harness.compare.runs import Entry, Predictions, Reader, Run
from harness.errors import SpecError, did_you_mean
from harness.signing import keys
from harness.specs import spec
from harness.tracking import stores
from harness.tracking.stores import REHEARSALS

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


Variant = TypeVar("Variant", bound=Run | System)


@dataclass
class Found:
    """What the names stood for, and what there is to say about it."""

    systems: list[System] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(asked: Sequence[str], output: Path, uri: str | None = None) -> Found:
    """The systems that these names stand for, in that order; without names all that have finished runs.

    Args:
        asked: experiments, with all their finished runs (`lora`, or `"lora train.epochs=2"` for one variant of it,
            `"lora epochs=2"` where no other one has that);
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
            why, fix = "; ".join(reader.notes[before:]), _go_on(reader, [name])
            raise SpecError(f"no finished run of {name or 'any experiment'}", where=str(output), why=why, fix=fix)
        chosen |= {run.entry.run: run for run in runs if run.entry.run not in chosen}
    systems = _grouped(list(chosen.values()), reader.notes)
    return Found(systems, [*dict.fromkeys(reader.notes)])


def _go_on(reader: Reader, names: Iterable[str]) -> str:
    """How the last of these runs that did not finish is finished; "" where there is none."""
    folders = [reader.output / "runs" / name for name in names if name]
    ended = ("end.envelope.json", "replicates.json", "trial.json")  # a trial goes on with its study
    begun = [one for one in folders if (one / "spec.yaml").is_file() and not any((one / end).exists() for end in ended)]
    return f"launch.py --resume {begun[-1].name}" if begun else ""


def _resolve(name: str, reader: Reader, uri: str | None) -> Iterator[Run]:
    """The runs that one name stands for."""
    output, exp = reader.output, name.split(" ")[0]
    study, _, winner = name.partition(": ")
    of_study = output / "studies" / study / "test"
    if not name or exp in spec.names():
        if name and of_study.is_dir():
            reader.notes.append(
                f"'{name}' is an experiment here, and a study, too: its runs are those of the experiment"
            )
        yield from _of_experiment(name, reader)
    elif of_study.is_dir():
        winners = _of_study(of_study.parent, reader)
        yield from _variant(winner, list(winners)) if winner else winners
    elif (output / "runs" / name).is_dir():
        yield from reader.whole(name)
    elif _FILTER.search(name):
        found = stores.find_runs(uri, output, name)
        yield from _meant([one for run in found for one in reader.whole(run.name)], reader)
    elif re.fullmatch(r"[0-9a-f]{32}", name) and (known := stores.find_run(uri, output, name)):
        yield from reader.whole(known.name)
    else:
        places = [*(output / "runs").glob("*"), *(output / "studies").glob("*")]
        names = [*spec.names(), *(path.name for path in places)]
        what = f"no experiment, run or study is called '{name}'"
        raise SpecError(what, where=str(output), fix=did_you_mean(name, names))


def _of_experiment(name: str, reader: Reader) -> list[Run]:
    """All finished runs of an experiment as its file has it, or of the variant that is named; without a name, of all.

    Where there is no run of it as its file has it, all its variants.
    """
    exp = name.split(" ")[0]
    begun = [path.parent for path in sorted((reader.output / "runs").glob("*/start.envelope.json"))]
    names = [folder.name for folder in begun if not (folder / "trial.json").exists()]
    names = [run for run in names if not exp or run.startswith(f"{exp[:40]}-")]
    found = [one for run in names for one in reader.finished(run)]
    variants = [one for one in _meant(found, reader) if not name or one.experiment == exp]
    if not variants:
        what = f"no finished run of {exp or 'any experiment'} in {reader.output / 'runs'}"
        train = f"accelerate launch launch.py exp={exp or 'full_finetune'} seeds=[0,1,2]"
        raise SpecError(what, why="; ".join(reader.notes), fix=_go_on(reader, names) or train)
    chosen = _variant(name, variants) if name else variants
    if others := {f'"{one.label}"' for one in variants} - {f'"{one.label}"' for one in chosen}:
        reader.notes.append(f"not asked for: {', '.join(sorted(others))}")
    return chosen


def _meant(found: list[Run], reader: Reader) -> list[Run]:
    """Without runs with --smoke, which a note names."""
    rehearsed = {one.entry.run for one in found if one.entry.settings.get("tracking.experiment") == REHEARSALS}
    if rehearsed:
        reader.notes.append(f"left out unless they are named, runs with --smoke: {', '.join(sorted(rehearsed))}")
    return [one for one in found if one.entry.run not in rehearsed]


def _variant(name: str, runs: list[Run]) -> list[Run]:
    """The runs of the one variant that is named; of a name without settings, where no variant is just that, all.

    Raises:
        SpecError: no variant has these settings, or several have.
    """
    chosen = standing_for(name, runs)
    if len({one.label for one in chosen}) == 1 or (chosen and " " not in name):
        return chosen
    what = f"{name} is several" if chosen else f"no finished run of {name}"
    known = sorted({f'"{one.label}"' for one in chosen or runs})
    raise SpecError(what, fix=f"name one of {', '.join(known)}; a part of its settings will do where only one has it")


def standing_for(name: str, among: Sequence[Variant]) -> list[Variant]:
    """What is named so exactly, with these settings and no other, or else with these settings among others.

    A setting's key may be short (`rank=4`), as tables show it.
    """
    experiment, *typed = re.split(r" +(?=~|[\w.]+=)", name.strip())
    same = [one for one in among if one.experiment == experiment]
    whole = [one for one in same if " ".join([experiment, *one.words]) == name]
    having = [one for one in same if all(_has(one.words, word) for word in typed)]
    return whole or [one for one in having if len(one.words) == len(typed)] or having


def _has(words: Sequence[str], typed: str) -> bool:
    """Whether one of these settings is what a person types so."""
    key, is_set, value = typed.partition("=")
    for own, _, has in (word.partition("=") for word in words):
        if (own == key or (is_set and own.endswith(f".{key}"))) and _plain(has) == _plain(value):
            return True
    return False


def _plain(value: str) -> str:
    """A value as it compares, however it was written: 0.001 and 1e-3, True and true, None and null."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return re.sub(r"[\s'\"]", "", value.lower().replace("none", "null"))


def _of_study(study: Path, reader: Reader) -> Iterator[Run]:
    """The runs of a study's winners, which met the test split; those of earlier reports are left out."""
    report = json.loads((study / "report.json").read_text(encoding="utf-8")) if (study / "report.json").exists() else {}
    winners = [run for runs in report.get("winners", {}).values() for run in runs]
    for file in sorted((study / "test").glob("*.json")):
        if winners and file.stem not in winners:
            continue
        judged = json.loads(file.read_text(encoding="utf-8"))
        predictions = None
        if "predicted" in judged:
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
