"""What an adapted model costs when it is used: latency of LoRA, merged and not, and of adapters, against the plain one.

    python benchmarks/latency_cost.py [--quick] [--rounds 5]

The call of builtin:minilm alone, one thread, as every run measures it (harness/latency.py): variants take turns call by
call. A round is a median over the calls of each variant and shape; a ratio is that of two medians of the same round.
Weights are untrained: time does not depend on them. Merged, LoRA is plain weights: 1.00 but for noise. Results:
recording.py.
"""

from __future__ import annotations

from typing import Any

import torch
from recording import Spread, bars, parser, publish, ratios, spread

from harness import assembly, latency
from harness.machine import device
from harness.results import deployment
from harness.specs import spec

PLAIN = "plain"
FULL = {"batch_sizes": [1, 8], "lengths": [32, 128], "warmup": 2, "runs": 20}
QUICK = FULL | {"lengths": [32], "runs": 10}
Times = dict[str, dict[str, list[float]]]
"""Variant -> shape -> milliseconds in every round."""


def variants() -> tuple[dict[str, latency.Call], Any]:
    """What is called, and the task whose inputs they take."""
    loaded = assembly.load(spec.load("full_finetune"))
    plain, lora, adapter = (
        assembly.rebuild(spec.load(name), loaded.task, 0) for name in ("full_finetune", "lora", "bottleneck_adapter")
    )
    models = {
        PLAIN: plain.model.eval(),
        "LoRA, merged": deployment.merged(lora),
        "LoRA, not merged": lora.model.eval(),
        "bottleneck adapter": adapter.model.eval(),
    }
    return deployment.calls(models), loaded.task


def measure(settings: latency.Latency, rounds: int) -> Times:
    """Median milliseconds per call of everything in every round."""
    calls, task = variants()
    found: Times = {name: {} for name in calls}
    for _ in range(rounds):
        for row in latency.measure(calls, task.example, settings, torch.device("cpu")):
            found[row.variant].setdefault(f"{row.batch_size} x {row.length} tokens", []).append(row.p50_ms)
    return found


def against_plain(found: Times) -> dict[str, dict[str, Spread]]:
    """Variant -> shape -> its time in times of the plain model's."""
    return {
        name: {shape: ratios(times, found[PLAIN][shape]) for shape, times in shapes.items()}
        for name, shapes in found.items()
        if name != PLAIN
    }


def table(found: Times, ratio: dict[str, dict[str, Spread]]) -> list[dict[str, str]]:
    """One row per shape."""
    return [
        {"a call of": shape, "plain, ms": spread(times).text(1)}
        | {f"{name}, times plain": shapes[shape].text() for name, shapes in ratio.items()}
        for shape, times in found[PLAIN].items()
    ]


def main() -> None:
    """Measure and record."""
    asking = parser(__doc__, "two rounds of short texts")
    asking.add_argument("--rounds", type=int, default=5)
    asked = asking.parse_args()
    torch.set_num_threads(1)
    device.use_fast_matmul()
    settings = latency.Latency.model_validate(QUICK if asked.quick else FULL)
    found = measure(settings, 2 if asked.quick else asked.rounds)
    ratio = against_plain(found)
    figure = bars("Latency against the plain model", "times the plain model's", ratio)
    publish("latency_cost", table(found, ratio), {"ratio": ratio, "ms": found}, figure)


if __name__ == "__main__":
    main()
