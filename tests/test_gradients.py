from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.errors import TrainingError
from harness.gradients import ExactGradient
from tests.toys import TokenTagger, ToyTask, classifier, deviation, random_batch

LENGTHS = [3, 11, 5, 5, 8, 2, 13, 4, 9, 6, 7]
LOSSES: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": [0.2, 1.0, 3.0]},
    {"class_weights": [0.2, 1.0, 3.0], "label_smoothing": 0.1},
]


def gradient(model: nn.Module, task: ToyTask, budget: int) -> tuple[Tensor, dict[str, Tensor], ExactGradient]:
    exact = ExactGradient(Accelerator(cpu=True), model, task, budget, notice=lambda _: None)
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


class OutOfMemoryAbove:
    """Raises torch's own error in the backward of a weight while a micro-batch has more tokens than a limit."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self.see, with_kwargs=True)
        model.get_parameter("classifier.weight").register_hook(self.fail)
        self.limit = limit

    def see(self, module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        self.tokens = kwargs["input_ids"].numel()

    def fail(self, grad: Tensor) -> Tensor:
        if self.tokens > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return grad


def test_after_running_out_of_memory_the_step_is_the_one_a_smaller_cut_would_have_taken() -> None:
    """With dropout: the generators are restored, so the retry is bit for bit a step that was planned that way."""
    planned = classifier(dropout=0.2).train()
    torch.manual_seed(7)
    exact = ExactGradient(Accelerator(cpu=True), planned, ToyTask(), 32)
    exact.load(random_batch(LENGTHS))
    exact()

    recovered = classifier(dropout=0.2).train()
    OutOfMemoryAbove(recovered, 40)
    notices: list[str] = []
    torch.manual_seed(7)
    retried = ExactGradient(Accelerator(cpu=True), recovered, ToyTask(), 128, notice=notices.append)
    retried.load(random_batch(LENGTHS))
    retried()

    assert retried.micro_batch_tokens == 32
    assert len(notices) == retried.num_out_of_memory == 2
    for (name, a), (_, b) in zip(planned.named_parameters(), recovered.named_parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name  # type: ignore[arg-type]


def test_one_example_that_does_not_fit_is_a_sentence() -> None:
    model = classifier()
    OutOfMemoryAbove(model, 0)
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 64, notice=lambda _: None)
    exact.load(random_batch(LENGTHS))
    with pytest.raises(TrainingError, match=r"one example of 13 tokens at a time\n  fix: shorten"):
        exact()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = classifier()

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    model.register_forward_pre_hook(broken)
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 64)
    exact.load(random_batch(LENGTHS))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        exact()
