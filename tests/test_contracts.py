"""One suite over every file in harness/methods: a new method is tested by being there."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from harness import checkpoint, registry
from harness.errors import SpecError
from harness.gradients import ExactGradient
from harness.method import Backward, Method
from harness.models import surgery
from harness.specs import spec
from tests import toys
from tests.toys import ToyTask, classifier, deviation, moved, random_batch

NAMES = registry.names("method")
PAIRS = [[name] for name in NAMES] + [
    [first, second] for first, second in itertools.permutations(NAMES, 2) if first not in registry.not_after(second)
]
LENGTHS = [3, 11, 5, 5, 8, 2, 13]
TRAIN = spec.load("full_finetune").train
SMALL: dict[str, dict[str, Any]] = {
    "awp": {"start": 0.0},
    "bottleneck_adapter": {"size": 4},
    "lora": {"rank": 2, "dropout": 0.0},
    "mixout": {"p": 0.5, "layers": "all", "units": "element"},
    "peft": {
        "type": "IA3",
        "config": {
            "target_modules": ".*[.][0-9][.](intermediate|output)[.]dense",
            "feedforward_modules": ".*[.][0-9][.]output[.]dense",
        },
    },
}
BESIDE_PEFT = {"mixout": SMALL["mixout"] | {"layers": "head"}}  # mixout refuses layers that PEFT has wrapped


def edited(names: list[str], dropout: float = 0.0) -> tuple[nn.Module, list[Method]]:
    """A tiny classifier under these methods, as `assembly.assemble` makes it."""
    model = classifier(dropout=dropout)
    settings = SMALL | BESIDE_PEFT if "peft" in names else SMALL
    return toys.edited(model, ToyTask().head(model), {name: settings.get(name, {}) for name in names}, TRAIN)


def declared(name: str) -> set[str]:
    """What a method trains, by the names where it stands alone: what it wraps has names that the model has not."""
    model, (method,) = edited([name])
    return method.trainable(model) or set()


def wrapped(exact: Backward, model: nn.Module, methods: list[Method]) -> Backward:
    backward = exact
    for method in methods:
        method.start_step(0)
        backward = method.wrap_backward(backward, model)
    return backward


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in registry.FOLDERS for name in registry.names(kind)])
def test_settings_read_from_source_are_those_of_the_class(kind: str, name: str) -> None:
    """Those of a class between it and the contract, too; and each is explained."""
    light, real = registry.settings_class(kind, name), registry.plugin(kind, name)
    fields = [{k: (repr(f.annotation), f.default) for k, f in c.model_fields.items()} for c in (light, real)]
    assert fields[0] == fields[1]
    assert all(meaning for _, _, meaning in registry.describe_fields(light))


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_training_starts_at_the_pretrained_model(names: list[str]) -> None:
    model, methods = edited(names)
    inputs = random_batch(LENGTHS).per_token
    assert all(method.starts_pretrained or isinstance(method, registry.plugin("method", "peft")) for method in methods)
    assert torch.equal(model(**inputs).logits, classifier()(**inputs).logits)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_only_declared_parameters_and_the_head_train(names: list[str]) -> None:
    model, methods = edited(names)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    if any(method.trainable(model) is not None for method in methods):
        pretrained = {name for name, _ in classifier().named_parameters()} - ToyTask().head(model)
        assert pretrained - set().union(*map(declared, names)) <= {surgery.pretrained_name(name) for name in frozen}
    else:
        assert not frozen
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = checkpoint.trained_state(model)
    model(**random_batch(LENGTHS).per_token).logits.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert any(not torch.equal(value, before[name]) for name, value in checkpoint.trained_state(model).items())


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_the_gradient_does_not_depend_on_the_cut(names: list[str]) -> None:
    gradients = []
    for budget in (1_000_000, 13):
        model, methods = edited(names)
        moved(model)
        exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), budget)
        exact.load(random_batch(LENGTHS))
        wrapped(exact, model.train(), methods)()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert max(deviation(a, b) for a, b in zip(*gradients, strict=True)) < 1e-10


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_merging_keeps_the_outputs(names: list[str]) -> None:
    model, methods = edited(names)
    inputs = random_batch(LENGTHS).per_token
    before = moved(model)(**inputs).logits
    merged = copy.deepcopy(model)
    for method in reversed(methods):
        merged = method.merge(merged)
    assert deviation(merged(**inputs).logits, before) < 1e-10
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_saved_weights_come_back(names: list[str], tmp_path: Any) -> None:
    model, _ = edited(names)
    inputs = random_batch(LENGTHS).per_token
    before = moved(model)(**inputs).logits
    checkpoint.save(checkpoint.trained_state(model), tmp_path)
    fresh, _ = edited(names)
    checkpoint.restore(fresh, checkpoint.load(tmp_path))
    assert torch.equal(fresh(**inputs).logits, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_makes_the_same_model(name: str) -> None:
    first, second = (checkpoint.trained_state(edited([name])[0]) for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
@pytest.mark.parametrize("failing", [1, 2])
def test_an_exception_in_a_pass_leaves_the_weights_as_they_were(names: list[str], failing: int) -> None:
    model, methods = edited(names)
    moved(model)
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 1_000_000)
    exact.load(random_batch(LENGTHS))
    passes = itertools.count(1)

    def backward() -> torch.Tensor:
        if next(passes) == failing:
            raise KeyboardInterrupt
        return exact()

    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    chain = wrapped(backward, model.train(), methods)
    if failing == 2 and "awp" not in names:
        chain()
    with pytest.raises(KeyboardInterrupt):
        chain()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_switched_off_it_computes_what_the_pretrained_model_did(names: list[str]) -> None:
    model, _ = edited(names)
    head = surgery.names_of(model, [model.get_parameter(n) for n, p in model.named_parameters() if "classifier" in n])
    for name, parameter in moved(model).named_parameters():
        if name in head or not any(word in name for word in ("lora_", "bottleneck_adapter", "ia3_l")):
            parameter.data.copy_(dict(classifier().named_parameters())[surgery.pretrained_name(name)])
    with surgery.disabled(model):
        found = model(**random_batch(LENGTHS).per_token).logits
    assert torch.equal(found, classifier()(**random_batch(LENGTHS).per_token).logits)


@pytest.mark.parametrize("name", NAMES)
def test_at_strength_zero_a_step_is_one_without_the_method(name: str) -> None:
    settings = registry.build("method", name, SMALL.get(name, {}))
    off = settings.always().off()
    if off is None:
        adds = settings.trainable(settings.edit_model(classifier())) is not None
        assert adds, "a method with a strength says how it is zero"
        return
    gradients = []
    for methods in ([off], []):
        model = classifier()
        for method in methods:
            model = method.edit_model(model)
            method.prepare(model, TRAIN, 1)
        exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 1_000_000)
        exact.load(random_batch(LENGTHS))
        wrapped(exact, model.train(), methods)()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert not any(method.optimizer_rules(model) for method in methods)
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.parametrize("second", NAMES)
def test_an_order_that_cannot_work_is_refused_with_the_reason(second: str) -> None:
    for first, why in registry.not_after(second).items():
        with pytest.raises(SpecError, match=f"methods.{second}=.*: cannot stand below {first}: {why}"):
            spec.load("full_finetune", [f"methods.{first}={{}}", f"methods.{second}={{}}"])
