"""Against torch's own gradient of the same model, whose embeddings were left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.gradients import ExactGradient
from harness.models.embedding_gradients import EmbeddingGradients
from tests.toys import ToyTask, classifier, random_batch


class Words(nn.Module):
    """A table with a row for padding, one that nothing looks up, one of positions, one that the output shares."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8, padding_idx=0)
        self.unused = nn.Embedding(9, 8)
        self.positions = nn.Embedding(7, 8)
        self.tied = nn.Embedding(11, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.tied.weight

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.words(words) + self.positions(torch.arange(words.shape[1])) + self.tied(words % 11)
        scores: Tensor = self.out(hidden.tanh())
        return scores.square().mean()


def words() -> Words:
    torch.manual_seed(0)
    return Words().double()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


BATCHES = [[torch.tensor([[3, 3, 0, 49], [7, 3, 0, 0]])], [torch.tensor([[5, 8, 1]]), torch.tensor([[5, 0, 3, 3, 9]])]]


@pytest.mark.parametrize("micro_batches", BATCHES, ids=["one pass", "two passes"])
def test_the_gradient_is_torchs_in_memory_that_is_kept(micro_batches: list[Tensor]) -> None:
    plain, kept = words(), words()
    embeddings = EmbeddingGradients(kept)
    seen = []
    for ids in ([torch.tensor([[40, 41, 42]])], micro_batches):
        plain.zero_grad()
        kept.zero_grad()
        for one in ids:
            plain(one).backward()
        with embeddings.collected():
            for one in ids:
                kept(one).backward()
        seen.append(kept.words.weight.grad)
        if len(seen) == 1:
            assert seen[0] is not None
            seen[0].mul_(torch.nan)  # as clipping to a norm that is not finite does
    assert seen[0] is seen[1]
    for (name, expected), found in zip(gradients(plain).items(), gradients(kept).values(), strict=True):
        assert (found is None) == (expected is None) == (name == "unused.weight"), name
        if found is not None and expected is not None:
            assert not found.is_sparse
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_table_that_is_frozen_or_whose_pass_fails_is_left_as_it_was() -> None:
    model = words()
    embeddings = EmbeddingGradients(model)
    model.words.weight.requires_grad_(False)
    with embeddings.collected():
        model(BATCHES[0][0]).backward()
    assert model.words.weight.grad is None
    with pytest.raises(RuntimeError, match="no memory"), embeddings.collected():
        raise RuntimeError("no memory")
    assert not any(module.sparse for module in model.modules() if isinstance(module, nn.Embedding))


def test_a_step_takes_its_gradient_so() -> None:
    """The engine's gradient of whole training on a CPU lies in the kept table, and equals torch's."""
    model, task, batch = classifier(), ToyTask(), random_batch([3, 5, 2])
    plain = copy.deepcopy(model)
    task.loss(plain, batch, task.count(batch)).backward()
    exact = ExactGradient(Accelerator(cpu=True), model, task, 1000)
    tables = [name for name, module in model.named_modules() if type(module) is nn.Embedding]
    held = []
    for _ in range(2):
        exact.load(batch)
        exact()
        held.append([model.get_submodule(name).weight.grad for name in tables])
    assert tables
    assert all(first is second for first, second in zip(*held, strict=True))
    for name, expected in gradients(plain).items():
        if expected is not None:
            torch.testing.assert_close(model.get_parameter(name).grad, expected, rtol=1e-6, atol=1e-9)
