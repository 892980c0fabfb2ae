"""Where the time of a training step goes: operators by kind, with padding and without, in one process.

    python benchmarks/step_profile.py [--experiment lora] [--steps 6]

CPU time per step of one thread by torch's profiler, itself included, so that sums are somewhat larger than unprofiled
steps. Results: recording.py, and docs/step_profile.png.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from recording import PROJECT, publish
from torch.profiler import ProfilerActivity, profile

from harness import assembly, device, figures, processes, spec, train
from harness.train import Step

BATCH = 16
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


def steps(kind: str, mode: str) -> Iterator[Step]:
    """Training with padding (`never`) or without (`auto`)."""
    chosen = spec.load(kind, [f"train.batch_size={BATCH}", f"train.padding_free={mode}"])
    loaded = assembly.load(chosen)
    assembled = assembly.assemble(chosen, loaded, 0)
    methods, generator = list(assembled.methods.values()), torch.Generator().manual_seed(0)
    accelerator = processes.build_accelerator("no")
    return train.Training(assembled.model, loaded.task, methods, chosen.train, accelerator, generator).steps()


def milliseconds(running: Iterator[Step], number: int) -> dict[str, float]:
    """Per step, by kind of operator."""
    for _ in range(3):
        next(running)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(number):
            next(running)
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    spent: Counter[str] = Counter(dict.fromkeys([*KINDS, REST], 0.0))
    for event in seen.key_averages():
        spent[kind_of.get(event.key, REST)] += event.self_cpu_time_total / 1000 / number
    return dict(spent)


def drawn(found: dict[str, dict[str, float]], title: str) -> tuple[Any, Any]:
    """One stacked bar per way of running: as a page, and as an image."""
    page, image = figures.page(title, 900, 360), figures.image(title, 9, 3.2)
    axes = figures.calm(image.subplots(), grid=False)
    lefts = [0.0] * len(found)
    for kind, colour in zip([*KINDS, REST], figures.COLOURS, strict=False):
        lengths = [spent[kind] for spent in found.values()]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="lora")
    parser.add_argument("--steps", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    device.use_fast_matmul()
    ways = {"with padding": "never", "without padding": "auto"}
    found = {way: milliseconds(steps(asked.experiment, mode), asked.steps) for way, mode in ways.items()}
    rows = [
        {"ms of CPU per step": kind} | {way: f"{spent[kind]:.0f}" for way, spent in found.items()}
        for kind in [*KINDS, REST]
    ]
    rows.append({"ms of CPU per step": "sum"} | {way: f"{sum(spent.values()):.0f}" for way, spent in found.items()})
    page, image = drawn(found, f"A step of {BATCH} sentences, {asked.experiment}, one thread")
    publish("step_profile", rows, {"ms": found}, page)
    figures.save_png(image, PROJECT / "docs" / "step_profile.png")


if __name__ == "__main__":
    main()
