"""Pre-training against Hugging Face's Trainer, as its examples run_clm and run_mlm use it: tokens per second.

    python benchmarks/language_models.py [--quick] [--rounds 3] [--steps 20]

Both train `builtin:transformer` of `pretrain_clm` and `pretrain_mlm` in float32 on the same chunks of 128 tokens, all
full, with the same batch and rate; Trainer's hidden tokens are drawn by DataCollatorForLanguageModeling. Every
contestant is a fresh process; each round runs all of them once. Steps are timed after three have warmed up. Results:
recording.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contestants import WARM, Stopwatch, settle_wait_policy

from harness.machine import threads

PROJECT = Path(__file__).resolve().parent.parent
EXPERIMENTS = {"pretrain_clm": "causal_lm", "pretrain_mlm": "masked_lm"}
BATCH, RATE, ROWS = 16, 1e-3, 300
"""Chunks of a step, learning rate, articles of each split."""


def settings(task: str, steps: int) -> list[str]:
    """What both contestants share."""
    train = [f"train.batch_size={BATCH}", f"train.learning_rate={RATE}", f"train.max_steps={steps}"]
    return [*train, f"task.{task}.across_documents=true", f"data.limit={ROWS}", "train.warmup_steps=0"]


def run_harness(experiment: str, steps: int, watch: Stopwatch) -> float:
    """This project's loop, without its tracking; the loss of the last step."""
    import training

    from harness.machine import device

    threads.bound_caches()
    device.use_fast_matmul()
    started = training.start(experiment, settings(EXPERIMENTS[experiment], steps))
    loss = 0.0
    for _ in range(steps):
        watch.begin()
        step = next(started.steps)
        watch.end()
        watch.real.append(step.num_tokens)
        loss = step.loss
    return loss


def run_trainer(experiment: str, steps: int, watch: Stopwatch) -> float:
    """Trainer with the loss of transformers' own models; the mean loss of all steps."""
    import torch
    from torch import nn
    from transformers import (
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )
    from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss

    from harness import assembly
    from harness.specs import spec

    task = EXPERIMENTS[experiment]
    loaded: Any = assembly.load(chosen := spec.load(experiment, settings(task, steps)))
    torch.manual_seed(0)
    inner: Any = loaded.task.load_model(chosen.model)
    loss_of: Any = ForCausalLMLoss if task == "causal_lm" else ForMaskedLMLoss

    class WithLoss(nn.Module):
        """Logits and loss, as transformers' models return them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
            watch.real.append(int(attention_mask.sum()))
            logits = self.inner(input_ids, attention_mask).logits
            return {"loss": loss_of(logits, labels, vocab_size=logits.shape[-1]), "logits": logits}

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end()

    chunks = loaded.task._chunks["train"]
    blocks = [chunks.tokens[first:end].tolist() for _, first, end, _ in chunks.bounds[:-1].tolist()]
    mask = [1] * len(blocks[0])
    rows: Any = [{"input_ids": ids, "attention_mask": mask, "labels": ids} for ids in blocks]
    if task == "masked_lm":
        rows = [{"input_ids": row["input_ids"], "attention_mask": mask} for row in rows]
    hidden = DataCollatorForLanguageModeling(loaded.task._tokenizer, mlm_probability=0.15)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, seed=0,
        )  # fmt: skip
        collate: Any = default_data_collator if task == "causal_lm" else hidden
        trainer = Trainer(WithLoss(), arguments, collate, rows, callbacks=[Watch()])
        return float(trainer.train().training_loss)


CONTESTANTS = {"harness": run_harness, "Trainer": run_trainer}


def child(name: str, experiment: str, steps: int) -> dict[str, float]:
    """One contestant, measured in this process."""
    import torch

    from harness.machine import device

    torch.set_num_threads(threads.share_of_cores())
    watch = Stopwatch()
    loss = CONTESTANTS[name](experiment, steps, watch)
    seconds = watch.seconds()
    return {
        "loss": loss,
        "first_step_s": watch.first_step,
        "step_ms": 1000 * statistics.median(seconds),
        "tokens_per_s": sum(watch.real[WARM:]) / sum(seconds),
        "peak_gib": device.peak_memory_gib(),
    }


def start(name: str, experiment: str, steps: int) -> dict[str, float]:
    """What one child measured. Raises RuntimeError with its last words."""
    told = {"STARTED": str(time.time()), "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--child", name, experiment, str(steps)]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | told, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-8:]))
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    print(f"  {experiment} {name}: {found['tokens_per_s']:.0f} tokens a second", flush=True)
    return found


Rounds = list[dict[str, dict[str, float]]]
"""What every contestant measured in every round."""


def table(experiment: str, found: Rounds) -> list[dict[str, str]]:
    """One row per contestant: medians, and how many times as fast the harness is."""
    from recording import ratios, spread

    rows = []
    for name in CONTESTANTS:
        mine = [one[name] for one in found]
        ours = (one["harness"]["tokens_per_s"] for one in found)
        rows.append({
            "experiment": experiment,
            "trainer": name,
            "tokens a second": spread(one["tokens_per_s"] for one in mine).text(0),
            "harness is faster by": ratios(ours, (one["tokens_per_s"] for one in mine)).text(),
            "ms a step": spread(one["step_ms"] for one in mine).text(0),
            "first step s": spread(one["first_step_s"] for one in mine).text(1),
            "peak GiB": spread(one["peak_gib"] for one in mine).text(),
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "EXPERIMENT", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one round of eight steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    if asked.child:
        name, experiment, steps = asked.child
        print(json.dumps(child(name, experiment, int(steps))))
        return
    from recording import bars, publish, spread

    settle_wait_policy()
    rounds, steps = (1, 8) if asked.quick else (asked.rounds, asked.steps)
    found: dict[str, Rounds] = {
        experiment: [{name: start(name, experiment, steps) for name in turned} for turned in _turns(rounds)]
        for experiment in EXPERIMENTS
    }
    rows = [row for experiment, ours in found.items() for row in table(experiment, ours)]
    speeds = {
        name: {experiment: spread(one[name]["tokens_per_s"] for one in ours) for experiment, ours in found.items()}
        for name in CONTESTANTS
    }
    figure = bars("Pre-training: tokens per second", "tokens per second", speeds)
    note = f"builtin:transformer in float32, {BATCH} chunks of 128 tokens a step, {steps} steps, {rounds} round(s)."
    publish("language_models", rows, {"rounds": found, "tokens per second": speeds}, figure, note)


def _turns(rounds: int) -> list[list[str]]:
    """The contestants of each round; the one that begins changes."""
    names = list(CONTESTANTS)
    return [names[number % len(names) :] + names[: number % len(names)] for number in range(rounds)]


if __name__ == "__main__":
    main()
