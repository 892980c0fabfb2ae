"""Latency of the model call alone: percentiles in milliseconds and throughput, by batch size and length.

Tokenisation is not part of it. Every shape is warmed up before it counts (allocator, autotuning, compilation), variants
take turns A-B-A-B so that a machine that slows down slows all of them, and percentiles are numpy's default linear
interpolation between order statistics (definition 7 of Hyndman and Fan 1996). Batch time divided by batch size is
throughput, not latency, and is named so. With fewer than 1000 runs less than ten samples lie beyond p99.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from harness import figures
from harness.settings import Settings
from harness.storage import write_json, write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FEWEST_RUNS = 10
_PERCENTILES = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
_Sizes = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class Latency(Settings):
    """What to measure and for how long."""

    measure: bool = True
    """Whether a run measures latency at its end."""
    batch_sizes: _Sizes = Field(default=[1, 8, 32])
    """Examples per call."""
    lengths: _Sizes = Field(default=[16, 32, 64, 128])
    """Tokens per example; the model's position limit is the upper bound."""
    warmup: int = Field(default=5, ge=0)
    """Calls per shape and variant before the first that counts."""
    runs: int = Field(default=200, ge=FEWEST_RUNS)
    """Calls per shape and variant that count, at most."""
    max_seconds: float = Field(default=2.0, gt=0)
    """Measured time per shape and variant after which no further call starts; 10 calls are made all the same."""


@dataclass(frozen=True)
class Row:
    """One variant at one shape."""

    variant: str
    batch_size: int
    length: int
    runs: int
    warmup: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    sd_ms: float
    throughput_examples_per_second: float
    throughput_tokens_per_second: float
    device: str
    """Such as `cpu (threads: 2)` or `NVIDIA H200`: a time without its machine says nothing."""


Call = Callable[["dict[str, Tensor]"], object]
"""A model ready to be called with its inputs: on the device, in evaluation mode."""


def measure(
    variants: Mapping[str, Call],
    example: Callable[[int, int], dict[str, Tensor]],
    settings: Latency,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time every variant at every shape, under `torch.inference_mode`.

    Args:
        variants: name -> call, such as the merged and the unmerged model; the order is the order of the turns.
        example: (batch size, length) -> model inputs of exactly that shape; moved to the device before the first call.
        settings: shapes, warm-up, runs and time budget.
        device: where it runs; on CUDA, events on the current stream time the call.
        clock: seconds; times the call on every other device.

    Returns:
        One row per shape and variant, batch sizes outermost, variants innermost.
    """
    import torch

    name, rows = device_name(device), []
    with torch.inference_mode():
        for batch_size in settings.batch_sizes:
            for length in settings.lengths:
                inputs = {key: tensor.to(device) for key, tensor in example(batch_size, length).items()}
                times = _times(variants, _timer(inputs, device, clock), settings)
                cell = batch_size, length, settings.warmup, name
                rows += [_row(variant, seconds, *cell) for variant, seconds in times.items()]
    return rows


def as_metrics(rows: list[Row]) -> dict[str, float]:
    """The few numbers worth a chart: percentiles at the smallest batch, throughput at the largest shape.

    Keys such as `latency/merged_b1_t128_p50_ms` and `latency/merged_b32_t128_examples_per_second`. `latency/p50_ms` and
    so on are those of what one would deploy, the merged model where there is one, at the greatest length.
    """
    deployed = "merged" if any(row.variant == "merged" for row in rows) else rows[0].variant
    smallest = min(row.batch_size for row in rows)
    largest = max((row.batch_size, row.length) for row in rows)
    values: dict[str, float] = {}
    for row in rows:
        cell = f"latency/{row.variant}_b{row.batch_size}_t{row.length}"
        if row.batch_size == smallest:
            values |= {f"{cell}_{key}": getattr(row, key) for key in _PERCENTILES}
            if row.variant == deployed:  # lengths ascend: the greatest one stays
                values |= {f"latency/{key}": getattr(row, key) for key in _PERCENTILES}
        if (row.batch_size, row.length) == largest:
            values[f"{cell}_examples_per_second"] = row.throughput_examples_per_second
    return values


def write(rows: list[Row], folder: Path) -> None:
    """latency.csv, latency.json (a list of rows), latency.html and latency.png. Raises StorageError."""
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, [field.name for field in fields(Row)])
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    write_text(folder / "latency.csv", file.getvalue())
    write_json(folder / "latency.json", [asdict(row) for row in rows])
    title = f"Latency, p50 with whisker to p95 · {rows[0].device}"
    drawing = title, _panels(rows), "Tokens per example", "Milliseconds per call"
    figures.save_html(figures.whisker_page(*drawing), folder / "latency.html")
    figures.save_png(figures.whisker_image(*drawing), folder / "latency.png")


def _panels(rows: list[Row]) -> dict[str, list[figures.Series]]:
    """One panel per batch size, one series per variant: p50 and p95 over length."""
    panels: dict[str, list[figures.Series]] = {}
    for size in sorted({row.batch_size for row in rows}):
        for variant in dict.fromkeys(row.variant for row in rows):
            cells = [row for row in rows if (row.batch_size, row.variant) == (size, variant)]
            cells.sort(key=lambda row: row.length)
            x, p50, p95 = ([getattr(row, key) for row in cells] for key in ("length", "p50_ms", "p95_ms"))
            panels.setdefault(f"Batch size {size}", []).append(figures.Series(variant, x, p50, p95))
    return panels


def _times(variants: Mapping[str, Call], timer: Callable[[Call], float], settings: Latency) -> dict[str, list[float]]:
    """Seconds of each counted call, by variant: warm-up, then rounds in which every variant gets one call."""
    for _ in range(settings.warmup):
        for call in variants.values():
            timer(call)
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    spent = dict.fromkeys(variants, 0.0)
    for turn in range(settings.runs):
        for variant, call in variants.items():
            if turn < FEWEST_RUNS or spent[variant] < settings.max_seconds:
                times[variant].append(timer(call))
                spent[variant] += times[variant][-1]
    return times


def _timer(inputs: dict[str, Tensor], device: torch.device, clock: Callable[[], float]) -> Callable[[Call], float]:
    """A function that makes one call and tells its seconds, the device's work included."""
    import torch

    def by_events(call: Call) -> float:
        stream = torch.cuda.current_stream(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        call(inputs)
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def by_clock(call: Call) -> float:
        start = clock()
        call(inputs)
        if device.type != "cpu":  # work on an accelerator goes on after the call returns
            torch.accelerator.synchronize(device)
        return clock() - start

    return by_events if device.type == "cuda" else by_clock


def _row(variant: str, seconds: list[float], batch_size: int, length: int, warmup: int, device: str) -> Row:
    """Describe the seconds of one variant at one shape."""
    p50, p95, p99 = (1000 * float(np.percentile(seconds, percent)) for percent in _PERCENTILES.values())
    mean, sd = float(np.mean(seconds)), float(np.std(seconds, ddof=1))
    examples, tokens = batch_size / mean, batch_size * length / mean
    shape = variant, batch_size, length, len(seconds), warmup
    return Row(*shape, p50, p95, p99, 1000 * mean, 1000 * sd, examples, tokens, device)


def device_name(device: torch.device) -> str:
    """What a person calls this device."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu (threads: {torch.get_num_threads()})" if device.type == "cpu" else device.type
