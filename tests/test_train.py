from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from harness import faults, seeding, train
from harness.batch import Batch
from harness.errors import SpecError, StorageError, TrainingError
from harness.machine import processes
from harness.method import Backward, Method
from harness.optim import Train, build_schedule, parameter_groups
from tests.toys import OutOfMemoryAbove, ToyTask, classifier, deviation, random_batch

LENGTHS = [[3, 11, 5, 5], [8, 2, 13, 4], [9, 6, 7]]
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "epochs": 2, "max_steps": None, "learning_rate": 0.05, "schedule": "linear", "warmup_steps": 0.5,
    "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "max_grad_norm": 0.5, "micro_batch_tokens": 16,
    "padding_free": "auto", "memory_probe": "auto", "nonfinite": "stop", "max_nonfinite": 2,
}  # fmt: skip


def settings(**changes: Any) -> Train:
    return Train.model_validate(SETTINGS | changes)


def batches() -> list[Any]:
    return [random_batch(lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def steps(model: nn.Module, methods: list[Method] | None = None, **changes: Any) -> list[train.Step]:
    task = ToyTask().with_batches(batches())
    generator = torch.Generator().manual_seed(0)
    return list(
        train.Training(model, task, methods or [], settings(**changes), Accelerator(cpu=True), generator).steps()
    )


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
    assert {s.skipped for s in taken} == {""}
    assert {s.micro_batch_tokens for s in taken} == {16}


def test_max_steps_ends_training_and_the_schedule() -> None:
    taken = steps(classifier(), max_steps=4, warmup_steps=0)
    assert [s.learning_rate for s in taken] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_the_loop_yields_before_it_takes_the_next_step() -> None:
    model = classifier()
    task = ToyTask().with_batches(batches())
    iterator = train.Training(model, task, [], settings(), Accelerator(cpu=True), torch.Generator()).steps()
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
    monkeypatch.setattr(processes, "Accelerator", lambda **_: Accelerator(cpu=True))
    with pytest.raises(SpecError, match="2 processes were started but this one knows of 1"):
        processes.build_accelerator("no")


# When memory runs out


class Counting(nn.Module):
    """A classifier with a persistent buffer that every forward changes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, **inputs: torch.Tensor) -> Any:
        buffer = self.get_buffer("seen")
        buffer += inputs["input_ids"].numel()
        return self.model(**inputs)


def one_step(limit: int, micro_batch_tokens: int, method: Method | None = None) -> tuple[nn.Module, Any]:
    """The model after a step with dropout, with memory for so many tokens at once; what the training met."""
    inner = classifier(dropout=0.2)
    OutOfMemoryAbove(inner, limit)
    model, notices = Counting(inner), list[str]()
    torch.manual_seed(7)
    task = ToyTask().with_batches([random_batch([3, 11, 5, 5, 8, 2, 13, 4])])
    chosen = settings(micro_batch_tokens=micro_batch_tokens, epochs=1, warmup_steps=0)
    methods = [method] if method else []
    training = train.Training(model, task, methods, chosen, Accelerator(cpu=True), torch.Generator(), notices.append)
    (step,) = training.steps()
    return model, (step, training.progress, notices)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in one.state_dict().items())


def test_after_running_out_of_memory_the_step_is_the_one_a_smaller_cut_would_have_taken() -> None:
    """F1, F2: generators and buffers go back, so that the retry is bit for bit a step that was planned that way."""
    planned, (step, progress, notices) = one_step(limit=26, micro_batch_tokens=26)
    assert (step.num_micro_batches, progress.num_out_of_memory, notices) == (3, 0, [])
    recovered, (step, progress, notices) = one_step(limit=26, micro_batch_tokens=1000)
    assert (step.micro_batch_tokens, progress.num_out_of_memory, len(notices)) == (26, 2, 2)
    assert progress.seconds_lost > 0
    assert "out of memory: micro_batch_tokens 1000 -> 52" in notices[0]
    assert_same(recovered, planned)


class OutOfMemoryOutside(Method):
    """Runs out of memory around the passes, where methods hold copies of weights: `at` is before or after them."""

    at: str = "before"

    def wrap_backward(self, backward: Backward, model: nn.Module) -> Backward:
        failures = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")]

        def failing() -> torch.Tensor:
            if self.at == "before" and failures:
                raise failures.pop()
            loss = backward()
            if failures:
                raise failures.pop()
            return loss

        return failing


@pytest.mark.parametrize("at", ["before", "after"])
def test_memory_may_run_out_in_a_method_as_well(at: str) -> None:
    planned, _ = one_step(limit=1000, micro_batch_tokens=52)
    recovered, (_, progress, _) = one_step(1000, 1000, OutOfMemoryOutside(at=at))
    assert progress.num_out_of_memory == 1
    assert_same(recovered, planned)


def test_one_example_that_does_not_fit_ends_the_run() -> None:
    """F6."""
    with pytest.raises(TrainingError, match="out of memory in a forward and backward pass"):
        one_step(limit=1, micro_batch_tokens=1000)


class LongTask(ToyTask):
    """Has one text that is longer than those of the first batches."""

    def longest_batch(self, size: int) -> Batch:
        return random_batch([40, 13])


def test_the_longest_texts_are_tried_before_the_first_step_and_change_nothing_else() -> None:
    """F7."""
    taken: dict[str, nn.Module] = {}
    for probe in ("always", "never"):
        model = classifier(dropout=0.2)
        OutOfMemoryAbove(model, 40)
        torch.manual_seed(7)
        task = LongTask().with_batches([random_batch([3, 5, 4])])
        chosen, seen = settings(micro_batch_tokens=400, memory_probe=probe, epochs=1, warmup_steps=0), list[str]()
        training = train.Training(model, task, [], chosen, Accelerator(cpu=True), torch.Generator(), seen.append)
        found = next(training.steps())
        assert found.micro_batch_tokens == (40 if probe == "always" else 400)
        taken[probe] = model
    assert_same(taken["always"], taken["never"])


def test_an_allocator_that_has_to_free_its_cache_all_the_time_gets_smaller_pieces() -> None:
    """F8: the step that saw it is taken as it is, the next one is cut."""
    task = ToyTask().with_batches(batches())
    training = train.Training(
        classifier(),
        task,
        [],
        settings(micro_batch_tokens=400),
        Accelerator(cpu=True),
        torch.Generator(),
        lambda _: None,
    )
    answers = iter([False, True, *[False] * 9])
    training.thrash = SimpleNamespace(is_thrashing=lambda: next(answers))  # type: ignore[assignment]
    assert [step.micro_batch_tokens for step in training.steps()] == [400, 26, 26, 26, 26, 26]


# When the numbers go wrong


def spoilt(monkeypatch: pytest.MonkeyPatch, fault: str, **changes: Any) -> tuple[nn.Module, train.Training]:
    monkeypatch.setenv(faults.VARIABLE, fault)
    model, task = classifier(), ToyTask().with_batches(batches())
    return model, train.Training(
        model, task, [], settings(**changes), Accelerator(cpu=True), torch.Generator(), lambda _: None
    )


def test_a_loss_that_is_not_finite_is_found_before_the_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """F31, policy stop."""
    reference = classifier()
    steps(reference, max_steps=6)
    before = [copy.deepcopy(reference)]
    model, training = spoilt(monkeypatch, "gradient.result:nan@step=3")
    with pytest.raises(train.NonFinite, match=r"the loss is nan, the gradient norm .*, at step 3"):
        for step in training.steps():
            assert step.number < 3
            before[0] = copy.deepcopy(model)
    assert_same(model, before[0])


def test_steps_that_are_not_finite_may_be_left_out_and_do_not_advance_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F31, policy skip."""
    _, training = spoilt(monkeypatch, "gradient.result:nan@step=2", nonfinite="skip", warmup_steps=0)
    taken = list(training.steps())
    assert [step.skipped for step in taken] == ["", "nonfinite", "", "", "", ""]
    assert [step.learning_rate for step in taken] == pytest.approx([0.05 * (6 - i) / 6 for i in (0, 1, 1, 2, 3, 4)])
    assert training.progress.skipped == {"nonfinite": 1}


def test_only_so_many_steps_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ",".join(f"gradient.result:nan@step={n}" for n in (1, 3, 4))
    _, training = spoilt(monkeypatch, fault, nonfinite="skip")
    with pytest.raises(train.NonFinite, match=r"at step 4\n  why: 2 such steps were left out before"):
        list(training.steps())


# When another process goes on


def test_another_process_goes_on_at_any_step_as_if_nothing_had_happened() -> None:
    """With dropout; the state passes through JSON."""
    reference = classifier(dropout=0.2)
    torch.manual_seed(3)
    expected = [(s.loss, s.grad_norm, s.learning_rate, s.epoch, s.ends_epoch) for s in steps(reference)]
    for stop in range(1, 6):
        first = classifier(dropout=0.2)
        torch.manual_seed(3)
        training = training_of(first)
        iterator = training.steps()
        taken = [next(iterator) for _ in range(stop)]
        kept = (training.optimizer_state(), json.loads(json.dumps(training.state())))
        random_state = json.loads(json.dumps(seeding.to_json(seeding.capture())))
        weights = copy.deepcopy(first.state_dict())

        torch.manual_seed(99)
        second = classifier(dropout=0.2)
        second.load_state_dict(weights)
        resumed = training_of(second)
        resumed.load_state(*kept)
        seeding.restore(seeding.from_json(random_state))
        taken += list(resumed.steps())
        assert [(s.loss, s.grad_norm, s.learning_rate, s.epoch, s.ends_epoch) for s in taken] == expected
        assert_same(second, reference)


class ShuffledTask(ToyTask):
    """Draws the order of its batches, as real tasks do."""

    def batches(self, model: nn.Module, size: int, generator: torch.Generator) -> Iterator[Batch]:
        for i in torch.randperm(len(self._batches), generator=generator).tolist():
            yield self._batches[i]


def training_of(model: nn.Module) -> train.Training:
    task, generator = ToyTask().with_batches(batches()), torch.Generator().manual_seed(0)
    return train.Training(model, task, [], settings(), Accelerator(cpu=True), generator)


def test_the_order_of_the_examples_goes_on_in_the_middle_of_an_epoch() -> None:
    def shuffled() -> train.Training:
        task, generator = ShuffledTask().with_batches(batches()), torch.Generator().manual_seed(0)
        return train.Training(classifier(), task, [], settings(epochs=4), Accelerator(cpu=True), generator)

    expected = [step.num_tokens for step in shuffled().steps()]
    for stop in (2, 3, 7):
        first, second = shuffled(), shuffled()
        iterator = first.steps()
        taken = [next(iterator).num_tokens for _ in range(stop)]
        second.load_state(first.optimizer_state(), first.state())
        assert taken + [step.num_tokens for step in second.steps()] == expected


def test_the_state_of_another_model_is_refused() -> None:
    training = training_of(classifier())
    next(training.steps())
    state = {key.replace("classifier", "head"): value for key, value in training.optimizer_state().items()}
    with pytest.raises(StorageError, match=r"belongs to another model or other methods\n  why: no parameter is called"):
        training_of(classifier()).load_state(state, training.state())
