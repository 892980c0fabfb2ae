"""Optuna around Hugging Face's Trainer with PEFT's LoRA, all trials in one process: what a user would write by hand.

    python benchmarks/study_peer.py TRIALS.json STEPS [key=value ...]

TRIALS.json is a list of trials, each with `rank` and `learning_rate`; they are enqueued, so that they are those of the
study it is compared with (study_cost.py). The sentences are tokenised once; each trial begins with the pretrained model
again, trains so many steps, and is judged once by macro-F1 on validation. Nothing is tracked or saved. Threads wait for
each other as those of launch.py do.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from contestants import pretrained, tokenised, trainer_arguments

from harness.machine import threads


def main() -> None:
    """Run all trials."""
    threads.choose_wait_policy()  # before torch is imported
    import optuna
    import torch
    from sklearn.metrics import f1_score
    from transformers import DataCollatorWithPadding, Trainer

    file, steps, *overrides = sys.argv[1:]
    torch.set_num_threads(threads.share_of_cores())
    texts = tokenised(overrides)
    collate = DataCollatorWithPadding(texts.tokenizer)

    def f1_macro(found: Any) -> dict[str, float]:
        return {"f1_macro": float(f1_score(found.label_ids, found.predictions.argmax(-1), average="macro"))}

    def objective(trial: optuna.Trial) -> float:
        rank = trial.suggest_categorical("rank", [1, 2, 4, 8, 16, 32, 64])
        rate = trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                pretrained("lora", texts.num_labels, rank), trainer_arguments(folder, int(steps), rate), collate,
                train_dataset=texts.train, eval_dataset=texts.validation, compute_metrics=f1_macro,
            )  # fmt: skip
            trainer.train()
            return float(trainer.evaluate()["eval_f1_macro"])

    trials = json.loads(Path(file).read_text(encoding="utf-8"))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    for trial in trials:
        study.enqueue_trial(trial)
    study.optimize(objective, len(trials))
    assert [trial.params for trial in study.get_trials()] == trials


if __name__ == "__main__":
    main()
