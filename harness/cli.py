"""The console command `harness`: look at specs, make keys, verify runs, score baselines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError, UserError

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command("list")
def list_specs() -> None:
    """The experiments, one line each."""
    from harness import spec

    for name in spec.names():
        print(f"{name:22} {spec.story(name).splitlines()[0] if spec.story(name) else ''}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="an experiment")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Every setting of an experiment after composition, and which differ from base.yaml."""
    from harness import spec

    chosen = spec.load(name, overrides or [])
    if as_json:
        print(json.dumps(chosen.resolved(), indent=2, ensure_ascii=False))
        return
    defaults = spec.defaults()
    print(chosen.story, end="\n\n")
    for key, value in chosen.flat().items():
        typer.secho(f"{key} = {value}", fg=None if defaults.get(key, object()) == value else "cyan")
    print("\ncoloured: differs from base.yaml; any of these can be given as key=value")


@app.command()
def keygen(
    path: Annotated[Path | None, typer.Argument(help="default: ~/.config/harness/keys/active")] = None,
    rotate: Annotated[bool, typer.Option(help="retire the active key; it still verifies")] = False,
) -> None:
    """Make a signing key."""
    from harness import keys

    key = keys.keygen(path, rotate=rotate)
    print(f"key {key.keyid} in {path or keys.key_file()}: runs are signed with it from now on")
    print("Keep a copy: without it nothing it signed can be verified. Who holds it can sign, too.")


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="a run's name, MLflow id, or folder")],
    output: Annotated[Path, typer.Option(help="the folder of runs")] = Path("mlruns"),
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Was anything edited since the run was signed? Exit code 0 no, 1 yes, 3 cannot tell, 4 newer format, 5 I/O."""
    from harness import verification

    verdict = verification.verify_run(run, output)
    if as_json:
        checks = [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in verdict.checks]
        print(json.dumps({"exit_code": verdict.exit_code, "checks": checks}, indent=2))
    else:
        for check in verdict.checks:
            mark, colour = {True: ("ok", "green"), False: ("NO", "red"), None: ("??", "yellow")}[check.ok]
            typer.secho(f"{mark}  {check.name}: {check.detail}", fg=colour)
        print(verification.sentence(verdict.exit_code))
    raise typer.Exit(verdict.exit_code)


@app.command()
def baselines(
    name: Annotated[str, typer.Argument(help="an experiment, for its data and model")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    """Score what any method has to beat on the experiment's test split."""
    from harness import baselines as module
    from harness import data, report, spec

    chosen = spec.load(name, overrides or [])
    splits = data.load(chosen.data)
    print(data.describe(splits), end="\n\n")
    rows = module.measure(splits, chosen.data, chosen.model.name)
    cells = [[row["name"], f"{row['f1_macro']:.3f}", f"{row['accuracy']:.3f}"] for row in rows]
    print(report.markdown_table(["on the test split", "macro-F1", "accuracy"], cells))


def main() -> None:
    """Run the command; errors for people end with their exit code and no traceback."""
    try:
        app(standalone_mode=True)
    except HarnessError as error:
        kind = "error" if isinstance(error, UserError) else type(error).__name__
        print(f"{kind}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
