"""Training against the trainers a user would pick instead: speed, padding, memory, evaluation, time to the first step.

    python benchmarks/peers.py [--quick] [--rounds 3] [--steps 20] [--only lora]

Every contestant (contestants.py) is a fresh process; each round runs all of them once. Steps are timed after three have
warmed up. Where other programs use the cores at the start, threads of all contestants sleep while they wait.
`gradient` is how far the gradient of a batch without padding is from that of torch alone on the padded batch. Results:
recording.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contestants import BATCH, CONTESTANTS, WARM, Stopwatch, settle_wait_policy

from harness.machine import threads

PROJECT = Path(__file__).resolve().parent.parent
FLOPS_PER_TOKEN = {"lora": 4 * 10.6e6, "full_finetune": 6 * 10.6e6}
"""Of the matrix products of the 6 layers: forward, and backward to the activations, with full fine-tuning also to the
weights."""
MUST = {("lora", "trainer"): 2.5, ("lora", "trainer_by_length"): 1.4, ("full_finetune", "trainer"): 2.3}
"""How many times as fast the harness has to be."""
REST = (
    "Must, beside speed: 75 % of the computed tokens real, 25 % of the matmul limit, evaluation twice as fast as "
    "Trainer's, first step in 0.55 of its time, no more memory."
)


def child(name: str, kind: str, steps: int) -> dict[str, Any]:
    """One contestant, measured in this process."""
    import torch

    from harness.machine import device

    torch.set_num_threads(threads.share_of_cores())
    watch = Stopwatch()
    found = CONTESTANTS[name](kind, steps, watch)
    seconds = watch.seconds()
    return found | {
        "first_step_s": watch.first_step,
        "step_ms": 1000 * statistics.median(seconds),
        "examples_per_s": BATCH * len(seconds) / sum(seconds),
        "tokens_per_s": sum(watch.real[WARM:]) / sum(seconds),
        "padding_efficiency": sum(watch.real) / sum(watch.computed),
        "peak_gib": device.peak_memory_gib(),
    }


def limit() -> dict[str, float]:
    """GFLOP/s of float32 matrix products of the model's shapes, the best of many: what no training can exceed."""
    import torch

    from harness.machine import device

    torch.set_num_threads(threads.share_of_cores())
    device.use_fast_matmul()
    speeds = []
    for inside, outside in ((384, 384), (384, 1536), (1536, 384)):
        x, weight = torch.randn(512, inside), torch.randn(inside, outside)
        best = float("inf")
        for _ in range(60):
            started = time.perf_counter()
            x @ weight
            best = min(best, time.perf_counter() - started)
        speeds.append(2 * 512 * inside * outside / best / 1e9)
    return {"gflops": statistics.median(speeds)}


def gradient() -> dict[str, float]:
    """How far the gradient of one batch is from that of torch's own mean over the padded batch, dropout off."""
    import torch
    import training

    from harness import gradients
    from harness.machine import device
    from harness.models import surgery

    device.use_fast_matmul()
    started = training.start("lora", [f"train.batch_size={BATCH}"])
    model: Any = started.assembled.model
    surgery.disable_dropout(model)
    with torch.no_grad():  # B starts at zero, and A's gradient with it
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(std=0.02)
    batch = next(started.loaded.task.batches(model, BATCH, torch.Generator().manual_seed(0)))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.nn.functional.cross_entropy(model(**batch.per_token).logits, batch.per_example["labels"]).backward()
    expected = [parameter.grad.clone() for parameter in parameters]
    exact = gradients.ExactGradient(started.accelerator, model, started.loaded.task, 4096)
    exact.load(batch)
    exact()
    pairs = zip(parameters, expected, strict=True)
    errors = [float((parameter.grad - right).abs().max() / right.abs().max()) for parameter, right in pairs]
    return {"gradient": max(errors), "micro_batches": exact.num_micro_batches}


# What starts them, and tells what came of it


def start(*words: str) -> dict[str, float]:
    """What one child measured. Raises RuntimeError with its last words."""
    told = {"STARTED": str(time.time()), "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--child", *words]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | told, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-8:]))
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rounds_of(kind: str, rounds: int, steps: int) -> Iterator[dict[str, dict[str, float]]]:
    """Every contestant once a round; the one that begins changes."""
    names = list(CONTESTANTS)
    for number in range(rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        found = {}
        for name in turned:
            found[name] = start(name, kind, str(steps))
            print(f"  {kind} {name}: {found[name]['step_ms']:.0f} ms a step", flush=True)
        yield found | {"limit": start("limit", kind, "0")}


Rounds = list[dict[str, dict[str, float]]]
"""What every contestant measured in every round."""


def table(kind: str, found: Rounds) -> list[dict[str, str]]:
    """One row per contestant: medians, and how many times as fast the harness is."""
    from recording import ratios, spread

    ours = [one["harness"] for one in found]
    rows = []
    for name in CONTESTANTS:
        mine = [one[name] for one in found]
        middle = {key: statistics.median(one[key] for one in mine) for key in mine[0]}
        faster = ratios((one["tokens_per_s"] for one in ours), (one["tokens_per_s"] for one in mine))
        evaluation = ratios((one["evaluation_s"] for one in mine), (one["evaluation_s"] for one in ours))
        share = [FLOPS_PER_TOKEN[kind] * one[name]["tokens_per_s"] / 1e9 / one["limit"]["gflops"] for one in found]
        rows.append({
            "experiment": kind,
            "trainer": name,
            "ms a step": spread(one["step_ms"] for one in mine).text(0),
            "harness is faster by": faster.text(),
            "must be at least": f"{MUST[kind, name]:.1f}" if (kind, name) in MUST else "",
            "real tokens": f"{middle['padding_efficiency']:.0%}",
            "of the matmul limit": f"{statistics.median(share):.0%}",
            "evaluation s": f"{middle['evaluation_s']:.1f} ({evaluation.middle:.2f} x)",
            "first step s": f"{middle['first_step_s']:.1f}",
            "peak GiB": f"{middle['peak_gib']:.2f}",
            "trainable": f"{middle['trainable']:,.0f}",
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "EXPERIMENT", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one round of ten steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=list(FLOPS_PER_TOKEN), help="one experiment instead of all")
    asked = parser.parse_args()
    if asked.child:
        name, kind, steps = asked.child
        measured = {"limit": limit, "gradient": gradient}.get(name, lambda: child(name, kind, int(steps)))()
        print(json.dumps(measured))
        return
    from recording import bars, publish, spread

    settle_wait_policy()
    rounds, steps = (1, 10) if asked.quick else (asked.rounds, asked.steps)
    exact = start("gradient", "lora", "0")
    found = {kind: list(rounds_of(kind, rounds, steps)) for kind in FLOPS_PER_TOKEN if asked.only in (None, kind)}
    rows = [row for kind, ours in found.items() for row in table(kind, ours)]
    note = (
        f"Gradient without padding against torch's on the padded batch: {exact['gradient']:.0e} of its largest entry.\n"
        f"{REST}"
    )
    speeds = {
        kind: {name: spread(one[name]["tokens_per_s"] for one in ours) for name in CONTESTANTS}
        for kind, ours in found.items()
    }
    figure = bars("Training: real tokens per second", "real tokens per second", speeds)
    measured = {"rounds": found, "steps": steps, "real tokens per second": speeds, **exact}
    publish("peers", rows, measured, figure, note)


if __name__ == "__main__":
    main()
