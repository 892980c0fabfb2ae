"""What mixout and AWP add to a plain step: CPU time of one batch, all variants interleaved in one process.

    python benchmarks/method_cost.py

Full fine-tuning of builtin:minilm on batches of 32 training sentences. Every round takes one step of each variant on
the same batch; the ratios are medians over the rounds of the variant's CPU time against that of the plain step in the
same round. Targets: mixout at most 1.25, an active AWP step at most 2.1, less where only some layers are attacked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from harness import assembly, device, processes, spec, train
from harness.train import Step

ROUNDS = 8
AWP = "methods.awp.start=0.0"
VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "mixout head": ["methods.mixout.layers=head"],
    "mixout all, input masks": ["methods.mixout={layers: all, p: 0.5}"],
    "mixout all, element masks": ["methods.mixout={layers: all, p: 0.5, units: element}"],
    "mixout all, element masks, every forward": [
        "methods.mixout={layers: all, p: 0.5, units: element, scope: forward}"
    ],
    "awp relative": [AWP],
    "awp box": [AWP, "methods.awp.rule=box"],
    "awp sam": [AWP, "methods.awp.rule=sam"],
    "awp relative, head only": [AWP, "methods.awp.layers=head"],
    "awp relative, attention only": [AWP, "methods.awp.layers=attention"],
}


def steps(overrides: list[str], loaded: assembly.Loaded) -> Iterator[Step]:
    """The training of one variant, a step at a time, on the batches all variants see."""
    chosen = spec.load("full_finetune", overrides)
    assembled = assembly.assemble(chosen, loaded, 0)
    methods, generator = list(assembled.methods.values()), torch.Generator().manual_seed(0)
    accelerator = processes.build_accelerator("no")
    return train.Training(assembled.model, loaded.task, methods, chosen.train, accelerator, generator).steps()


def main() -> None:
    """Measure and print."""
    device.use_all_cores()
    device.use_fast_matmul()
    loaded = assembly.load(spec.load("full_finetune"))
    running = {name: steps(overrides, loaded) for name, overrides in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(ROUNDS + 2):
        for name, variant in running.items():
            start = time.process_time()
            next(variant)
            if turn >= 2:  # the first steps warm up
                seconds[name].append(time.process_time() - start)
    for name, times in seconds.items():
        ratios = [mine / plain for mine, plain in zip(times, seconds["plain"], strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{name:42} {statistics.median(times):6.2f} s  {middle:5.2f} x  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
