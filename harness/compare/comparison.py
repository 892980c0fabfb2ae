"""Systems side by side: in which settings they differ, what they score, by how much, and what they cost."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import registry
from harness.compare import systems as reading
from harness.compare import verdicts
from harness.compare.systems import System
from harness.errors import SpecError, did_you_mean
from harness.specs import changes
from harness.statistics import significance
from harness.statistics.pairs import Pair

REFERENCE = "full_finetune"
_ALSO = ("test/accuracy", "test/nll", "test/ece")
"""Shown beside the metric that is judged, where all runs have them."""
_MOST_COLUMNS = 4
"""Systems that stand beside each other; more of them stand below each other."""
_LATENCY = re.compile(r"latency/(?P<variant>\w+)_b(?P<batch>\d+)_t(?P<length>\d+)_(?P<key>p50_ms|p95_ms)")


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, rows of cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    spare: list[str] = field(default_factory=list)
    """Columns that a narrow terminal does without, the first to go first."""


@dataclass(frozen=True)
class Comparison:
    """Systems that were judged on the same test split."""

    systems: list[System]
    """By their means, best first."""
    reference: System
    metric: str
    sign: int
    """1 where more of the metric is better, else -1."""
    pairs: list[Pair]
    groups: list[list[str]]
    """Best first; nothing within a group is separated. []: no two seeds are common to all."""

    def tables(self) -> list[Table]:
        """Settings, scores, differences, costs; those that have something to say."""
        made = [self._settings(), self._scores(), self._differences(), self._costs()]
        return [table for table in made if table.rows]

    def _settings(self) -> Table:
        """Only what differs between the systems; '-': a system has no such setting.

        A method that not all of them have is one entry, with what differs from its defaults or between them.
        """
        of, names = [_by_method(system.first.settings) for system in self.systems], [one.name for one in self.systems]
        partial = {key for one in of for key in one if any(key not in other for other in of)}
        cells = [_collapsed(one, of, partial) for one in of]
        odd = [key for key in sorted({key for one in cells for key in one}) if len({one.get(key) for one in cells}) > 1]
        rows = [[key, *(one.get(key, "-") for one in cells)] for key in odd]
        if len(self.systems) > _MOST_COLUMNS:
            rows = [list(row) for row in zip(names, *(row[1:] for row in rows), strict=True)] if rows else []
            return Table("Settings that differ", ["", *odd], rows)
        return Table("Settings that differ", ["", *names], rows)

    def _scores(self) -> Table:
        shown = [key for key in _ALSO if key != self.metric and all(_has(system, key) for system in self.systems)]
        rows = []
        for system in self.systems:
            found = significance.mean_interval(system.values(self.metric))
            low_high = f"[{found.low:.3f}, {found.high:.3f}]" if found.n > 1 else ""
            values = [f"{value:.3f}" for value in system.values(self.metric)]
            row = [system.name, str(found.n), spread(system.values(self.metric)), low_high, " ".join(values)]
            rows.append([*row, *(spread(system.values(key)) for key in shown)])
        names = [self.metric.partition("/")[2], "95 %", "each seed", *(key.partition("/")[2] for key in shown)]
        spare = [*reversed(names[3:]), "each seed"]
        return Table(f"Scores on {self.systems[0].first.test_rows} test rows", ["", "n", *names], rows, spare)

    def _differences(self) -> Table:
        rows = []
        for pair in self.pairs:
            several = len(pair.seeds) > 1
            tests = (pair.holm, pair.sign_flip, pair.wilcoxon)
            p = [f"{value:.3f}" if several and not math.isnan(value) else "" for value in tests]
            items = " ".join(f"{value:.3f}" for value in pair.mcnemar)
            beyond = [_interval(pair.low, pair.high), _interval(*pair.nested)]
            rows.append([pair.system, str(len(pair.seeds)), f"{pair.mean:+.3f}", *beyond, *p, items, pair.verdict])
        columns = ["n", "difference", "95 % seeds", "95 % seeds and items", "p (Holm)", "sign flips", "Wilcoxon"]
        return Table(
            f"Differences in {self.metric.partition('/')[2]} from {self.reference.name}, paired by seed",
            ["", *columns, "McNemar by seed", "verdict"],
            rows,
            ["McNemar by seed", "Wilcoxon", "sign flips", "95 % seeds"],
        )

    def _costs(self) -> Table:
        rows, cell = [], self.shape
        for system in self.systems:
            first, of = system.first, list(system.entries.values())
            sizes = [one.weights_mib for one in of if not math.isnan(one.weights_mib)]
            seconds, peak = (_mean(system, key) for key in ("time/train_s", "memory/peak_gib"))
            row = [system.name, f"{first.trainable:,}", f"{first.share:.2%}", f"{peak:.2f}", f"{seconds:.0f}"]
            row += [f"{max(sizes):.1f}" if sizes else "", *(_latency(system, merged, cell) for merged in (False, True))]
            rows.append(row)
        columns = ["trainable", "of full", "peak GiB", "train s", "weights MiB"]
        spare = ["weights MiB", "of full", "train s"]
        if cell is None:
            return Table("What it costs", ["", *columns], [row[:-2] for row in rows], spare)
        times = [f"p50 / p95 ms, batch {cell[0]}, {cell[1]} tokens", "merged"]
        return Table("What it costs", ["", *columns, *times], rows, spare)

    @property
    def shape(self) -> tuple[int, int] | None:
        """The smallest batch and the greatest length at which all systems with latencies were measured."""
        cells = [{(int(m["batch"]), int(m["length"])) for m in _measured(system)} for system in self.systems]
        known = [one for one in cells if one]
        common = set.intersection(*known) if known else set()
        return min(common, key=lambda cell: (cell[0], -cell[1]), default=None)

    def sentences(self) -> list[str]:
        """What follows, and what does not."""
        told = [pair.sentence(self.metric.partition("/")[2]) for pair in self.pairs]
        if shared := [word for word in self.systems[0].words if all(word in one.words for one in self.systems)]:
            told.append(f"All of them with {' '.join(shared)}.")
        if len(self.systems) > 2 and self.groups:
            groups = [" = ".join(group) for group in self.groups]
            told.append(
                f"From best to worst, = is a tie: {'; '.join(groups)} (each against each: paired t over the seeds that "
                "all have, Holm over all pairs). A tie is not equality: more seeds may tell them apart."
            )
        if all(len(system.entries) == 1 for system in self.systems):
            head, other = "One seed each", "turn any of these differences"
            if len(self.systems) == 1:
                head, other = "One seed", "score otherwise"
            told.append(
                f"{head}: NOTHING can be concluded about a method; another seed may {other}. seeds=[0,1,2,3,4] trains "
                "five."
            )
        return told


def compare(asked: Sequence[str], output: Path, *, against: str = "", metric: str = "",
            uri: str | None = None) -> tuple[list[Comparison], list[str]]:  # fmt: skip
    """One comparison for each test split among what these names stand for, and notes on what was left out.

    Scores per token, such as perplexity, are compared among runs whose tokenizers cut the split alike.

    Args:
        asked: see `systems.find`.
        output: the folder of runs.
        against: name of the reference, or of a run of it; default: full fine-tuning if it is among them, else the first
            one named.
        metric: a score on the test split, without `test/`; default: macro-F1, and where runs have none, the one that
            chose their checkpoints.
        uri: MLflow's store, for filters and ids.

    Raises:
        SpecError: a name that stands for nothing, no such reference, a score that the runs do not have.
        StorageError: the store cannot be read.
    """
    found = reading.find(asked, output, uri)
    made, is_named = [], False
    known_as = [(_same_scale(system, metric or _usual_metric(system)), system) for system in found.systems]
    for scale in dict.fromkeys(scale for scale, _ in known_as):
        here = [system for own, system in known_as if own == scale]
        decides = metric or _usual_metric(here[0])
        key = f"test/{decides}"
        here = _with_score(here, key, found.notes)
        if not here:
            continue
        named = _named(here, against)
        reference, is_named = named or _usual(here), is_named or named is not None
        sign = -1 if registry.is_less_better(decides) else 1
        here.sort(key=lambda one: -sign * statistics.fmean(one.values(key)))
        made.append(
            Comparison(
                here, reference, key, sign, verdicts.against(here, reference, key, sign),
                verdicts.tie_groups(here, key, sign),
            )
        )  # fmt: skip
    if not made:
        scores = {name for system in found.systems for name in system.first.scores if name.startswith("test/")}
        known = [name.partition("/")[2] for name in scores]
        what = f"no run has the score test/{metric}" if metric else "these runs have no score on the test split"
        raise SpecError(what, where="--metric", fix=did_you_mean(metric, known) if known else "")
    if against and not is_named:
        names = [system.name for system in found.systems]
        raise SpecError(f"{against} is not among what is compared", where="--against", fix=did_you_mean(against, names))
    if len({one.reference.first.test for one in made}) > 1:
        what = "tasks or test splits" if len({task_of(one.reference) for one in made}) > 1 else "test splits"
        found.notes.append(f"the runs were judged on different {what}: scores are compared within each only")
    if len(made) > len({one.reference.first.test for one in made}):
        cut = "the same test split is cut into other tokens: scores per token, such as perplexity, are another scale"
        found.notes.append(f"{cut}, and compared within each only")
    return made, found.notes


def task_of(system: System) -> str:
    """The task of its runs."""
    return system.first.test.partition(" ")[0]


def _same_scale(system: System, metric: str) -> tuple[str, int]:
    """Scores are compared where this is the same: test split, and its tokens where the metric counts over them."""
    used = {key.split(".")[1] for key in system.first.settings if key.startswith("metrics.")}
    names = used & set(registry.names("metric"))
    per_token = any(registry.is_per_token(name) and metric in registry.produces(name) for name in names)
    return system.first.test, system.first.test_tokens if per_token else 0


def _usual_metric(system: System) -> str:
    """Macro-F1; where the task knows none, the metric that chose the checkpoints."""
    is_known = "test/f1_macro" in system.first.scores
    return "f1_macro" if is_known else str(system.first.settings["early_stopping.metric"]).rpartition("/")[2]


def _with_score(systems: list[System], key: str, notes: list[str]) -> list[System]:
    """The systems without the runs that do not have this score; a note names those."""
    kept = []
    for system in systems:
        entries = {seed: entry for seed, entry in system.entries.items() if key in entry.scores}
        if without := [entry.run for entry in system.entries.values() if key not in entry.scores]:
            notes.append(f"left out, without the score {key}: {', '.join(without)}")
        kept += [replace(system, entries=entries)] if entries else []
    return kept


def _named(systems: list[System], name: str) -> System | None:
    """The one that is called so, or of which a run is. Raises SpecError where several may be meant."""
    runs = {entry.run: one for one in systems for entry in one.entries.values()}
    called = {**{one.label: one for one in systems}, **{one.name: one for one in systems}, **runs}
    found = [called[name]] if name in called else reading.standing_for(name, systems)
    if len(found) > 1:
        fix = "name one of " + ", ".join(f'"{one.name}"' for one in found)
        raise SpecError(f"{name} is several of what is compared", where="--against", fix=fix)
    return found[0] if found else None


def _usual(systems: list[System]) -> System:
    """Full fine-tuning as its file has it, else any variant of it, else the first."""
    full = reading.standing_for(REFERENCE, systems)
    return [*full, *systems][0]


def _measured(system: System) -> list[re.Match[str]]:
    """The keys of latencies that some run of a system has."""
    keys = {key for entry in system.entries.values() for key in entry.scores}
    return [found for key in sorted(keys) if (found := _LATENCY.fullmatch(key))]


def measured_latency(system: System, merged: bool, cell: tuple[int, int] | None) -> list[float]:
    """Median over the runs of p50 and p95 in ms at a batch size and length; [] where it was not measured."""
    variants = {found["variant"] for found in _measured(system)}
    variant = "merged" if merged else "unmerged" if "unmerged" in variants else "model"
    times = []
    for key in ("p50_ms", "p95_ms"):
        name = f"latency/{variant}_b{cell[0]}_t{cell[1]}_{key}" if cell and variant in variants else ""
        values = [entry.scores[name] for entry in system.entries.values() if name in entry.scores]
        times += [statistics.median(values)] if values else []
    return times


def _latency(system: System, merged: bool, cell: tuple[int, int] | None) -> str:
    return " / ".join(f"{value:.1f}" for value in measured_latency(system, merged, cell))


def spread(values: list[float]) -> str:
    """Mean and standard deviation (n - 1)."""
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _has(system: System, key: str) -> bool:
    return all(key in entry.scores for entry in system.entries.values())


def _mean(system: System, key: str) -> float:
    values = [entry.scores[key] for entry in system.entries.values() if key in entry.scores]
    return statistics.fmean(values) if values else math.nan


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"


def _by_method(settings: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Settings that matter for training, as text: one entry for each method, one for each other key."""
    found: dict[str, dict[str, str]] = {}
    for key, value in settings.items():
        parts = key.split(".")
        if changes.is_of_training(key) and key != "methods":
            head = ".".join(parts[:2]) if parts[0] == "methods" else key
            found.setdefault(head, _defaults(head) if parts[0] == "methods" else {})[key] = _told(value)
    return found


def _defaults(head: str) -> dict[str, str]:
    """Every setting of a method, what an older run does not name was so, too; {} of one that is not here."""
    if (name := head.removeprefix("methods.")) not in registry.names("method"):
        return {}
    fields = registry.settings_class("method", name).model_fields
    return {f"{head}.{name}": _told(field.get_default(call_default_factory=True)) for name, field in fields.items()}


def _collapsed(
    one: dict[str, dict[str, str]], of: list[dict[str, dict[str, str]]], partial: set[str]
) -> dict[str, str]:
    """Key -> value, and for a method that not all have: its name -> the settings that say something."""
    cells: dict[str, str] = {}
    for head, own in one.items():
        if head in partial and head.startswith("methods."):
            plain, rivals = _defaults(head), [other[head] for other in of if head in other]
            telling = [k for k, value in own.items() if any(rival.get(k) != value for rival in (plain, *rivals))]
            cells[head] = " ".join(f"{k.removeprefix(f'{head}.')}={own[k]}" for k in telling) or "defaults"
        else:
            cells |= own
    return cells


def _told(value: Any) -> str:
    return "-" if value is None or value == {} else reading.told(value)
