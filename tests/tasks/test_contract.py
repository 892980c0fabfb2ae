"""What every task must hold to: the suite runs over each file of `harness/tasks`.

The test file of a task has a function `case(folder)`: the task with small data of its own, texts of different lengths
among them, and a tiny model in evaluation mode without dropout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness import evaluate, registry
from harness.batch import Batch, cut
from harness.evaluate import Evaluator
from harness.gradients import ExactGradient
from harness.task import Task
from tests.toys import deviation

NAMES = registry.names("task")
Case = tuple[Task, nn.Module]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    make: Callable[[Path], Case] = importlib.import_module(f"tests.tasks.test_{request.param}").case
    return make(tmp_path_factory.mktemp(request.param))


def batches(case: Case, size: int = 8) -> list[Batch]:
    return list(case[0].batches(case[1], size, torch.Generator().manual_seed(3)))


def test_an_epoch_has_the_batches_it_promises_and_every_training_row_once(case: Case) -> None:
    """A row that is too long for one example may be several."""
    found = batches(case, 5)
    assert len(found) == case[0].num_batches(5)
    assert sum(map(len, found)) == case[0].num_batches(1) >= case[0].num_rows("train")
    assert len({int(length) for batch in found for length in batch.lengths}) > 1, "texts of different lengths"


def test_the_shares_of_any_cut_add_up_to_the_loss_and_its_gradient(case: Case) -> None:
    task, model = case
    batch = max(batches(case), key=lambda one: len(set(one.lengths.tolist())))
    whole = task.loss(model.double(), batch, task.count(batch))
    model.zero_grad()
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    numbers = set()
    for budget in (10**9, int(batch.lengths.max()) * 3, 1):
        exact = ExactGradient(Accelerator(cpu=True), model, task, budget)
        exact.overhead = 10**9
        exact.load(batch)
        assert float(exact()) == pytest.approx(float(whole.detach()), rel=1e-5)
        numbers.add(exact.num_micro_batches)
        for name, gradient in expected.items():
            found = model.get_parameter(name).grad
            assert found is not None
            assert deviation(found, gradient) < 1e-6, name
    assert len(numbers) == 3, "the cuts differ"
    model.float()


def test_the_loss_is_a_mean_over_what_is_counted(case: Case) -> None:
    """Of two batches with the same rows, one of them twice over, it is the same."""
    task, model = case
    batch = batches(case)[0]
    twice = batch.take([*range(len(batch)), *range(len(batch))])
    assert {key: 2 * value for key, value in task.count(batch).items()} == pytest.approx(task.count(twice))
    losses = [float(task.loss(model, one, task.count(one)).detach()) for one in (batch, twice)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_predictions_do_not_depend_on_how_they_are_cut(case: Case) -> None:
    """Single rows, a few, all at once; and parts of a split, joined."""
    task, model = case
    number = task.num_rows("validation")
    whole = task.predict(model, "validation", range(number), 10**9)
    for budget in (1, 40):
        found = task.predict(model, "validation", range(number), budget)
        np.testing.assert_allclose(found.values, whole.values, rtol=1e-4, atol=1e-4)
        assert found.rows == whole.rows
        assert found.num_flips(whole) == 0
    parts = [task.predict(model, "validation", range(*ends), 40) for ends in ((0, 2), (2, number))]
    joined = parts[0].joined(parts[1:])
    np.testing.assert_allclose(joined.values, whole.values, rtol=1e-4, atol=1e-4)
    assert joined.rows == whole.rows


def test_what_its_evaluator_predicts_has_its_headline(case: Case) -> None:
    task, model = case
    predictions = Evaluator(Accelerator(cpu=True)).predict(model, task, "validation")
    found = evaluate.headline(task, predictions)
    assert list(found) == list(task.headline)
    assert all(np.isfinite(value) for value in found.values())


def test_the_longest_batch_holds_the_longest_rows(case: Case) -> None:
    longest = case[0].longest_batch(3)
    if longest is not None:
        lengths = sorted((int(length) for batch in batches(case) for length in batch.lengths), reverse=True)
        assert sorted(longest.lengths.tolist(), reverse=True) == lengths[:3]


def test_examples_for_latency_have_the_shape_that_was_asked_for(case: Case) -> None:
    inputs: dict[str, Tensor] = case[0].example(2, 7)
    assert {tensor.shape[:2] for tensor in inputs.values()} == {(2, 7)}
    with torch.inference_mode():
        case[1](**inputs)


@pytest.mark.parametrize("name", NAMES)
def test_its_metrics_read_what_it_predicts(name: str) -> None:
    plugin = registry.plugin("task", name)
    for key in plugin.headline:
        assert registry.reads(registry.producer(key, registry.predictions_of("task", name)), name), key


def test_cuts_of_a_batch_keep_its_rows(case: Case) -> None:
    """What a task puts beside the tokens is taken with them."""
    batch = batches(case)[0]
    for rows in cut(batch.lengths.tolist(), 40, 1):
        part = batch.take(rows)
        assert all(len(tensor) == len(rows) for tensor in (*part.per_token.values(), *part.per_example.values()))
