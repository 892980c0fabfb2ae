"""`harness predict`: what a finished run says of new texts."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import SpecError

if TYPE_CHECKING:
    from harness.data.tables import Table


def _typed(texts: list[str], columns: list[str]) -> Table:
    """What was typed as the rows of a table: each a text, or the two of one pair."""
    from harness.data.tables import Table

    rows = [texts] if len(columns) == 2 else [[text] for text in texts]
    if len(rows[0]) != len(columns):
        what = f"the run was trained on pairs of texts: {' and '.join(columns)}"
        raise SpecError(what, fix="give the two texts of one pair, or --file")
    return Table(columns, [(f"text {i}", dict(zip(columns, row, strict=True))) for i, row in enumerate(rows, 1)])


def _check(file: Path, encoding: str) -> None:
    """Raise SpecError for a file that is not there, or an encoding that does not exist."""
    if not file.exists():
        beside = [path.name for path in file.parent.glob("*") if path.is_file()]
        near = difflib.get_close_matches(file.name, beside, n=1)
        fix = f"did you mean '{file.parent / near[0]}'?" if near else "name a file that is there"
        raise SpecError(f"{file} does not exist", where="--file", fix=fix)
    try:
        "text".encode(encoding)
    except LookupError:
        fix = "try utf-8, utf-16, latin-1 or cp1252"
        raise SpecError("Python knows no such text encoding", where=f"--encoding {encoding}", fix=fix) from None


def _finished(incomplete: str) -> list[str]:
    """For the shell's completion: the runs of `mlruns` that can predict."""
    from harness.storage import PROJECT

    found = (PROJECT / "mlruns" / "runs").glob(f"{incomplete}*/weights/trained.safetensors")
    return sorted(path.parent.parent.name for path in found)


def predict(
    run: Annotated[str, typer.Option(help="a finished run: its name, MLflow id, or folder", autocompletion=_finished)],
    texts: Annotated[list[str] | None, typer.Argument(help="texts; of a task on pairs, the two of one pair")] = None,
    file: Annotated[Path | None, typer.Option(help="csv, tsv, jsonl, json or parquet, instead of texts")] = None,
    out: Annotated[Path | None, typer.Option(help="with --file: .csv or .jsonl; default: print CSV")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="with --file: the text's column, or twice, default as in training")
    ] = None,
    encoding: Annotated[str, typer.Option(help="with --file: of a file of text")] = "utf-8",
    output: Annotated[Path, typer.Option(help="the folder of runs, relative to the project")] = Path("mlruns"),
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """What a finished run says of texts: labels with probabilities, or whatever its task answers.

    harness predict --run lora-s42-3f9a "Battery life is great." "It broke after a week."
    harness predict --run lora-s42-3f9a --file reviews.csv --out labelled.csv
    """
    if bool(texts) == bool(file) or (file is None and (out or column)):
        raise SpecError("give texts, or --file with --out and --column if you like")
    if out and as_json:
        raise SpecError("--json prints, --out writes", where=f"--out {out}", fix="leave out one of them")
    if out and out.suffix not in (".csv", ".jsonl"):
        raise SpecError("the answer is written as .csv or .jsonl", where=f"--out {out}", fix="give it such a name")
    if file:
        _check(file, encoding)
    is_replaced = bool(out and out.exists())
    if file and out and is_replaced and file.exists() and file.samefile(out):
        raise SpecError("that is the file with the texts", where=f"--out {out}", fix="name another file")
    from harness import prediction
    from harness.console import Terminal
    from harness.data import files
    from harness.machine import threads
    from harness.storage import folder_of_runs

    with contextlib.redirect_stdout(sys.stderr):  # notes go elsewhere than the answer
        threads.before_torch()
        predictor = prediction.Predictor(run, folder_of_runs(output), Terminal())
        names = column or predictor.texts
        table = files.read_file(file, encoding, where="--file") if file else _typed(texts or [], names)
        table = dataclasses.replace(table, cells=list(table.cells))  # the file may change before the answers are there
        answers = predictor.predict(prediction.examples_of(table, names, predictor)).answers()
    if as_json:
        rows = [{**record, **answer} for (_, record), answer in zip(table.cells, answers, strict=True)]
        print(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
    elif file:
        text = prediction.write(table, answers, out)
        print(f"{len(answers)} rows in {out}{' (replaced)' * is_replaced}" if out else text, end="\n" if out else "")
    else:
        for (_, record), answer in zip(table.cells, answers, strict=True):
            print(_line(record, answer))


def _line(record: dict[str, str], answer: dict[str, Any]) -> str:
    """What is said of one row: first the answer, then how sure, of classes for each of them; lists are for --json.

    What is written at length stands below the row.
    """
    if "confidence" not in answer:
        return "\n".join([" | ".join(record.values()), *(f"  {key}: {value}" for key, value in answer.items())])
    first, *more = (key for key, value in answer.items() if not isinstance(value, list | dict))
    more = more[1:] if any(key.startswith("probability_") for key in more) else more
    facts = (f"{key.removeprefix('probability_')} {_shown(answer[key])}" for key in more)
    return f"{answer[first] or '(nothing)':12}  {'  '.join(facts)}  {' | '.join(record.values())}"


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
