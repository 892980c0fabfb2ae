"""`harness compare`: what was named, side by side, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import SpecError


def _names(incomplete: str) -> list[str]:
    """For the shell's completion: experiments, and the runs and studies of `mlruns`."""
    from harness.specs import spec
    from harness.storage import PROJECT

    places = [path.name for room in ("runs", "studies") for path in (PROJECT / "mlruns" / room).glob(f"{incomplete}*")]
    return [*(name for name in spec.names() if name.startswith(incomplete)), *sorted(places)]


Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="experiments, runs, studies, MLflow filters; default: all experiments that have runs",
        autocompletion=_names,
    ),
]
Against = Annotated[str, typer.Option(help="the reference or one of its runs; default: full_finetune, else the first")]
Metric = Annotated[str, typer.Option(help="the test score that decides; default: macro-F1, or what chose checkpoints")]
Output = Annotated[Path, typer.Option(help="the folder of runs, relative to the project")]
Uri = Annotated[str | None, typer.Option(help="MLflow's store; default: the one that is set")]


def compare(
    names: Names = None,
    against: Against = "",
    metric: Metric = "",
    output: Output = Path("mlruns"),
    uri: Uri = None,
    as_md: Annotated[bool, typer.Option("--md", help="Markdown")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="one line per run, for programs")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="everything, for programs")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="also write a page into this file")] = None,
) -> None:
    """Who wins, by how much, is it noise, and what does it cost: finished runs side by side, against a reference.

    harness compare full_finetune lora "lora train.epochs=2" --against full_finetune
    harness compare lora_rank-lora "params.methods.lora.rank = '8'" --md
    """
    from harness.compare import rendering
    from harness.compare.comparison import compare as made_of
    from harness.storage import folder_of_runs

    if as_md + as_csv + as_json > 1:
        raise SpecError("one of --md, --csv and --json at a time")
    comparisons, notes = made_of(names or [], folder_of_runs(output), against=against, metric=metric, uri=uri)
    if html:
        rendering.write_page(comparisons, notes, html)
    if as_md:
        print(rendering.to_markdown(comparisons, notes))
    elif as_csv:
        print(rendering.to_csv(comparisons))
    elif as_json:
        print(rendering.to_json(comparisons, notes))
    else:
        rendering.show(comparisons, notes)
    if html:
        typer.echo(f"page    {html.absolute()}", err=True)


def report(
    names: Names = None,
    against: Against = "",
    metric: Metric = "",
    output: Output = Path("mlruns"),
    uri: Uri = None,
) -> None:
    """The same as a page with pictures and short texts, offline, and as Markdown; both are also kept in MLflow.

    harness report full_finetune lora bottleneck_adapter
    harness report lora_rank-lora
    """
    from harness.compare.comparison import compare as made_of
    from harness.compare.comparison import spread
    from harness.compare.publishing import publish
    from harness.storage import folder_of_runs

    comparisons, notes = made_of(names or [], folder_of_runs(output), against=against, metric=metric, uri=uri)
    folder, problem = publish(names or [], comparisons, notes, folder_of_runs(output), uri)
    for one in comparisons:
        for system in one.systems:
            typer.echo(f"{system.name}: {one.metric} {spread(system.values(one.metric))}, n = {len(system.entries)}")
        for sentence in one.sentences():
            typer.echo(sentence)
    typer.echo(f"page    {folder / 'report.html'}")
    typer.echo(f"text    {folder / 'report.md'}")
    typer.echo(f"NOTE    {problem}" if problem else f"MLflow  experiment reports, run {folder.name}")
