from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from harness import evaluate, faults
from harness.assembly import Assembled
from harness.console import Terminal
from harness.errors import TrainingError
from harness.metric import Metric
from harness.models.surgery import ParameterCount
from harness.predictions import Classified, Predictions
from harness.selection import Selection
from harness.specs import spec
from harness.tracking.tracker import MemoryTracker
from tests.test_train import LENGTHS
from tests.toys import ToyTask, classifier, random_batch

OVERRIDES = ["train.epochs=9", "train.learning_rate=1e-9", "train.batch_size=4"]


class Scripted(Metric[Classified]):
    """Gives the next score of a list, whatever the predictions."""

    def compute(self, predictions: Classified) -> dict[str, float]:
        return {"f1_macro": SCORES.pop(0)}


SCORES: list[float] = []


def selection(scores: list[float], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Selection:
    SCORES[:] = scores
    nothing = Classified(np.zeros(0, dtype=np.int64), np.zeros((0, 3)), ["a", "b", "c"], [])
    monkeypatch.setattr(evaluate.Evaluator, "predict", lambda *_: nothing)
    model = classifier()
    assembled = Assembled(model, {}, set(), ParameterCount(1, 1, 1), {}, {})
    task = ToyTask().with_batches([random_batch(lengths, seed=i) for i, lengths in enumerate(LENGTHS)])
    chosen = spec.load("full_finetune", [*OVERRIDES, *overrides])
    return Selection(
        chosen, task, assembled, {"f1": Scripted()}, Accelerator(cpu=True), MemoryTracker(), Terminal(speaks=False)
    )


def test_it_stops_after_three_epochs_without_a_better_score_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    found = selection([0.5, 0.7, 0.6, 0.7, 0.69, 0.9], monkeypatch).select(seed=0)
    assert (found.score, found.epoch, found.step, found.num_steps) == (0.7, 2, 6, 15)
    assert found.history["validation/f1_macro"] == [(3, 0.5), (6, 0.7), (9, 0.6), (12, 0.7), (15, 0.69)]
    assert [step for step, _ in found.history["train/loss"]] == list(range(1, 16))


def test_the_kept_state_is_that_of_the_best_step(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = selection([0.9, 0.1, 0.1, 0.1], monkeypatch, "train.learning_rate=0.01", "train.max_steps=12")
    seen: list[dict[str, Any]] = []
    predict = evaluate.Evaluator.predict

    def remember(evaluator: Any, model: Any, *rest: Any) -> Predictions:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return predict(evaluator, model, *rest)

    monkeypatch.setattr(evaluate.Evaluator, "predict", remember)
    found = chosen.select(seed=0)
    assert all(torch.equal(value, seen[0][name]) for name, value in found.state.items())
    assert any(not torch.equal(value, seen[1][name]) for name, value in found.state.items())


def test_a_metric_may_be_minimised_and_patience_may_be_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["early_stopping.direction=minimize", "early_stopping.patience=null", "train.epochs=6"]
    found = selection([0.5, 0.4, 0.6, 0.6, 0.6, 0.6], monkeypatch, *overrides).select(seed=0)
    assert (found.score, found.epoch, found.num_steps) == (0.4, 2, 18)


def test_a_score_that_is_not_a_number_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"validation/f1_macro is nan at step 3"):
        selection([float("nan")], monkeypatch).select(seed=0)


def test_durations_do_not_depend_on_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """F24: it jumps back an hour at every look."""
    moments = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(moments))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(moments) * 1e9))
    found = selection([0.5], monkeypatch, "train.max_steps=3", "early_stopping.patience=null").select(seed=0)
    assert 0 < found.train_seconds < 600
    assert 0 <= found.seconds_lost < 600


def test_a_step_that_was_left_out_is_counted_and_has_no_gradient_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "gradient.result:nan@step=2")
    settings = ["train.nonfinite=skip", "train.max_steps=3", "early_stopping.patience=null"]
    found = selection([0.5], monkeypatch, *settings).select(seed=0)
    assert found.history["train/skipped_steps"] == [(2, 1.0)]
    assert [step for step, _ in found.history["train/grad_norm"]] == [1, 3]
    assert [step for step, _ in found.history["train/loss"]] == [1, 3]


def test_the_progress_line_goes_on_where_the_training_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the last score of what was taken before, and without its pace."""
    chosen = selection([], monkeypatch, "train.max_steps=9", "evaluation.every=2 steps")
    chosen.training = SimpleNamespace(progress=SimpleNamespace(number=6))  # type: ignore[assignment]
    chosen.found.history["validation/f1_macro"] = [(2, 0.25), (6, 0.5)]
    line = chosen._line()
    assert (line.pace.total, line.pace.per_epoch, line.pace.per_validation) == (9, 3, 2)
    assert line.fields(line._begun) == ["step 6/9", "f1_macro 0.5000", "epoch 2/3"]
    assert chosen._score_at(6) == 0.5 and chosen._score_at(7) is None


def test_a_run_shows_its_steps_and_each_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.progress.ProgressLine.due", lambda line, now: True)
    chosen = selection([0.5, 0.75], monkeypatch, "train.max_steps=6", "early_stopping.patience=null")
    chosen.terminal = Terminal()
    chosen.select(seed=0)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in told] == [f"step {step}/6" for step in range(1, 7)]
    assert ["f1_macro 0.5000" in line for line in told] == [False] * 3 + [True] * 3
    assert "left + validation" in told[2] and "validation" not in told[3]
