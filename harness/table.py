"""Finished runs side by side: what each experiment trains, scores and costs, against full fine-tuning."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from harness import keys, provenance, spec
from harness.errors import HarnessError, SpecError
from harness.report import markdown_table

REFERENCE = "full_finetune"
_OF_THE_RUN = ("name", "seeds", "output", "tracking", "provenance", "latency", "evaluation", "compression")


_LEGEND = (
    "n: seeds. ±: standard deviation over seeds; of a difference, over the seeds both have. Means this close to each "
    "other need more seeds to be told apart. Seconds belong to the machine and to what else ran on it."
)


@dataclass(frozen=True)
class Row:
    """One finished run, as its end statement has it."""

    experiment: str
    """Name of the spec, with the settings that differ from the file of that name."""
    seed: int
    run: str
    test_rows: int
    test_digest: str
    """Digest of the test split: scores on different ones are never compared."""
    trainable: int
    share: float
    """Trainable parameters against those of full fine-tuning."""
    f1_macro: float
    accuracy: float
    train_seconds: float
    peak_gib: float
    """Peak memory of the process while it made the run: on the GPU, or resident on a machine without one."""


def read(folder: Path, names: Iterable[str] = ()) -> list[Row]:
    """Every finished run of `<folder>/runs`, of these experiments or of all.

    Raises:
        SpecError: a name that no finished run has.
    """
    keyring = keys.load_keyring()
    rows = [row for path in sorted((folder / "runs").glob("*/end.envelope.json")) if (row := _read(path, keyring))]
    wanted = set(names)
    if missing := wanted - {row.experiment.partition(" ")[0] for row in rows}:
        what = f"no finished run of {', '.join(sorted(missing))} in {folder / 'runs'}"
        raise SpecError(what, fix=f"accelerate launch launch.py exp={min(missing)} seeds=[0,1,2]")
    return [row for row in rows if not wanted or row.experiment.partition(" ")[0] in wanted]


def _read(path: Path, keyring: Any) -> Row | None:
    """The run of an end statement; None if the statement cannot be trusted, or the run is of another task."""
    end = provenance.open_envelope(path, keyring).predicate
    if end is None or "test/f1_macro" not in end.get("metrics", {}):
        return None
    resolved = yaml.safe_load((path.parent / "spec.yaml").read_text(encoding="utf-8"))
    parameters = json.loads((path.parent / "parameters.json").read_text(encoding="utf-8"))
    test = next(split for split in end["data"] if split["split"] == "test")
    scores = end["metrics"]
    return Row(
        label(resolved), int(end["seeds"][0]), str(end["runId"]), test["rows"], test["sha256"],
        parameters["trainable"], parameters["share_of_full_fine_tuning"], scores["test/f1_macro"],
        scores["test/accuracy"], scores["time/train_s"], scores["memory/peak_gib"],
    )  # fmt: skip


def label(resolved: dict[str, Any]) -> str:
    """The experiment's name, and what was set differently on its command line."""
    name = str(resolved["name"])
    try:
        shipped = spec.load(name).flat()
    except HarnessError:
        return name
    own = {key: value for key, value in spec.flatten(resolved) if key.split(".")[0] not in _OF_THE_RUN}
    return " ".join([name, *(f"{k}={v}" for k, v in own.items() if shipped.get(k, v if k in shipped else None) != v)])


def to_csv(rows: list[Row]) -> str:
    """One line per run."""
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, [field.name for field in fields(Row)])
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    return file.getvalue()


def render(rows: list[Row]) -> str:
    """One table per test split: mean and standard deviation over seeds, and the mean difference on common seeds."""
    parts = []
    for digest in dict.fromkeys(row.test_digest for row in rows):
        here = [row for row in rows if row.test_digest == digest]
        by_name: dict[str, dict[int, Row]] = {}
        for row in here:
            by_name.setdefault(row.experiment, {})[row.seed] = row  # of equal runs the last
        lines = [_line(name, runs, _reference(name, by_name)) for name, runs in by_name.items()]
        lines.sort(key=lambda line: line[2], reverse=True)
        columns = [
            "experiment",
            "n",
            "test macro-F1",
            f"- {REFERENCE}",
            "accuracy",
            "trainable",
            "share",
            "train s",
            "peak GiB",
        ]
        parts.append(f"{here[0].test_rows} test rows, {digest[:19]}\n\n" + markdown_table(columns, lines))
    return "\n\n".join([*parts, _LEGEND])


def _reference(name: str, by_name: dict[str, dict[int, Row]]) -> dict[int, Row]:
    """Full fine-tuning under the same settings of the command line, or as it is shipped."""
    same = f"{REFERENCE} {name.partition(' ')[2]}".strip()
    return by_name.get(same) or by_name.get(REFERENCE, {})


def _line(name: str, runs: dict[int, Row], reference: dict[int, Row]) -> list[str]:
    of = list(runs.values())
    common = [run.f1_macro - reference[seed].f1_macro for seed, run in runs.items() if seed in reference]
    return [
        f"`{name}`",
        str(len(of)),
        _spread([run.f1_macro for run in of]),
        _spread(common, "+.3f") if common and runs is not reference else "",
        _spread([run.accuracy for run in of]),
        f"{of[0].trainable:,}",
        f"{of[0].share:.2%}",
        f"{statistics.fmean(run.train_seconds for run in of):.0f}",
        f"{max(run.peak_gib for run in of):.2f}",
    ]


def _spread(values: list[float], form: str = ".3f") -> str:
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
