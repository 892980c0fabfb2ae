"""F4: memory that runs out in evaluation makes it slower, and every example is still judged once."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from harness import evaluate
from harness.errors import TrainingError
from harness.evaluate import Evaluator
from harness.machine import memory as memory_module
from harness.machine import processes
from harness.metrics.confusion_matrix import confusion_counts
from harness.predictions import Classified
from harness.tasks.sequence_classification import SequenceClassification
from harness.train import Training
from tests.memcap import MemCap
from tests.tasks.test_sequence_classification import checkpoint, prepared, splits
from tests.test_train import settings

LENGTHS = [13, 5, 9] * 7 + [13, 2, 2]  # equal lengths share a forward


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SequenceClassification, nn.Module]:
    monkeypatch.setattr(memory_module, "release", lambda: None)
    return prepared(Path(checkpoint(tmp_path)), splits(LENGTHS))


def test_under_any_cap_every_example_is_judged_once(small: tuple[SequenceClassification, nn.Module]) -> None:
    task, model = small
    evaluator = Evaluator(Accelerator(cpu=True))
    with MemCap() as memory:
        expected = evaluator.predict(model, task, "validation")
    assert (evaluator.tokens, evaluator.num_out_of_memory) == (evaluate.CPU_TOKENS, 0)
    budgets = set()
    for share in (0.9, 0.7, 0.5, 0.35):
        said: list[str] = []
        evaluator = Evaluator(Accelerator(cpu=True), said.append)
        with MemCap(cap=share * memory.peak) as limited:
            found = evaluator.predict(model, task, "validation")
        assert len(limited.failed) == evaluator.num_out_of_memory == len(said) > 0
        assert evaluator.tokens == evaluate.CPU_TOKENS // 2 ** len(said)
        assert isinstance(found, Classified)
        assert isinstance(expected, Classified)
        assert confusion_counts(found).sum() == len(LENGTHS)
        assert [row["id"] for row in found.rows] == [row["id"] for row in expected.rows]
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        assert said[0].startswith("NOTE out of memory in evaluation: 512 -> 256 tokens at once")
        budgets.add(evaluator.tokens)
    assert len(budgets) > 1


def test_what_did_not_fit_once_is_not_tried_again(small: tuple[SequenceClassification, nn.Module]) -> None:
    task, model = small
    with MemCap() as memory:
        Evaluator(Accelerator(cpu=True)).predict(model, task, "validation")
    evaluator = Evaluator(Accelerator(cpu=True), lambda _: None)
    with MemCap(cap=0.5 * memory.peak):
        evaluator.predict(model, task, "validation")
        failures, tokens = evaluator.num_out_of_memory, evaluator.tokens
        evaluator.predict_alone(model, task, "test")
    assert failures > 0
    assert (evaluator.num_out_of_memory, evaluator.tokens) == (failures, tokens)


def test_training_goes_on_as_if_nothing_had_been(small: tuple[SequenceClassification, nn.Module]) -> None:
    """The same micro-batches and, with dropout, the same weights bit for bit."""
    task, model = small
    start, found = copy.deepcopy(model.state_dict()), []
    for cap in (math.inf, 9000):
        model.load_state_dict(start)
        torch.manual_seed(0)
        chosen = settings(micro_batch_tokens=64, batch_size=8, epochs=1)
        accelerator, generator = Accelerator(cpu=True), torch.Generator().manual_seed(0)
        training, evaluator = Training(model, task, [], chosen, accelerator, generator), Evaluator(accelerator)
        for _ in training.steps():
            with MemCap(cap):
                evaluator.predict(model, task, "validation")
        found.append(copy.deepcopy(model.state_dict()))
        assert (training.progress.number, training.exact.micro_batch_tokens) == (3, 64)
        assert (evaluator.num_out_of_memory > 0) == (cap == 9000)
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_single_texts_that_do_not_fit_are_a_sentence(small: tuple[SequenceClassification, nn.Module]) -> None:
    """F6, in evaluation."""
    task, model = small
    for predict in ("predict", "predict_alone"):
        evaluator = Evaluator(Accelerator(cpu=True), lambda _: None)
        with MemCap(cap=100), pytest.raises(TrainingError, match="out of memory in evaluation with 1 text at a time\n"):
            getattr(evaluator, predict)(model, task, "validation")
        assert evaluator.tokens == 1


def test_one_process_without_memory_ends_all_with_the_same_sentence(
    small: tuple[SequenceClassification, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one has its part; what the other one gathers is that it has none."""
    task, model = small
    evaluator = Evaluator(Accelerator(cpu=True))
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(processes, "gather", lambda _, own: [own, None])
    with pytest.raises(TrainingError, match="out of memory in evaluation"):
        evaluator.predict(model, task, "validation")
    monkeypatch.setattr(processes, "gather", lambda _, own: [own, own])
    assert len(evaluator.predict(model, task, "validation").rows) == len(LENGTHS)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    small: tuple[SequenceClassification, nn.Module],
) -> None:
    task, model = small
    model.register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    evaluator = Evaluator(Accelerator(cpu=True))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        evaluator.predict(model, task, "validation")
    assert evaluator.num_out_of_memory == 0
