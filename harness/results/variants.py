"""Smaller variants of a trained model (`compression.py`) beside the plain one: score, size and latency of each.

The plain variant is the merged model. Every variant is compared with it on the same device, in the same precision and
with the same cuts of the test split. int8 runs on the CPU in float32 only: where the run does not, the plain model is
judged there once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from harness import compression, evaluate, figures, latency, storage
from harness.assembly import Assembled
from harness.console import Terminal
from harness.errors import Interrupted
from harness.markdown import markdown_table
from harness.metric import Metric
from harness.predictions import Predictions
from harness.results import deployment
from harness.specs.schema import Compression, Spec
from harness.task import Task

_LOGGED = ("size_mib", "zipped_mib", "max_logit_difference", "label_flips", "p50_ms", "p95_ms")
Makers = Mapping[str, Callable[[], nn.Module]]


@dataclass(frozen=True)
class Row:
    """One variant on the test split."""

    variant: str
    reference: str
    """The plain variant that logits and labels are compared with."""
    device: str
    """Such as `cpu (threads: 2), float32`."""
    scores: dict[str, float]
    """Every metric of the spec, and the task's headline."""
    size_mib: float
    """Its state as `torch.save` writes it."""
    zipped_mib: float
    """The same, zipped."""
    zeros: float
    """Share of all its numbers that are zero."""
    max_logit_difference: float
    label_flips: int
    p50_ms: float | None
    p95_ms: float | None
    """One call with the smallest batch of the longest texts that were timed; None where nothing is timed."""


@dataclass(frozen=True)
class Bench:
    """How the variants on one device are judged."""

    device: str
    predict: Callable[[nn.Module], Predictions]
    score: Callable[[Predictions], dict[str, float]]
    time: Callable[[dict[str, nn.Module]], list[latency.Row]]


@dataclass(frozen=True)
class Judged:
    """What was found; empty where no variant was asked for."""

    rows: list[Row]
    times: list[latency.Row]
    headline: Mapping[str, str]
    """The task's."""

    @property
    def scores(self) -> dict[str, float]:
        """What is worth a chart, such as `compression/int8_f1_macro`, `_size_mib` and `_p50_ms`."""
        values: dict[str, float] = {}
        for row in self.rows:
            known = {**asdict(row), **{key: row.scores[key] for key in self.headline}}
            logged = [key for key in (*self.headline, *_LOGGED) if known[key] is not None]
            values |= {f"compression/{row.variant}_{key}": float(known[key]) for key in logged}
        return values

    @property
    def section(self) -> str:
        """Table and remarks in Markdown; "" where there is nothing to tell."""
        if not self.rows:
            return ""
        shown = markdown_table(*table(self.rows, self.headline))
        return "\n\n".join(["## Compressed", shown, *remarks(self.rows, self.times)])


def judge(
    spec: Spec, task: Task, assembled: Assembled, metrics: dict[str, Metric[Any]], accelerator: Accelerator,
    folder: Path, terminal: Terminal,
) -> Judged:  # fmt: skip
    """Make and judge the variants that the spec asks for, on this process alone; the run's own model stays as it is.

    Returns:
        What was found; also in `compression/` of the run's folder and in the terminal.
    """
    settings, rows, times = spec.compression, list[Row](), list[latency.Row]()
    judged = Judged(rows, times, task.headline)
    if not (settings.prune or settings.int8):
        return judged
    plain = deployment.merged(assembled)
    timing = deployment.readable(spec.latency, plain, terminal) if spec.latency.measure else None
    for makers, bench in _groups(settings, plain, task, metrics, timing, accelerator):
        more_rows, more_times = compare(makers, bench, terminal.say)
        rows += more_rows
        times += more_times
    if rows:
        write(judged, folder / "compression")
        columns, cells = table(rows, task.headline)
        terminal.say()
        terminal.table(["compressed", *columns[1:]], cells)
        for remark in remarks(rows, times):
            terminal.say(remark)
    return judged


def _groups(
    settings: Compression, plain: nn.Module, task: Task, metrics: dict[str, Metric[Any]],
    timing: latency.Latency | None, accelerator: Accelerator,
) -> list[tuple[Makers, Bench]]:  # fmt: skip
    """The variants of each device, plain first, and how they are judged there."""
    pruned = {name: functools.partial(compression.prune, plain, share) for name, share in settings.shares.items()}
    int8 = {"int8": functools.partial(compression.quantise, plain)} if settings.int8 else {}
    cpu, precision = torch.device("cpu"), accelerator.mixed_precision.replace("no", "float32")
    own = _bench(task, metrics, timing, accelerator.device, precision, accelerator.autocast)
    if not int8 or (accelerator.device.type, precision) == ("cpu", "float32"):
        return [({"plain": lambda: plain, **pruned, **int8}, own)]
    again = {"plain_cpu": functools.partial(compression.in_float32_on_cpu, plain), **int8}
    bench = _bench(task, metrics, timing, cpu, "float32", nullcontext)
    return [({"plain": lambda: plain, **pruned}, own), (again, bench)]


def _bench(
    task: Task, metrics: dict[str, Metric[Any]], timing: latency.Latency | None, device: torch.device, precision: str,
    context: Callable[[], AbstractContextManager[object]],
) -> Bench:  # fmt: skip
    def predict(model: nn.Module) -> Predictions:
        with context():
            return task.predict(model, "test", range(task.num_rows("test")), evaluate.token_budget(device))

    def score(predictions: Predictions) -> dict[str, float]:
        usual = evaluate.headline(task, predictions)
        return usual | {key: value for m in metrics.values() for key, value in m.compute(predictions).items()}

    def time(models: dict[str, nn.Module]) -> list[latency.Row]:
        with context():
            return latency.measure(deployment.calls(models), task.example, timing, device) if timing else []

    return Bench(f"{latency.device_name(device)}, {precision}", predict, score, time)


def compare(makers: Makers, bench: Bench, notice: Callable[[str], None]) -> tuple[list[Row], list[latency.Row]]:
    """Judge every variant; the first is what the others are compared with.

    All are held at once, because they take turns when they are timed. One that cannot be made or does not run is left
    out with a notice: it must not cost a finished run.
    """
    models: dict[str, nn.Module] = {}
    found: dict[str, Predictions] = {}
    for name, make in makers.items():
        try:
            model = make()
            found[name] = bench.predict(model)
            models[name] = model
        except Interrupted:
            raise
        except Exception as error:
            told = str(error).splitlines()
            notice(f"NOTE no variant '{name}' here: {told[0] if told else type(error).__name__}")
    reference = next(iter(makers))
    if reference not in found:
        return [], []
    times = bench.time(models)
    rows = []
    for name, model in models.items():
        differences = _differences(found[name], found[reference])
        facts = *compression.sizes(model), compression.share_of_zeros(model)
        row = Row(name, reference, bench.device, bench.score(found[name]), *facts, *differences, *_timed(times, name))
        rows.append(row)
    return rows, times


def _differences(own: Predictions, plain: Predictions) -> tuple[float, int]:
    """The largest difference of a logit, and the number of labels that changed."""
    return float(abs(own.values - plain.values).max()), own.num_flips(plain)


def _timed(times: list[latency.Row], variant: str) -> tuple[float, float] | tuple[None, None]:
    """p50 and p95 at the shape that the table shows."""
    size, length = _shape(times) if times else (0, 0)
    cells = [row for row in times if (row.variant, row.batch_size, row.length) == (variant, size, length)]
    return (cells[0].p50_ms, cells[0].p95_ms) if cells else (None, None)


def _shape(times: list[latency.Row]) -> tuple[int, int]:
    """The smallest batch and the longest text that were timed."""
    return min(row.batch_size for row in times), max(row.length for row in times)


def table(rows: list[Row], headline: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells for people; without milliseconds where nothing was timed."""
    timed = any(row.p50_ms is not None for row in rows)
    columns = ["", *headline.values(), "MiB", "zipped MiB", "zeros", *(["p50 ms", "p95 ms"] if timed else [])]
    cells = [
        [
            row.variant, *(f"{row.scores[key]:.3f}" for key in headline), f"{row.size_mib:.1f}",
            f"{row.zipped_mib:.1f}", f"{row.zeros:.1%}", *([f"{row.p50_ms:.2f}", f"{row.p95_ms:.2f}"] if timed else []),
            f"{row.max_logit_difference:.2g}", f"{row.label_flips}",
        ]
        for row in rows
    ]  # fmt: skip
    return [*columns, "largest logit change", "label flips"], cells


def remarks(rows: list[Row], times: list[latency.Row]) -> list[str]:
    """What has to be known to read the table, in sentences."""
    names, devices = {row.variant for row in rows}, list(dict.fromkeys(row.device for row in rows))
    timed = "; ms: one call with {} x {} tokens".format(*_shape(times)) if times else ""
    said = [
        f"On {devices[0]}{timed}. Nothing was trained after compressing. MiB: the state as torch.save writes it; "
        "zipped: with zlib, level 6; zeros: among all numbers, embeddings included."
    ]
    if any(name.startswith("prune_") for name in names):
        said.append(
            "prune_<share>: the smallest weights of the attention and feed-forward layers are zero. Zeros take as much "
            "room and time as other numbers; only the zipped file is smaller."
        )
    if "int8" in names:
        where = f"; it runs there only: compare it with plain_cpu ({devices[-1]})" if "plain_cpu" in names else ""
        said.append(f"int8: dynamic quantisation of the linear layers on the CPU, embeddings stay float32{where}.")
    return said


def write(judged: Judged, folder: Path) -> None:
    """compression.json with every number, compression.md, compression.html and compression.png. Raises StorageError."""
    engine = str(torch.backends.quantized.engine)
    content = {"variants": list(map(asdict, judged.rows)), "latency": list(map(asdict, judged.times))}
    storage.write_json(folder / "compression.json", {**content, "int8_engine": engine})
    storage.write_text(folder / "compression.md", judged.section.replace("## ", "# ", 1) + "\n")
    key, title_of = next(iter(judged.headline.items()))
    title, x, y = "Score against size", "MiB (hollow: zipped)", f"{title_of} on the test split"
    page, image = figures.page(title, 760, 480), figures.image(title, 7.2, 4.4)
    axes = figures.calm(image.subplots())
    for row, colour in zip(judged.rows, cycle(figures.COLOURS), strict=False):
        sizes, scores = [row.zipped_mib, row.size_mib], [row.scores[key]] * 2
        marker = {"symbol": ["circle-open", "circle"], "size": 10, "color": colour}
        page.add_scatter(x=sizes, y=scores, name=row.variant, marker=marker, line={"color": colour, "width": 1.5})
        axes.plot(sizes, scores, color=colour, lw=1.4, label=row.variant)
        axes.scatter(sizes, scores, s=40, facecolors=["white", colour], edgecolors=colour, zorder=3)
    page.update_layout(showlegend=True)
    page.update_xaxes(title_text=x, rangemode="tozero")
    page.update_yaxes(title_text=y)
    axes.set(xlabel=x, ylabel=y)
    axes.set_xlim(left=0)
    look = {"frameon": False, "fontsize": 9, "labelcolor": figures.INK}
    handles, names = axes.get_legend_handles_labels()
    image.legend(handles, names, loc="outside lower center", ncols=4, **look)
    figures.save_html(page, folder / "compression.html")
    figures.save_png(image, folder / "compression.png")
