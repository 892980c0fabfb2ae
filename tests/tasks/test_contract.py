"""What every task must hold to: the suite runs over each file of `harness/tasks`.

The test file of a task has a function `case(folder)`: the task with small data of its own, texts of different lengths
among them, and a tiny model in evaluation mode. `case(folder, own)` is the same with `builtin:transformer`. Every
method, and a step for which memory does not suffice, is held against each of them: no task has a line about those.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness import evaluate, registry
from harness.batch import Batch, cut
from harness.evaluate import Evaluator
from harness.gradients import ExactGradient
from harness.method import Backward, Method
from harness.specs import spec
from harness.task import Task
from harness.train import Training
from tests import toys
from tests.test_train import settings
from tests.toys import OutOfMemoryAbove, deviation

NAMES = registry.names("task")
PRETRAINED_ONLY = {"instruction_tuning"}
CASES = [(name, own) for own in (False, True) for name in NAMES if not (own and name in PRETRAINED_ONLY)]
TRAIN = spec.load("full_finetune").train
WHOLE = 10_000
"""More tokens than any batch has."""
LORA: dict[str, Any] = {"rank": 2, "dropout": 0.0, "target_modules": "all"}
ADAPTER: dict[str, Any] = {"size": 4}
MIXOUT: dict[str, Any] = {"p": 0.5, "layers": "all", "units": "element", "scope": "step"}
AWP: dict[str, Any] = {"rule": "sam", "start": 0.0}
TOGETHER = {"lora": LORA, "bottleneck_adapter": ADAPTER, "mixout": MIXOUT, "awp": AWP}
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {"lora": LORA},
    "bottleneck_adapter": {"bottleneck_adapter": ADAPTER},
    "mixout": {"mixout": MIXOUT},
    "awp by relative": {"awp": AWP | {"rule": "relative"}},
    "awp by box": {"awp": AWP | {"rule": "box"}},
    "awp by sam": {"awp": AWP},
    "peft": {"peft": {"type": "LORA", "config": {"r": 2, "target_modules": ".*[.][0-9][.].*(query|q_proj|c_attn)"}}},
    "together": TOGETHER,
}
Case = tuple[Task, nn.Module]


def told(of: tuple[str, bool]) -> str:
    """A case in the name of a test."""
    return f"{of[0]} of an own model" if of[1] else of[0]


@pytest.fixture(scope="module", params=CASES, ids=told)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name, own = request.param
    make: Callable[..., Case] = importlib.import_module(f"tests.tasks.test_{name}").case
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        torch.manual_seed(0)
        yield make(tmp_path_factory.mktemp(name), *([toys.OWN] if own else []))


def batches(case: Case, size: int = 8) -> list[Batch]:
    return list(case[0].batches(case[1], size, torch.Generator().manual_seed(3)))


def varied(case: Case) -> Batch:
    """The batch with most different lengths."""
    return max(batches(case), key=lambda one: len(set(one.lengths.tolist())))


def budgets(batch: Batch) -> tuple[int, int, int]:
    """Tokens for one micro-batch, for some, for as many as there are examples."""
    return WHOLE, int(batch.lengths.max()) * 3, 1


def exactly(task: Task, model: nn.Module, batch: Batch, budget: int) -> ExactGradient:
    """The gradient of the batch, for which the budget alone decides how it is cut."""
    exact = ExactGradient(Accelerator(cpu=True), model, task, budget)
    exact.overhead = 10**9
    exact.load(batch)
    return exact


def edited(case: Case, chosen: dict[str, dict[str, Any]]) -> tuple[nn.Module, list[Method]]:
    """A copy of the case's model in float64 under these methods, some way from where it started."""
    task, model = case
    torch.manual_seed(1)
    copied = copy.deepcopy(model).double()
    found, methods = toys.edited(copied, task.head(model), chosen, TRAIN)
    return toys.moved(found.double()), methods


def test_an_epoch_has_the_batches_it_promises_and_every_training_row_once(case: Case) -> None:
    """A row that is too long for one example may be several."""
    found = batches(case, 5)
    assert len(found) == case[0].num_batches(5)
    assert sum(map(len, found)) == case[0].num_batches(1) >= case[0].num_rows("train")
    assert len({int(length) for batch in found for length in batch.lengths}) > 1, "texts of different lengths"


def test_the_shares_of_any_cut_add_up_to_the_loss_and_its_gradient(case: Case) -> None:
    task, model = case
    batch = varied(case)
    whole = task.loss(model.double(), batch, task.count(batch))
    model.zero_grad()
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    numbers = set()
    for budget in budgets(batch):
        exact = exactly(task, model, batch, budget)
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


# ------------------------------------------------------------------------------------- under methods, and out of memory


def wrapped(exact: Backward, model: nn.Module, methods: list[Method]) -> Backward:
    for method in methods:
        method.start_step(0)
        exact = method.wrap_backward(exact, model)
    return exact


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT sets it for GPT-2 by itself
@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(of, name, id=f"{told(of)}-{name}") for of in CASES for name in (["together"] if of[1] else METHODS)],
    indirect=["case"],
)
def test_the_gradient_under_a_method_is_that_of_any_cut(case: Case, name: str) -> None:
    """And another one than without it; the weights it is taken at are afterwards what they were, bit for bit."""
    chosen, batch = METHODS[name], varied(case)
    found, plain, numbers = [], dict[str, Tensor](), set()
    for budget in budgets(batch):
        model, methods = edited(case, chosen)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        exact = exactly(case[0], model, batch, budget)
        if not plain:
            exact()
            plain = gradients(model)
        wrapped(exact, model, methods)()
        found.append(gradients(model))
        numbers.add(exact.num_micro_batches)
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert len(numbers) == 3, "the cuts differ"
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert max(deviation(other[name], gradient) for name, gradient in found[0].items()) < 1e-6
    if adds := {"lora", "bottleneck_adapter", "peft"} & chosen.keys():
        grown = found[0].keys() - {name for name, _ in case[1].named_parameters()}
        assert all(any(word in name for name in grown) for word in adds - {"peft"}), "what it added learns"
        assert grown
    if chosen.keys() - {"lora", "bottleneck_adapter", "peft"}:
        assert max(deviation(plain[name], gradient) for name, gradient in found[0].items()) > 1e-4, "it does something"


def training(case: Case, chosen: dict[str, dict[str, Any]]) -> Training:
    """Two steps, dropout and all, of which the budget alone decides how they are cut."""
    model, methods = edited(case, chosen)
    given = settings(batch_size=8, epochs=2, max_steps=2, micro_batch_tokens=WHOLE)
    generator = torch.Generator().manual_seed(0)
    made = Training(model, case[0], methods, given, Accelerator(cpu=True), generator, notice=lambda _: None)
    made.exact.overhead = 10**9
    return made


def taken(trained: Training, cuts: list[int] | None = None) -> list[int]:
    """Take the steps, each cut as it is planned; returns the budgets they were cut by in the end."""
    torch.manual_seed(2)
    found, steps = [], trained.steps()
    for number in range(2):
        trained.exact.micro_batch_tokens = cuts[number] if cuts else trained.exact.micro_batch_tokens
        found.append(next(steps).micro_batch_tokens)
    return found


def test_a_step_that_ran_out_of_memory_is_one_that_was_planned_smaller(case: Case) -> None:
    """Bit for bit, with dropout."""
    recovered, planned = training(case, TOGETHER), training(case, TOGETHER)
    limit = max(int(batch.lengths.max()) for batch in batches(case))  # so that the longest one fits alone
    OutOfMemoryAbove(recovered.model, limit, [*recovered.parameters][-1])
    cuts = taken(recovered)
    assert recovered.progress.num_out_of_memory > 0
    assert WHOLE > cuts[0] >= cuts[1]
    assert taken(planned, cuts) == cuts
    assert planned.progress.num_out_of_memory == 0
    assert all(torch.equal(weight, planned.parameters[name]) for name, weight in recovered.parameters.items())
    start, _ = edited(case, TOGETHER)
    assert any(not torch.equal(weight, start.get_parameter(name)) for name, weight in recovered.parameters.items())
