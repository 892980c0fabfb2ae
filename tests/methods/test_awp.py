from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from harness import train
from harness.errors import ModelError, SpecError
from harness.gradients import ExactGradient
from harness.methods.awp import AWP, box, is_active, relative, sam
from harness.methods.lora import LoRA
from harness.optim import Train
from tests.toys import ToyTask, classifier, deviation, random_batch

LENGTHS = [[3, 11, 5, 5], [8, 2, 13, 4], [9, 6, 7]]
SETTINGS: dict[str, Any] = {
    "batch_size": 4, "epochs": 2, "max_steps": None, "learning_rate": 0.05, "schedule": "linear", "warmup_steps": 2,
    "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "max_grad_norm": 0.5, "micro_batch_tokens": 99,
    "padding_free": "auto", "memory_probe": "auto", "nonfinite": "stop", "max_nonfinite": 2,
}  # fmt: skip
W = [torch.tensor([[3.0, -4.0]]), torch.tensor([[0.0, 2.0]])]
G = [torch.tensor([[0.6, 0.8]]), torch.tensor([[5.0, 0.0]])]


def trained(method: AWP | None, dropout: float = 0.0, **changes: Any) -> nn.Module:
    """The weights after two epochs of three steps."""
    model = classifier(dropout=dropout)
    settings = Train.model_validate(SETTINGS | changes)
    methods: list[Any] = [method] if method else []
    if method:
        method.prepare(model, settings, 3)
    task = ToyTask().with_batches([random_batch(lengths, seed=i) for i, lengths in enumerate(LENGTHS)])
    for _ in train.Training(
        model, task, methods, settings, Accelerator(cpu=True), torch.Generator().manual_seed(0)
    ).steps():
        pass
    return model


def by_hand(rule: Any, steps: set[int], names: Any) -> nn.Module:
    """The textbook loop, whole batches: a copy of the model at w + v gives the gradient; AdamW and schedule at w."""
    model = classifier().train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    schedule = LambdaLR(optimizer, lambda s: s / 2 if s < 2 else (6 - s) / 4)
    for step in range(6):
        batch = random_batch(LENGTHS[step % 3], seed=step % 3)
        grads = gradient(model, batch)
        if step in steps:
            attacked = copy.deepcopy(model)
            weights = dict(attacked.named_parameters())
            chosen = [name for name in weights if names(name, weights[name])]
            moves = rule([weights[name].detach() for name in chosen], [grads[name] for name in chosen])
            with torch.no_grad():
                for name, move in zip(chosen, moves, strict=True):
                    weights[name].add_(move)
            grads = gradient(attacked, batch)
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name]
        nn.utils.clip_grad_norm_(list(model.parameters()), 0.5)
        optimizer.step()
        schedule.step()
    return model


def gradient(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(model(**batch.per_token).logits, batch.per_example["labels"]).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def matrices(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and "embeddings" not in name


RULES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "relative": (
        {"gamma": 0.1},
        lambda w, g: [0.1 * torch.linalg.norm(a) * b / torch.linalg.norm(b) for a, b in zip(w, g, strict=True)],
        matrices,
    ),
    "box": (
        {"adv_lr": 0.3, "adv_eps": 0.2},
        lambda w, g: [
            torch.minimum(torch.maximum(0.3 * b / (b.norm() + 1e-6) * (a.norm() + 1e-6), -0.2 * a.abs()), 0.2 * a.abs())
            for a, b in zip(w, g, strict=True)
        ],
        matrices,
    ),
    "sam": (
        {"rho": 0.2},
        lambda w, g: [0.2 * b / math.sqrt(sum(float((x * x).sum()) for x in g)) for b in g],
        lambda name, parameter: True,
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("micro_batch_tokens", [1000, 11])
def test_training_equals_the_textbook_loop(rule: Any, micro_batch_tokens: int) -> None:
    options, formula, names = RULES[rule]
    found = trained(AWP(rule=rule, **options), micro_batch_tokens=micro_batch_tokens)
    expected = dict(by_hand(formula, {2, 5}, names).named_parameters())
    plain = dict(trained(None).named_parameters())
    assert max(deviation(p, expected[name]) for name, p in found.named_parameters()) < 1e-9
    assert max(deviation(p, plain[name]) for name, p in found.named_parameters()) > 1e-3


def test_a_perturbation_of_size_zero_is_off_bit_for_bit() -> None:
    plain = trained(None, dropout=0.1)
    for method in (AWP(gamma=0.0), AWP(rule="box", adv_eps=0.0), AWP(rule="sam", rho=0.0)):
        pairs = zip(trained(method, dropout=0.1).parameters(), plain.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_perturbation_too_small_to_move_a_bit_repeats_the_clean_step() -> None:
    """So the second pass sees the same dropout, and leaves the generators where one pass leaves them."""
    plain, twice = trained(None, dropout=0.3), trained(AWP(gamma=1e-300, start=0.0), dropout=0.3)
    assert all(torch.equal(a, b) for a, b in zip(twice.parameters(), plain.parameters(), strict=True))


def test_weights_are_those_of_before_bit_for_bit_where_the_rate_is_zero() -> None:
    model = trained(AWP(gamma=0.1, start=0.0), learning_rate=1e-300)
    for after, before in zip(model.parameters(), classifier().parameters(), strict=True):
        assert torch.equal(torch.where(before == 0, before, after), before)  # 0 + 1e-300 is not 0


def test_each_rule_by_hand() -> None:
    small = 1e-6
    assert deviation(relative(W, G, 0.1)[0], torch.tensor([[0.3, 0.4]])) < small
    assert deviation(relative(W, G, 0.1)[1], torch.tensor([[0.2, 0.0]])) < small
    assert deviation(box(W, G, 1.0, 0.5)[0], torch.tensor([[1.5, 2.0]])) < 1e-4
    assert torch.equal(box(W, G, 1.0, 0.5)[1], torch.zeros(1, 2))  # its only gradient is at a weight that is zero
    norm = math.sqrt(1 + 25)
    assert deviation(sam(W, G, 0.2)[0], torch.tensor([[0.12, 0.16]]) / norm) < small
    assert deviation(sam(W, G, 0.2)[1], torch.tensor([[1.0, 0.0]]) / norm) < small


def test_relations_between_the_rules() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, grad = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    one = relative([weight], [grad], 0.05)[0]
    assert float(one.norm()) == pytest.approx(0.05 * float(weight.norm()))
    assert float((one * grad).sum() / (one.norm() * grad.norm())) == pytest.approx(1)
    assert deviation(one, sam([weight], [grad], 0.05 * float(weight.norm()))[0]) < 1e-12
    assert deviation(one, relative([weight], [1e6 * grad], 0.05)[0]) < 1e-12  # a loss scale changes nothing
    assert deviation(box([weight], [grad], 0.05, 1e9)[0], one) < 1e-6  # the box not in the way
    assert torch.equal(box([weight], [grad], 1e9, 0.01)[0], 0.01 * weight.abs() * grad.sign())  # nothing but the box


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_gradient_that_is_zero_or_not_finite_moves_nothing(bad: float) -> None:
    grads = [torch.tensor([[bad, bad]]), G[1]]
    for found in (relative(W, grads, 0.1), box(W, grads, 1.0, 0.1)):
        assert torch.equal(found[0], torch.zeros(1, 2))
    assert torch.equal(relative(W, grads, 0.1)[1], relative(W, G, 0.1)[1])
    assert torch.equal(sam(W, grads, 0.1)[0], torch.zeros(1, 2))
    assert torch.equal(relative([torch.zeros(1, 2)], [G[0]], 0.1)[0], torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]),
        ({"start": 0.0, "every": 4}, [0, 4, 8, 10, 14, 18]),
        ({"start": 0.3, "stop": 0.7}, [3, 4, 5, 6, 13, 14, 15, 16]),
        ({"start": 0.81, "start_epoch": 2}, [19]),
        ({"start": 0.5, "every": 3, "start_epoch": 2}, [15, 18]),
    ],
)
def test_the_schedule_counts_optimizer_steps_of_each_epoch(options: dict[str, Any], expected: list[int]) -> None:
    full = {"start": 0.5, "stop": 1.0, "start_epoch": 1, "every": 1} | options
    assert [step for step in range(20) if is_active(step, 10, **full)] == expected


def test_shares_of_an_epoch_are_not_rounded_up_by_floating_point() -> None:
    assert [s for s in range(30) if is_active(s, 30, 1, 0.1, 0.2, 1)] == [3, 4, 5]  # 0.1 * 30 = 3.0000000000000004


def test_the_first_pass_is_at_w_and_the_second_at_one_perturbed_point() -> None:
    model, method, seen = classifier(), AWP(gamma=0.1, start=0.0, layers="head"), []
    method.prepare(model, Train.model_validate(SETTINGS), 1)
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 11)
    exact.load(random_batch(LENGTHS[0]))
    weight = model.get_parameter("classifier.weight")
    model.get_submodule("bert").register_forward_pre_hook(lambda *_: seen.append(weight.detach().clone()))
    clean = exact()
    loss = method.wrap_backward(exact, model)()
    passes = torch.stack(seen).unflatten(0, (3, -1))  # the clean gradient alone, then both passes of AWP
    assert torch.equal(passes[1], passes[0])
    assert all(torch.equal(part, passes[2, 0]) for part in passes[2])
    moved = passes[2, 0] - weight
    assert float(moved.detach().norm() / weight.detach().norm()) == pytest.approx(0.1)
    assert torch.equal(loss, clean)
    assert float(method.observed()["adversarial_loss"]) > float(loss)
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "pooler" in name)


def test_the_first_pass_computes_no_gradient_beyond_what_is_attacked() -> None:
    model, method = classifier(), AWP(start=0.0, layers="head")
    method.prepare(model, Train.model_validate(SETTINGS), 1)
    with_gradient: list[int] = []

    def backward() -> Tensor:
        with_gradient.append(sum(parameter.requires_grad for parameter in model.parameters()))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        return torch.zeros(())

    method.wrap_backward(backward, model)()
    assert with_gradient == [2, len(list(model.parameters()))]  # pooler.dense.weight and classifier.weight, then all


@pytest.mark.parametrize(
    ("layers", "rule", "number"),
    [
        ("attention", "relative", 8), ("feed_forward", "relative", 4), ("encoder", "relative", 12),
        ("head", "relative", 2), ("embeddings", "relative", 3), ("all", "relative", 14), ("all", "box", 14),
        ("head", "sam", 4),
    ],
)  # fmt: skip
def test_what_is_attacked(layers: Any, rule: Any, number: int) -> None:
    assert len(AWP(layers=layers, rule=rule).attacked(classifier())) == number


def test_sam_attacks_everything_that_trains() -> None:
    assert len(AWP(rule="sam").attacked(classifier())) == len(list(classifier().parameters()))


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rule": "sam", "gamma": 0.1}, SpecError, r"methods\.awp\.gamma: has no effect with rule: sam"),
    ({"rho": 0.1}, SpecError, r"methods\.awp\.rho: has no effect with rule: relative"),
    ({"start_epoch": 3}, SpecError, r"methods\.awp: never active in 6 steps, 3 an epoch"),
    ({"start": 0.5, "stop": 0.5}, SpecError, r"methods\.awp\.start: 0\.5 is not below stop \(0\.5\)"),
    ({"layers": "head"}, ModelError, r"methods\.awp\.layers: nothing with the role 'head' trains"),
]


@pytest.mark.parametrize(("options", "error", "message"), MISTAKES)
def test_settings_without_effect_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = classifier()
    for name in ("bert.pooler", "classifier"):
        model.get_submodule(name).requires_grad_(False)
    with pytest.raises(error, match=message):
        AWP(**options).prepare(model, Train.model_validate(SETTINGS), 3)


def test_it_says_what_it_will_do() -> None:
    settings = Train.model_validate(SETTINGS)
    note = "rule relative, gamma = 0.01, attacks 14 tensors in 2 of 6 steps, which cost up to twice as much"
    assert AWP().prepare(classifier(), settings, 3) == note
    lora = LoRA(rank=2).edit_model(classifier())
    assert AWP().prepare(lora, settings, 3).endswith("8 of them are zero now and do not move until they have grown")
    assert AWP(gamma=0.0).prepare(classifier(), settings, 3).startswith("off, because")


@pytest.fixture
def accelerator_of() -> Iterator[Any]:
    """Makes Accelerators of another precision: their state is shared, and has to be forgotten before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda **options: Accelerator(cpu=True, **options)
    AcceleratorState._reset_state(reset_partial_state=True)


def stepped(method: AWP, accelerator: Accelerator, model: nn.Module, **changes: Any) -> list[train.Step]:
    settings = Train.model_validate(SETTINGS | changes)
    method.prepare(model, settings, 3)
    task = ToyTask().with_batches([random_batch(lengths, seed=i) for i, lengths in enumerate(LENGTHS)])
    generator = torch.Generator().manual_seed(0)
    return list(train.Training(model, task, [method], settings, accelerator, generator).steps())


def scaled_by(scale: float, accelerator: Any) -> None:
    """What Accelerate sets up for fp16 on a GPU; a model in float64 is left in float64 by autocast."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"


@pytest.mark.parametrize("rule", ["relative", "sam"])  # box adds e = 1e-6 to the norm, which a scale makes smaller
def test_under_a_loss_scale_the_weights_are_those_without(rule: Any, accelerator_of: Any) -> None:
    method = AWP(rule=rule, start=0.0, **RULES[rule][0])
    plain, scaled, accelerator = classifier(), classifier(), accelerator_of()
    stepped(method, accelerator, plain)
    scaled_by(2.0**30, accelerator)
    steps = stepped(method, accelerator, scaled)
    assert not any(step.skipped for step in steps)
    assert max(deviation(a, b) for a, b in zip(scaled.parameters(), plain.parameters(), strict=True)) < 1e-9


def test_an_overflow_of_the_loss_scale_skips_the_step_and_moves_nothing(accelerator_of: Any) -> None:
    accelerator, model, method = accelerator_of(), classifier(), AWP(gamma=0.1, start=0.0)
    scaled_by(2.0**120, accelerator)
    model.get_submodule("classifier").register_full_backward_hook(lambda *seen: (seen[1][0] * math.inf,))
    steps = stepped(method, accelerator, model, max_steps=2)
    assert all(step.skipped == "loss scale" for step in steps)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), classifier().parameters(), strict=True))


def test_in_bfloat16_the_perturbation_and_the_weights_stay_in_full_precision(accelerator_of: Any) -> None:
    model, method = classifier().float(), AWP(gamma=0.1, start=0.0)
    before = [parameter.clone() for parameter in model.parameters()]
    steps = stepped(method, accelerator_of(mixed_precision="bf16"), model, learning_rate=1e-30)
    assert all(math.isfinite(step.loss) for step in steps)
    assert all(float(step.observed["adversarial_loss"]) > float(step.loss) for step in steps)
    for after, value in zip(model.parameters(), before, strict=True):
        assert after.dtype == torch.float32
        assert torch.equal(torch.where(value == 0, value, after), value)


def test_settings_as_a_run_writes_them_are_accepted_again() -> None:
    """A run's spec.yaml holds every default."""
    everything = AWP(**AWP(rule="sam", rho=0.1).model_dump())
    assert everything.prepare(classifier(), Train.model_validate(SETTINGS), 3).startswith("rule sam")
