from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from harness import train
from harness.errors import SpecError
from harness.method import Backward, Method
from harness.optim import Train, build_schedule, parameter_groups
from tests.toys import ToyTask, classifier, deviation, random_batch

LENGTHS = [[3, 11, 5, 5], [8, 2, 13, 4], [9, 6, 7]]
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "epochs": 2, "max_steps": None, "learning_rate": 0.05, "schedule": "linear", "warmup_steps": 0.5,
    "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "max_grad_norm": 0.5, "micro_batch_tokens": 16,
}  # fmt: skip


def settings(**changes: Any) -> Train:
    return Train.model_validate(SETTINGS | changes)


def batches() -> list[Any]:
    return [random_batch(lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def steps(model: nn.Module, methods: list[Method] | None = None, **changes: Any) -> list[train.Step]:
    task = ToyTask().with_batches(batches())
    generator = torch.Generator().manual_seed(0)
    return list(train.fit(model, task, methods or [], settings(**changes), Accelerator(cpu=True), generator))


def by_hand(model: nn.Module, total: int = 6) -> tuple[list[float], list[float]]:
    """The textbook loop: whole batches, torch's mean loss and clipping, AdamW, a linear schedule by its formula."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    warmup = total // 2
    schedule = LambdaLR(optimizer, lambda s: s / warmup if s < warmup else (total - s) / (total - warmup))
    losses, rates = [], []
    model.train()
    for batch in batches() * 2:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(**batch.per_token).logits, batch.per_example["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(list(model.parameters()), 0.5)
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses, rates


def test_training_in_micro_batches_is_the_textbook_loop() -> None:
    ours, reference = classifier(), classifier()
    taken = steps(ours)
    losses, rates = by_hand(reference)
    assert [s.learning_rate for s in taken] == pytest.approx(rates)
    assert [float(s.loss) for s in taken] == pytest.approx(losses, abs=1e-6)
    for (name, a), (_, b) in zip(ours.named_parameters(), reference.named_parameters(), strict=True):
        assert deviation(a, b) < 1e-8, name
    assert max(s.num_micro_batches for s in taken) > 1


def test_a_step_says_what_it_did() -> None:
    taken = steps(classifier())
    assert [s.number for s in taken] == [1, 2, 3, 4, 5, 6]
    assert [s.epoch for s in taken] == [1, 1, 1, 2, 2, 2]
    assert [s.ends_epoch for s in taken] == [False, False, True, False, False, True]
    assert [s.num_tokens for s in taken[:3]] == [sum(lengths) for lengths in LENGTHS]
    assert all(s.loss.shape == s.grad_norm.shape == () and not s.loss.requires_grad for s in taken)


def test_max_steps_ends_training_and_the_schedule() -> None:
    taken = steps(classifier(), max_steps=4, warmup_steps=0)
    assert [s.learning_rate for s in taken] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_the_loop_yields_before_it_takes_the_next_step() -> None:
    model = classifier()
    iterator = train.fit(
        model, ToyTask().with_batches(batches()), [], settings(), Accelerator(cpu=True), torch.Generator()
    )
    next(iterator)
    before = copy.deepcopy(model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    next(iterator)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_clipping_when_there_is_no_limit() -> None:
    clipped, free = classifier(), classifier()
    steps(clipped, max_steps=2, max_grad_norm=1e-3)
    norms = [float(s.grad_norm) for s in steps(free, max_steps=2, max_grad_norm=None)]
    assert all(norm > 1e-3 for norm in norms)
    assert any(not torch.equal(a, b) for a, b in zip(clipped.parameters(), free.parameters(), strict=True))


class Recorder(Method):
    """Counts its hooks, and doubles the gradient."""

    def start_step(self, step: int) -> None:
        CALLS.append(f"start {step}")

    def wrap_backward(self, backward: Backward, model: nn.Module) -> Backward:
        def doubled() -> torch.Tensor:
            CALLS.append("backward")
            loss = backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(2)
            return loss

        return doubled


CALLS: list[str] = []


def test_methods_are_called_once_per_step_and_may_wrap_the_gradient() -> None:
    CALLS.clear()
    once = float(steps(classifier(), max_steps=1)[0].grad_norm)
    twice = float(steps(classifier(), [Recorder()], max_steps=1)[0].grad_norm)
    assert twice == pytest.approx(2 * once)
    assert CALLS == ["start 0", "backward"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules(schedule: str) -> None:
    import math

    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    built = build_schedule(optimizer, settings(schedule=schedule, warmup_steps=4), 12)
    rates = []
    for _ in range(12):
        rates.append(built.get_last_lr()[0])
        optimizer.step()
        built.step()
    left = [(12 - s) / 8 for s in range(4, 12)]
    after = {"linear": left, "cosine": [0.5 - 0.5 * math.cos(math.pi * x) for x in left], "constant": [1.0] * 8}
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, *after[schedule]])


def test_weight_decay_spares_biases_and_normalisation() -> None:
    model = classifier()
    decayed, spared = parameter_groups(model, settings(weight_decay=0.1), {})
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    spared_names = {names[id(p)] for p in spared["params"]}
    assert spared_names == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(train, "Accelerator", lambda **_: Accelerator(cpu=True))
    with pytest.raises(SpecError, match="2 processes were started but this one knows of 1"):
        train.build_accelerator("no")
