"""F1, F2: wherever memory runs out in a gradient, the run is the one that had planned the smaller cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.batch import Batch
from harness.errors import TrainingError
from harness.machine import memory as memory_module
from harness.train import Step, Training
from tests import address_space
from tests.memcap import MemCap
from tests.test_train import settings
from tests.toys import ToyTask, classifier, deviation, random_batch

WHOLE = 10_000
LENGTHS = [14, 3, 11, 5, 5, 8, 2, 13, 4, 9, 6, 7]
NUM_STEPS = 4


@pytest.fixture(autouse=True)
def nothing_to_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a whole collection for each of the failures: nothing here is held by a cycle."""
    monkeypatch.setattr(memory_module, "release", lambda: None)


class PhasedTask(ToyTask):
    """Tells the cap when it is in the forward pass."""

    _memory: MemCap | None = None

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        if self._memory is None:
            return super().loss(model, micro, units)
        with self._memory.in_phase("forward"):
            return super().loss(model, micro, units)


def training(dropout: float, memory: MemCap | None = None, notice: Callable[[str], None] = print) -> Training:
    """Two epochs of two batches; only the gradient is under the cap, where nobody but it is asked for memory."""
    torch.manual_seed(7)
    task = PhasedTask().with_batches([random_batch(LENGTHS[i:] + LENGTHS[:i], seed=i) for i in (0, 1)])
    assert isinstance(task, PhasedTask)
    task._memory = memory
    generator = torch.Generator().manual_seed(0)
    model = classifier(dropout=dropout)
    torch.manual_seed(8)
    made = Training(model, task, [], settings(micro_batch_tokens=WHOLE), Accelerator(cpu=True), generator, notice)
    made.exact.overhead = 1000  # only the budget makes it cut
    if memory is not None:
        inner = made.backward

        def capped() -> Tensor:
            with memory, memory.in_phase("backward"):
                return inner()

        made.backward = capped
    return made


def weights(trained: Training) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trained.parameters.values()]


def planned(cuts: list[int], dropout: float) -> list[Tensor]:
    """The weights of a run that is told beforehand how to cut every step."""
    trained = training(dropout)
    steps = trained.steps()
    for tokens in cuts:
        trained.exact.micro_batch_tokens = tokens
        next(steps)
    return weights(trained)


def places(phase: str, dropout: float) -> list[int]:
    """Every cap at which something of this phase is the first that does not fit."""
    memory = MemCap()
    for _ in training(dropout, memory).steps():
        pass
    return memory.caps(phase)


def recovered(cap: int, dropout: float) -> tuple[list[Step], list[Tensor], MemCap]:
    memory = MemCap(cap)
    trained = training(dropout, memory, notice=lambda _: None)
    return list(trained.steps()), weights(trained), memory


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["without dropout", "with dropout"])
def test_wherever_memory_runs_out_the_weights_are_those_of_the_planned_cut(phase: str, dropout: float) -> None:
    uncut, fits, does_not = planned([WHOLE] * NUM_STEPS, dropout), set[int](), set[int]()
    caps = places(phase, dropout)
    for cap in caps[:: max(1, len(caps) // 8)]:
        try:
            steps, found, memory = recovered(cap, dropout)
        except TrainingError:
            does_not.add(cap)
            continue
        fits.add(cap)
        cuts = [step.micro_batch_tokens for step in steps]
        assert len(steps) == NUM_STEPS
        assert memory.failed[0][0] == phase
        assert cuts[-1] < WHOLE
        assert all(map(torch.equal, found, planned(cuts, dropout))), (cap, cuts)
        if not dropout:
            assert max(map(deviation, found, uncut)) < 1e-9
    assert len(fits) >= 3
    assert min(fits) > max(does_not, default=0)


def test_one_example_that_does_not_fit_ends_the_run_with_everything_there_is_to_say() -> None:
    """F6: the longest text of the first batch has 14 tokens."""
    with pytest.raises(TrainingError) as caught:
        recovered(1000, 0.0)
    said = str(caught.value)
    assert said.startswith("out of memory in a forward and backward pass with 1 x 14 tokens (batch x longest text)\n")
    assert " GiB free on the host" in said
    for idea in ("max_length", "precision=bf16", "exp=lora", "smaller model"):
        assert idea in said


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["without dropout", "with dropout"])
def test_numpys_memory_error_is_a_lack_of_memory_too(dropout: float) -> None:
    """F9: a task that computes on the host runs out there, once; the step is taken again."""
    fails = iter([True])

    def fail(*_: Any) -> None:
        if next(fails, False):
            raise MemoryError

    trained = training(dropout, notice=lambda _: None)
    trained.model.register_forward_pre_hook(fail)
    cuts = [step.micro_batch_tokens for step in trained.steps()]
    assert cuts[0] < WHOLE
    assert all(map(torch.equal, weights(trained), planned(cuts, dropout)))


GROWING = """
import sys
import torch
from accelerate import Accelerator
from harness.train import Training
from tests.test_train import settings
from tests.toys import ToyTask, classifier, random_batch

model = classifier().float()
rows = [32, 32, 128, 512, 2048, 32]
task = ToyTask().with_batches([random_batch([48] * n, seed=n) for n in rows])
training = Training(model, task, [], settings(micro_batch_tokens=10**9, epochs=1), Accelerator(cpu=True),
                    torch.Generator().manual_seed(0), notice=lambda text: print(text, file=sys.stderr))
training.exact.overhead = 10**6
steps = training.steps()
next(steps)
limit(120)
for step in steps:
    print(step.number, step.num_examples, step.micro_batch_tokens, step.loss == step.loss)
print(training.progress.num_out_of_memory > 0, all(bool(p.isfinite().all()) for p in model.parameters()))
"""


def test_the_allocators_own_failure_is_survived_by_a_growing_batch() -> None:
    """F1, F2 in a process whose address space really ends: batches up to 2,048 texts at once, and on it goes."""
    *steps, last = address_space.run(GROWING).splitlines()
    rows = [line.split() for line in steps]
    assert [int(row[1]) for row in rows] == [32, 128, 512, 2048, 32]
    tokens = [int(row[2]) for row in rows]
    assert tokens[0] == 10**9
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] == tokens[-2] < 2048 * 48
    assert all(row[3] == "True" for row in rows)
    assert last == "True True"
