"""Where the time of a training step goes: operators by kind, with padding and without, in one process.

    python benchmarks/step_profile.py [--quick] [--experiment lora] [--steps 6]

CPU time of one thread by torch's profiler, itself included, so that sums are somewhat larger than unprofiled steps.
Both ways take each step in turn on the same batch; what is shown is the median over the steps, the ratio that of the
sums of one batch. Results: recording.py, and unless `--quick` docs/step_profile.png.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import training
from recording import PROJECT, Spread, parser, publish, ratios, spread
from torch.profiler import ProfilerActivity, profile

from harness import figures
from harness.machine import device
from harness.train import Step

BATCH, WARM = 16, 3
WAYS = {"with padding": "never", "without padding": "auto"}
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "dropout masks": ("bernoulli_", "random_", "lt", "native_dropout"),
    "activations and norms": (
        "gelu", "gelu_backward", "_softmax", "_softmax_backward_data", "native_layer_norm",
        "native_layer_norm_backward", "tanh",
    ),
    "copies, gather, scatter": (
        "copy_", "index_select", "index_add_", "index_copy", "index_copy_", "cat", "index", "_index_put_impl_",
        "embedding", "embedding_dense_backward", "fill_", "zero_",
    ),
    "elementwise": ("add", "add_", "mul", "mul_", "div", "div_", "sum", "where", "masked_fill_", "neg", "sub"),
    "optimizer": ("_fused_adamw_",),
}  # fmt: skip
REST = "dispatch and everything else"


def milliseconds(steps: Iterator[Step]) -> dict[str, float]:
    """CPU time of one step, by kind of operator."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        next(steps)
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    spent: Counter[str] = Counter(dict.fromkeys([*KINDS, REST], 0.0))
    for event in seen.key_averages():
        spent[kind_of.get(event.key, REST)] += event.self_cpu_time_total / 1000
    return dict(spent)


def measure(experiment: str, number: int) -> dict[str, list[dict[str, float]]]:
    """Of every way, what each step took."""
    running = {
        way: training.start(experiment, [f"train.batch_size={BATCH}", f"train.padding_free={mode}"]).steps
        for way, mode in WAYS.items()
    }
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(WARM + number):
        for way, steps in running.items():
            if turn < WARM:
                next(steps)
            else:
                found[way].append(milliseconds(steps))
    return found


def table(found: dict[str, list[dict[str, float]]], sums: dict[str, list[float]]) -> list[dict[str, str]]:
    """One row per kind, then the sum, then how many times as fast the second way is."""
    of_kinds = {kind: {way: [one[kind] for one in steps] for way, steps in found.items()} for kind in [*KINDS, REST]}
    rows = [
        {"ms of CPU per step": kind} | {way: spread(values).text(0) for way, values in ways.items()}
        for kind, ways in {**of_kinds, "sum": sums}.items()
    ]
    first, second = WAYS
    faster = ratios(sums[first], sums[second])
    return [*rows, {"ms of CPU per step": "times as fast", first: "", second: faster.text()}]


def drawn(found: dict[str, dict[str, Spread]], title: str) -> tuple[Any, Any]:
    """One stacked bar of medians per way of running: as a page, and as an image."""
    page, image = figures.page(title, 900, 360), figures.image(title, 9, 3.2)
    axes = figures.calm(image.subplots(), grid=False)
    lefts = [0.0] * len(found)
    for kind, colour in zip([*KINDS, REST], figures.COLOURS, strict=False):
        lengths = [spent[kind].middle for spent in found.values()]
        page.add_bar(y=list(found), x=lengths, name=kind, orientation="h", marker={"color": colour})
        axes.barh(list(found), lengths, left=lefts, color=colour, label=kind, height=0.55)
        lefts = [left + length for left, length in zip(lefts, lengths, strict=True)]
    page.update_layout(barmode="stack")
    page.update_xaxes(title_text="ms of CPU per step")
    axes.set_xlabel("ms of CPU per step")
    axes.invert_yaxis()
    image.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return page, image


def main() -> None:
    """Measure, draw and record."""
    asking = parser(__doc__, "two steps; docs/step_profile.png stays")
    asking.add_argument("--experiment", default="lora")
    asking.add_argument("--steps", type=int, default=6)
    asked = asking.parse_args()
    torch.set_num_threads(1)
    device.use_fast_matmul()
    found = measure(asked.experiment, 2 if asked.quick else asked.steps)
    sums = {way: [sum(one.values()) for one in steps] for way, steps in found.items()}
    ms = {way: {kind: spread(one[kind] for one in steps) for kind in [*KINDS, REST]} for way, steps in found.items()}
    page, image = drawn(ms, f"A step of {BATCH} sentences, {asked.experiment}, one thread")
    total = {way: spread(values) for way, values in sums.items()}
    publish("step_profile", table(found, sums), {"ms": ms, "sum": total, "steps": found}, page)
    if not asked.quick:
        figures.save_png(image, PROJECT / "docs" / "step_profile.png")


if __name__ == "__main__":
    main()
