from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.errors import TrainingError
from harness.gradients import ExactGradient, OutOfMemory
from tests.toys import OutOfMemoryAbove, TokenTagger, ToyTask, classifier, deviation, random_batch

LENGTHS = [3, 11, 5, 5, 8, 2, 13, 4, 9, 6, 7]
LOSSES: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": [0.2, 1.0, 3.0]},
    {"class_weights": [0.2, 1.0, 3.0], "label_smoothing": 0.1},
]


def gradient(model: nn.Module, task: ToyTask, budget: int) -> tuple[Tensor, dict[str, Tensor], ExactGradient]:
    exact = ExactGradient(Accelerator(cpu=True), model, task, budget)
    exact.overhead = 1000  # only the budget makes it cut
    exact.load(random_batch(LENGTHS, token_labels=task.token_labels))
    loss = exact()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, exact


@pytest.mark.parametrize("token_labels", [False, True], ids=["examples", "tokens"])
@pytest.mark.parametrize("settings", LOSSES, ids=["plain", "smoothed", "weighted", "weighted, smoothed"])
def test_the_gradient_is_that_of_the_uncut_batch_by_torchs_own_mean(
    settings: dict[str, Any], token_labels: bool
) -> None:
    """The reference is one forward of the whole batch and torch's mean reduction, which shares no code with ours."""
    task = ToyTask(token_labels=token_labels, **settings)
    model = TokenTagger() if token_labels else classifier()
    batch = random_batch(LENGTHS, token_labels=token_labels)
    inputs = {name: tensor for name, tensor in batch.per_token.items() if name != "labels"}
    logits = model(**inputs) if token_labels else model(**inputs).logits
    labels = batch.per_token["labels"] if token_labels else batch.per_example["labels"]
    reference = nn.CrossEntropyLoss(weight=task.weights, label_smoothing=task.label_smoothing)(
        logits.flatten(0, -2), labels.flatten()
    )
    reference.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for budget in (1_000_000, 40, 13, 1):
        loss, found, _ = gradient(model, task, budget)
        assert abs(float(loss) - float(reference.detach())) < 1e-6  # the loss is summed in float32 for the record
        assert found.keys() == expected.keys()
        assert max(deviation(found[name], expected[name]) for name in expected) < 1e-10


def test_the_cuts_of_that_test_really_differ() -> None:
    counts = [gradient(classifier(), ToyTask(), budget)[2].num_micro_batches for budget in (1_000_000, 40, 13, 1)]
    assert counts[-1] == len(LENGTHS)
    assert counts == sorted(set(counts))


def test_it_replaces_what_stood_in_grad() -> None:
    model = classifier()
    _, first, exact = gradient(model, ToyTask(), 40)
    exact()
    assert all(torch.equal(p.grad, first[name]) for name, p in model.named_parameters() if p.grad is not None)


def test_running_out_of_memory_is_told_to_whoever_can_take_the_step_again() -> None:
    model = classifier()
    OutOfMemoryAbove(model, 40)
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 128)
    exact.load(random_batch(LENGTHS))
    with pytest.raises(OutOfMemory):
        exact()
    exact.halve()
    assert exact.micro_batch_tokens == 64
    exact.halve()
    exact()
    assert not exact.is_smallest


def test_one_example_that_does_not_fit_is_a_sentence() -> None:
    exact = ExactGradient(Accelerator(cpu=True), classifier(), ToyTask(), 12)
    exact.load(random_batch(LENGTHS))
    with pytest.raises(TrainingError, match="out of memory in a forward and backward pass"):
        exact.halve()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = classifier()

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    model.register_forward_pre_hook(broken)
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 64)
    exact.load(random_batch(LENGTHS))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        exact()
