"""The trainers that are compared, each as a user would write it: this one, Hugging Face's Trainer, Accelerate's loop.

They train builtin:minilm on the same sentences with the same settings, dropout included. Everything heavy is imported
inside: a fresh process is timed from its start.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.machine import threads

WARM = 3
BATCH, RATE, EVALUATED = 16, 1e-3, 256
LORA = r".*attention\.(self\.(query|key|value)|output\.dense)"
"""What `target_modules: attention` means, in PEFT's words."""


BUSY = 0.25
"""Share of the machine's CPU time from which on others use the cores."""


def settle_wait_policy() -> None:
    """Let OpenMP threads of all processes started from here sleep while they wait, if others use the cores now.

    One decision for all contestants: threads that spin are faster on quiet cores, and many times slower beside a busy
    process. `OMP_WAIT_POLICY` in the environment decides.
    """
    if "OMP_WAIT_POLICY" not in os.environ and max(threads.busy_share() for _ in range(10)) > BUSY:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        print("NOTE other processes use these cores: threads of all contestants sleep while they wait", flush=True)


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


def run_harness(kind: str, steps: int, watch: Stopwatch) -> dict[str, float]:
    """This project's loop, without its tracking."""
    import training

    from harness import evaluate
    from harness.machine import device

    threads.bound_caches()
    device.use_fast_matmul()
    settings = [f"train.batch_size={BATCH}", f"train.max_steps={steps}", f"train.learning_rate={RATE}"]
    started = training.start(kind, settings)
    for _ in range(steps):
        watch.begin()
        step = next(started.steps)
        watch.end()
        watch.real.append(step.num_tokens)
    watch.computed = watch.real  # layers see no padding
    evaluator, model = evaluate.Evaluator(started.accelerator), started.assembled.model
    begun = time.perf_counter()
    evaluator._predict(model, started.loaded.task, "validation", range(EVALUATED))
    seconds = time.perf_counter() - begun
    return {"evaluation_s": seconds, "loss": step.loss, "trainable": started.assembled.count.trainable}


@dataclass(frozen=True)
class Texts:
    """What a peer trains on."""

    tokenizer: Any
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    num_labels: int


def tokenised(overrides: Sequence[str] = ()) -> Texts:
    """The sentences of this project for a peer; of validation the first rows."""
    from transformers import AutoTokenizer

    from harness.catalogue import builtin
    from harness.data import dataset
    from harness.specs import spec

    splits = dataset.load(spec.load("lora", list(overrides)).data)
    tokenizer = AutoTokenizer.from_pretrained(builtin.model_path("minilm"))

    def rows(examples: list[Any]) -> list[dict[str, Any]]:
        encoded = tokenizer([example.text for example in examples], truncation=True, max_length=128)
        columns = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        return [row | {"labels": example.label} for row, example in zip(columns, examples, strict=True)]

    return Texts(
        tokenizer, rows(splits.train.examples), rows(splits.validation.examples[:EVALUATED]), len(splits.labels)
    )


def pretrained(kind: str, num_labels: int, rank: int = 8) -> Any:
    """The model with a new head, and with PEFT's LoRA unless all of it trains."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from harness.catalogue import builtin

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(builtin.model_path("minilm"), num_labels=num_labels)
    if kind != "lora":
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    lora = LoraConfig(TaskType.SEQ_CLS, r=rank, lora_alpha=16, lora_dropout=0.1, target_modules=LORA)
    return get_peft_model(model, lora)


def trainable(model: Any) -> int:
    """How many numbers train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def trainer_arguments(folder: str, steps: int, rate: float = RATE, sampling: str = "random") -> Any:
    """Trainer's defaults, but for what all contestants share."""
    from transformers import TrainingArguments

    return TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
        learning_rate=rate, train_sampling_strategy=sampling, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=10, seed=0,
    )  # fmt: skip


def run_trainer(kind: str, steps: int, watch: Stopwatch, sampling: str = "random") -> dict[str, float]:
    """Hugging Face's Trainer with its defaults."""
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback

    texts = tokenised()
    model, collate = pretrained(kind, texts.num_labels), DataCollatorWithPadding(texts.tokenizer)

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
        arguments = trainer_arguments(folder, steps, sampling=sampling)
        trainer = Counting(
            model, arguments, collate, train_dataset=texts.train, eval_dataset=texts.validation, callbacks=[Watching()]
        )
        trainer.train()
        started = time.perf_counter()
        trainer.evaluate()
        seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"evaluation_s": seconds, "loss": losses[-1] if losses else 0.0, "trainable": trainable(model)}


def run_by_length(kind: str, steps: int, watch: Stopwatch) -> dict[str, float]:
    """The same with its own remedy against padding: sentences of similar length meet in a batch."""
    return run_trainer(kind, steps, watch, "group_by_length")


def run_accelerate(kind: str, steps: int, watch: Stopwatch) -> dict[str, float]:
    """The loop of Accelerate's tutorial."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding, get_scheduler

    texts = tokenised()
    accelerator, model = Accelerator(cpu=True), pretrained(kind, texts.num_labels)
    collate = DataCollatorWithPadding(texts.tokenizer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    loaders = [
        DataLoader(texts.train, BATCH, shuffle=True, collate_fn=collate),
        DataLoader(texts.validation, BATCH, collate_fn=collate),
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
    seconds = time.perf_counter() - started
    return {"evaluation_s": seconds, "loss": float(loss), "trainable": trainable(model)}


CONTESTANTS: dict[str, Callable[[str, int, Stopwatch], dict[str, float]]] = {
    "harness": run_harness,
    "trainer": run_trainer,
    "trainer_by_length": run_by_length,
    "accelerate": run_accelerate,
}
