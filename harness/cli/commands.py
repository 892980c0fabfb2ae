"""Look at experiments, compare runs, make signing keys, verify runs, send what was kept, score baselines."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import re
import shutil
import sys
import textwrap
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.compare import compare, report
from harness.cli.predict import predict
from harness.cli.signatures import keygen, keys_app, print_check, verify
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.checks.findings import Finding

atexit.register(gc.freeze)  # as launching.py does
_LOOK: Any = {"rich_markup_mode": None} if os.environ.get("NO_COLOR") else {}  # rich would still write bold
app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__, **_LOOK)
runs = typer.Typer(no_args_is_help=True)
app.add_typer(runs, name="runs", help="The runs that MLflow knows.")
app.add_typer(keys_app, name="keys", help="List, rotate and retire signing keys; sign again with the new one.")


def _experiments(incomplete: str) -> list[str]:
    """For the shell's completion."""
    from harness.specs import spec

    return [name for name in spec.names() if name.startswith(incomplete)]


Output = Annotated[Path, typer.Option(help="the folder of runs, relative to the project")]
Store = Annotated[str | None, typer.Option(help="MLflow's store; default: the one that is set, else SQLite in there")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show Python's traceback for errors")] = False,
) -> None:
    """The docstring of this module is the help; `main` takes --debug from wherever it stands."""


@app.command("list")
def list_specs() -> None:
    """The experiments, one line each."""
    from harness.specs import spec

    names = spec.names()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:{width}}  {spec.story(name).partition(chr(10))[0]}".rstrip())


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="an experiment", autocompletion=_experiments)],
    words: Annotated[list[str] | None, typer.Argument(help="key=value; a key or section alone is explained")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Every setting of an experiment as it would run, and which differ from base.yaml; or what some of them mean."""
    from harness.specs import explaining, spec

    asked = [word for word in words or [] if "=" not in word and not word.startswith("~")]
    chosen = spec.load(name, [word for word in words or [] if word not in asked])
    if asked:
        found = {key: (value, said) for one in asked for key, value, said in explaining.described(chosen, one)}
        if as_json:
            told = {key: {"value": value, "meaning": said} for key, (value, said) in found.items()}
            print(json.dumps(told, indent=2, ensure_ascii=False))
        for key, (value, said) in found.items() if not as_json else ():
            _print_setting(key, _text(value), said)
        return
    if as_json:
        print(json.dumps(chosen.resolved(), indent=2, ensure_ascii=False))
        return
    defaults = spec.defaults()
    print(f"{name}: {chosen.story}", end="\n\n")
    settings = {key: value for key, value in chosen.flat().items() if key != "name"}
    for key, value in settings.items():
        differs = key not in defaults or defaults[key] != value
        typer.secho(f"{'*' if differs else ' '} {key} = {_text(value)}", fg="cyan" if differs else None)
    print(
        f"\n* differs from base.yaml. Any setting can be given as 'key=value'; harness show {name} <key> explains it."
    )


def _text(value: Any) -> str:
    """A value as it can be given again."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./:@+ -]*", value)
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _print_setting(key: str, text: str, meaning: str) -> None:
    print(f"{key} = {text}")
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    print(textwrap.fill(meaning, width, initial_indent="    ", subsequent_indent="    "))


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="a method; default: all, one line each")] = None) -> None:
    """What a method does, with its formulas, sources and hazards, and every setting it has."""
    from harness import registry

    if name is None:
        for known in registry.names("method"):
            print(f"{known:20}{registry.describe('method', known).story.partition(chr(10))[0]}")
        return
    described = registry.describe("method", name)
    print(described.story, end="\n\n")
    for field, default, meaning in described.fields:
        _print_setting(f"methods.{name}.{field}", default, meaning)


app.command()(keygen)
app.command()(verify)


@app.command()
def baselines(
    name: Annotated[str, typer.Argument(help="an experiment, for its data and model", autocompletion=_experiments)],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    """Score what any method has to beat on the experiment's test split."""
    from harness import assembly
    from harness.data import dataset
    from harness.markdown import text_table
    from harness.results import report
    from harness.specs import spec
    from harness.yardsticks import baselines as module

    chosen = spec.load(name, overrides or [])
    task = assembly.task_of(chosen)
    splits = dataset.load(chosen.data, task.labelling)
    print(dataset.describe(splits), end="\n\n")
    rows = module.measure(task.yardsticks(splits, chosen.data, chosen.model))
    cells = report.ladder_rows(rows, list(task.headline))
    print(text_table(["on the test split", *task.headline.values()], cells))


@app.command()
def selftest(
    name: Annotated[
        str, typer.Argument(help="an experiment, for its data, model and methods", autocompletion=_experiments)
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Prove the engine on an experiment's own data, model and machine, in about a minute. Exit code 0 passed, 1 not."""
    from harness.machine import threads
    from harness.specs import spec

    def say(finding: Finding) -> None:
        colour = {True: "green", False: "red", None: "yellow"}[finding.ok]
        typer.secho(finding.line, fg=colour)

    chosen, started = spec.load(name, overrides or []), time.monotonic()
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # for programs, notes go elsewhere
        threads.before_torch()
        from harness.checks import selftest as module
        from harness.checks.findings import has_failed, report

        findings = module.run(chosen, say)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({**report(findings), "seconds": round(seconds, 1)}, indent=2))
    passed, failed, skipped = (sum(finding.ok is verdict for finding in findings) for verdict in (True, False, None))
    told = f"{passed} passed, {failed} FAILED, {skipped} not made, in {seconds:.0f} s"
    typer.secho(told, err=as_json)
    raise typer.Exit(int(has_failed(findings)))


app.command()(compare)
app.command()(report)
app.command()(predict)


@app.command()
def doctor(
    output: Output = Path("mlruns"),
    uri: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Is everything there that a run needs? Versions, devices, Accelerate's settings, store, disk, key, stale runs.

    Exit code 0, or 1 where a line says NO.
    """
    from harness.checks import doctor as module
    from harness.storage import PROJECT

    checks = []
    for check in module.examine(PROJECT / output, uri):
        checks.append(check)
        if not as_json:
            print_check(check.ok, f"{check.name}: {check.detail}")
    if as_json:
        print(json.dumps([{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks], indent=2))
    raise typer.Exit(int(any(check.ok is False for check in checks)))


@app.command()
def sync(
    output: Output = Path("mlruns"),
    uri: Annotated[str | None, typer.Option(help="MLflow's store; default: the one each run was meant for")] = None,
) -> None:
    """Send what a tracking store did not take, each record once. Exit code 0 all sent, 1 something is still kept."""
    from harness.storage import folder_of_runs
    from harness.tracking import sending

    all_told = []
    for told in sending.sync(folder_of_runs(output), uri):
        print(f"{told.name}: {told.what}")
        all_told.append(told)
    num_sent, num_left = sum(t.is_sent for t in all_told), sum(t.is_left_alone for t in all_told)
    kept = len(all_told) - num_sent - num_left
    print(f"{num_sent} sent, {num_left} left alone, {kept} kept" if all_told else "nothing waits to be sent")
    raise typer.Exit(1 if kept else 0)


@runs.command("list")
def list_runs(
    output: Output = Path("mlruns"),
    uri: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Trainings and studies, newest first, replicates and trials below theirs: status, start, score, folder.

    The score is the one that selects checkpoints, of replicates its mean and standard deviation.

    With --json a list: [{"name", "id", "parent", "status", "began", "metric", "score", "score_sd", "folder",
    "has_folder"}]; the id is null, and the rest missing, of a run that MLflow does not know.
    """
    from harness import liveness
    from harness.markdown import text_table
    from harness.storage import folder_of_runs

    folder = folder_of_runs(output)
    every = list(liveness.list_runs(folder, uri))
    found, known = liveness.trainings(every), {run.name for run, _ in every}
    names = sorted(path.parent.name for path in (folder / "runs").glob("*/start.envelope.json"))
    begun = [name for name in names if name not in known]  # killed before its first record was sent
    if as_json:
        print(json.dumps([*(one.values() for one in found), *({"name": name, "id": None} for name in begun)], indent=2))
        return
    if not found:
        print(f"MLflow knows no run in {folder}")
    rows = []
    for one in found:
        began = datetime.fromtimestamp(one.run.time / 1000).strftime("%Y-%m-%d %H:%M")
        name, place = "  " * one.depth + one.run.name, "here" if one.has_folder else "no folder"
        rows.append([name, one.run.status, began, one.score, place])
    if rows:
        print(text_table(["run", "status", "began", "score", "folder"], rows, numbers=False))
    for name in begun:
        print(f"{name}  not in MLflow; it may go on: launch.py --resume {name}")


@runs.command()
def reap(
    output: Output = Path("mlruns"),
    uri: Store = None,
    force: Annotated[bool, typer.Option("--force", help="also runs that have no lock file")] = False,
) -> None:
    """End runs as KILLED that are RUNNING in MLflow although their process is gone."""
    from harness import liveness
    from harness.storage import folder_of_runs

    done = 0
    for name, what in liveness.reap(folder_of_runs(output), uri, force=force):
        print(f"{name}: {what}")
        done += 1
    if not done:
        print("no run is RUNNING")


def main() -> None:
    """Run the command; errors for people end with their exit code, and with a traceback only after --debug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, color=_wants_colours())
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        sys.exit(error.exit_code)


def _wants_colours() -> bool | None:
    """NO_COLOR, else FORCE_COLOR; None: what the terminal can."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None
