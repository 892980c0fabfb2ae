"""Training against the trainers a user would pick instead: speed, padding, memory, evaluation, time to the first step.

    python benchmarks/peers.py [--quick] [--rounds 3] [--steps 20] [--only lora]

Every contestant is a fresh process that trains builtin:minilm on the same sentences with the same settings, dropout
included. Rounds are interleaved: each round runs every contestant once, and a ratio is one of two processes of the same
round; what is shown is the median over the rounds, with smallest and largest. Steps are timed after three have warmed
up. `gradient` is how far the gradient of a batch without padding is from that of torch alone on the padded batch.

Results: recording.py.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
WARM = 3
BATCH, RATE, EVALUATED = 16, 1e-3, 256
LORA = r".*attention\.(self\.(query|key|value)|output\.dense)"
"""What `target_modules: attention` means, in PEFT's words."""
FLOPS_PER_TOKEN = {"lora": 4 * 10.6e6, "full_finetune": 6 * 10.6e6}
"""Of the matrix products of the 6 layers: forward, and backward to the activations, with full fine-tuning also to the
weights."""


class Stopwatch:
    """When every step began and ended, and the tokens it computed."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.first_step = 0.0
        self.real: list[int] = []
        self.computed: list[int] = []

    def begin(self) -> None:
        """A step begins."""
        self.begun.append(time.perf_counter())

    def end(self) -> None:
        """A step has ended."""
        self.ended.append(time.perf_counter())
        if len(self.ended) == 1:
            self.first_step = time.time() - float(os.environ["STARTED"])

    def batch(self, mask: Any) -> None:
        """A padded batch is computed; its attention mask. [B, T]"""
        self.real.append(int(mask.sum()))
        self.computed.append(mask.numel())

    def seconds(self) -> list[float]:
        """Of every step after those that warm up."""
        return [end - begin for begin, end in zip(self.begun, self.ended, strict=False)][WARM:]


# What runs in a process of its own


def run_harness(kind: str, steps: int, watch: Stopwatch) -> dict[str, float]:
    """This project's loop, without its tracking."""
    import torch

    from harness import assembly, device, evaluate, processes, spec, train

    chosen = spec.load(kind, [f"train.batch_size={BATCH}", f"train.max_steps={steps}", f"train.learning_rate={RATE}"])
    device.use_fast_matmul()
    loaded = assembly.load(chosen)
    assembled = assembly.assemble(chosen, loaded, 0)
    accelerator, generator = processes.build_accelerator("no"), torch.Generator().manual_seed(0)
    methods = list(assembled.methods.values())
    training = train.Training(assembled.model, loaded.task, methods, chosen.train, accelerator, generator)
    running = training.steps()
    for _ in range(steps):
        watch.begin()
        step = next(running)
        watch.end()
        watch.real.append(step.num_tokens)
    watch.computed = watch.real  # layers see no padding
    evaluator, rows = evaluate.Evaluator(accelerator), range(EVALUATED)
    started = time.perf_counter()
    evaluator._predict(assembled.model, loaded.task, "validation", rows)
    return {"evaluation_s": time.perf_counter() - started, "loss": step.loss, "trainable": assembled.count.trainable}


def tokenised() -> tuple[Any, Any, Any, Any]:
    """The same sentences for a peer: tokenizer, model, training rows, the first rows of validation."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from harness import builtin, data, spec

    folder = builtin.model_path("minilm")
    splits = data.load(spec.load("lora").data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(splits.labels))

    def rows(examples: list[Any]) -> list[dict[str, Any]]:
        encoded = tokenizer([example.text for example in examples], truncation=True, max_length=128)
        columns = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        return [row | {"labels": example.label} for row, example in zip(columns, examples, strict=True)]

    return tokenizer, model, rows(splits.train.examples), rows(splits.validation.examples[:EVALUATED])


def with_lora(model: Any, kind: str) -> Any:
    """PEFT's LoRA on it, unless all of it trains."""
    from peft import LoraConfig, TaskType, get_peft_model

    if kind != "lora":
        return model
    return get_peft_model(
        model, LoraConfig(TaskType.SEQ_CLS, r=8, lora_alpha=16, lora_dropout=0.1, target_modules=LORA)
    )


def run_trainer(kind: str, steps: int, watch: Stopwatch, sampling: str = "random") -> dict[str, float]:
    """Hugging Face's Trainer with its defaults."""
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    tokenizer, model, train_rows, validation_rows = tokenised()
    model = with_lora(model, kind)
    collate = DataCollatorWithPadding(tokenizer)

    class Watching(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end()

    class Counting(Trainer):
        def training_step(self, model: Any, inputs: Any, *others: Any) -> Any:
            watch.batch(inputs["attention_mask"])
            return super().training_step(model, inputs, *others)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
            learning_rate=RATE, train_sampling_strategy=sampling, use_cpu=True, report_to="none", save_strategy="no",
            disable_tqdm=True, logging_steps=10, seed=0,
        )  # fmt: skip
        trainer = Counting(
            model, arguments, collate, train_dataset=train_rows, eval_dataset=validation_rows, callbacks=[Watching()]
        )
        trainer.train()
        started = time.perf_counter()
        trainer.evaluate()
        seconds = time.perf_counter() - started
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"evaluation_s": seconds, "loss": losses[-1] if losses else 0.0, "trainable": trainable}


def run_by_length(kind: str, steps: int, watch: Stopwatch) -> dict[str, float]:
    """The same with its own remedy against padding: sentences of similar length meet in a batch."""
    return run_trainer(kind, steps, watch, "group_by_length")


def run_accelerate(kind: str, steps: int, watch: Stopwatch) -> dict[str, float]:
    """The loop of Accelerate's tutorial."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, get_scheduler

    tokenizer, model, train_rows, validation_rows = tokenised()
    accelerator, model = Accelerator(cpu=True), with_lora(model, kind)
    collate = DataCollatorWithPadding(tokenizer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    loaders = [
        DataLoader(train_rows, BATCH, shuffle=True, collate_fn=collate),
        DataLoader(validation_rows, BATCH, collate_fn=collate),
    ]
    schedule = get_scheduler("linear", optimizer, 0, steps)
    model, optimizer, train_loader, validation_loader, schedule = accelerator.prepare(
        model, optimizer, *loaders, schedule
    )
    model.train()
    endless = (batch for _ in iter(int, 1) for batch in train_loader)
    for batch, _ in zip(endless, range(steps), strict=False):
        watch.begin()
        watch.batch(batch["attention_mask"])
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        watch.end()
    model.eval()
    started = time.perf_counter()
    with torch.no_grad():
        for batch in validation_loader:
            accelerator.gather_for_metrics(model(**batch).logits)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"evaluation_s": time.perf_counter() - started, "loss": float(loss), "trainable": trainable}


CONTESTANTS: dict[str, Callable[[str, int, Stopwatch], dict[str, float]]] = {
    "harness": run_harness,
    "trainer": run_trainer,
    "trainer_by_length": run_by_length,
    "accelerate": run_accelerate,
}


def child(name: str, kind: str, steps: int) -> dict[str, Any]:
    """One contestant, measured in this process."""
    import torch

    from harness import device, threads

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

    from harness import device, threads

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

    from harness import assembly, device, gradients, processes, spec, surgery

    device.use_fast_matmul()
    chosen = spec.load("lora", [f"train.batch_size={BATCH}"])
    loaded = assembly.load(chosen)
    assembled = assembly.assemble(chosen, loaded, 0)
    model: Any = assembled.model
    surgery.disable_dropout(model)
    with torch.no_grad():  # B starts at zero, and A's gradient with it
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(std=0.02)
    batch = next(loaded.task.batches(model, BATCH, torch.Generator().manual_seed(0)))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.nn.functional.cross_entropy(model(**batch.per_token).logits, batch.per_example["labels"]).backward()
    expected = [parameter.grad.clone() for parameter in parameters]
    exact = gradients.ExactGradient(processes.build_accelerator("no"), model, loaded.task, 4096)
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


def table(kind: str, found: list[dict[str, dict[str, float]]]) -> list[dict[str, str]]:
    """One row per contestant: medians, and its ratio to the harness with the range over the rounds."""
    rows = []
    for name in CONTESTANTS:
        mine = [one[name] for one in found]
        middle = {key: statistics.median(one[key] for one in mine) for key in mine[0]}
        ratios = [one["harness"]["tokens_per_s"] / one[name]["tokens_per_s"] for one in found]
        evaluation = statistics.median(one[name]["evaluation_s"] / one["harness"]["evaluation_s"] for one in found)
        share = [FLOPS_PER_TOKEN[kind] * one[name]["tokens_per_s"] / 1e9 / one["limit"]["gflops"] for one in found]
        rows.append({
            "experiment": kind,
            "trainer": name,
            "ms a step": f"{middle['step_ms']:.0f}",
            "examples/s": f"{middle['examples_per_s']:.1f}",
            "harness is faster by": f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            "real tokens": f"{middle['padding_efficiency']:.0%}",
            "of the matmul limit": f"{statistics.median(share):.0%}",
            "evaluation s": f"{middle['evaluation_s']:.1f} ({evaluation:.2f} x)",
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
    from recording import publish

    rounds, steps = (1, 10) if asked.quick else (asked.rounds, asked.steps)
    exact = start("gradient", "lora", "0")
    found = {kind: list(rounds_of(kind, rounds, steps)) for kind in FLOPS_PER_TOKEN if asked.only in (None, kind)}
    rows = [row for kind, ours in found.items() for row in table(kind, ours)]
    note = (
        f"Gradient without padding against torch's on the padded batch: {exact['gradient']:.0e} of its largest entry."
    )
    publish("peers", rows, {"rounds": found, "steps": steps, **exact}, drawn(found), note)


def drawn(found: dict[str, list[dict[str, dict[str, float]]]]) -> Any:
    """Real tokens per second of every contestant, a point for each round."""
    from harness import figures

    figure = figures.page("Training: real tokens per second", 820, 460)
    for kind, colour in zip(found, figures.COLOURS, strict=False):
        names = [name for _ in found[kind] for name in CONTESTANTS]
        speeds = [one[name]["tokens_per_s"] for one in found[kind] for name in CONTESTANTS]
        figure.add_scatter(x=names, y=speeds, mode="markers", name=kind, marker={"color": colour, "size": 10})
    figure.update_yaxes(title_text="real tokens per second", rangemode="tozero")
    return figure


if __name__ == "__main__":
    main()
