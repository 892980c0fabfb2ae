"""What mixout and AWP add to a plain step: CPU time of one batch, all variants interleaved in one process.

    python benchmarks/method_cost.py [--quick] [--rounds 8]

Full fine-tuning of builtin:minilm on batches of 32 training sentences, one thread: CPU time of one is that of the work,
also beside other programs. Every round takes one step of each variant on the same batch; a ratio is that of the
variant's step to the plain step of the same round. Results: recording.py.
"""

from __future__ import annotations

import time

import torch
import training
from recording import Spread, bars, parser, publish, ratios, spread

from harness import assembly
from harness.machine import device
from harness.specs import spec

WARM = 2
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
MUST = {
    "mixout head": 1.25,
    "mixout all, input masks": 1.25,
    "mixout all, element masks": 1.25,
    "awp relative": 2.05,
    "awp box": 2.05,
    "awp sam": 2.05,
    "awp relative, head only": 1.5,
    "awp relative, attention only": 2.05,
}
"""What a step may cost at most, in plain steps. Masks at every forward are there to compare."""


def measure(rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step of every variant in every round."""
    loaded = assembly.load(spec.load("full_finetune"))
    running = {name: training.start("full_finetune", own, loaded).steps for name, own in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(WARM + rounds):
        for name, steps in running.items():
            begun = time.process_time()
            next(steps)
            if turn >= WARM:
                seconds[name].append(time.process_time() - begun)
    return seconds


def table(seconds: dict[str, list[float]], ratio: dict[str, Spread]) -> list[dict[str, str]]:
    """One row per variant."""
    return [
        {
            "full fine-tuning with": name,
            "CPU s a step": spread(times).text(),
            "plain steps": ratio[name].text(),
            "must be at most": f"{MUST[name]:.2f}" if name in MUST else "",
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    """Measure and record."""
    asking = parser(__doc__, "one round")
    asking.add_argument("--rounds", type=int, default=8)
    asked = asking.parse_args()
    torch.set_num_threads(1)
    device.use_fast_matmul()
    seconds = measure(1 if asked.quick else asked.rounds)
    ratio = {name: ratios(times, seconds["plain"]) for name, times in seconds.items()}
    figure = bars("What mixout and AWP add to a step", "plain steps", {"CPU time": ratio}, MUST)
    publish("method_cost", table(seconds, ratio), {"ratio": ratio, "seconds": seconds}, figure)


if __name__ == "__main__":
    main()
