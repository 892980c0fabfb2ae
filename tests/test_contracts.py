"""One suite over every file in harness/methods: a new method is tested by being there."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from harness import checkpoint, registry, surgery
from harness.gradients import ExactGradient
from harness.method import Method
from tests.toys import ToyTask, classifier, deviation, random_batch

NAMES = registry.names("method")
PAIRS = [[name] for name in NAMES] + [list(pair) for pair in itertools.permutations(NAMES, 2)]
LENGTHS = [3, 11, 5, 5, 8, 2, 13]


def edited(names: list[str], dropout: float = 0.0) -> tuple[nn.Module, list[Method]]:
    """A tiny classifier under these methods, every own parameter away from its start."""
    model = classifier(dropout=dropout)
    head = ToyTask().head(model)
    methods: list[Method] = [registry.build("method", name, {"dropout": 0.0} | _small(name)) for name in names]
    for method in methods:
        model = method.edit_model(model)
    own = set().union(*(method.trainable(model) or set() for method in methods))
    surgery.freeze_except(model, own | head)
    return model, methods


def _small(name: str) -> dict[str, Any]:
    return {"lora": {"rank": 2}, "bottleneck_adapter": {"size": 4}}.get(name, {})


def moved(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 5)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_settings_read_from_source_are_those_of_the_class(name: str) -> None:
    light, real = registry.settings_class("method", name), registry.plugin("method", name)
    fields = [{k: (repr(f.annotation), f.default) for k, f in c.model_fields.items()} for c in (light, real)]
    assert fields[0] == fields[1]


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_training_starts_at_the_pretrained_model(names: list[str]) -> None:
    model, _ = edited(names)
    inputs = random_batch(LENGTHS).per_token
    assert torch.equal(model(**inputs).logits, classifier()(**inputs).logits)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_only_declared_parameters_and_the_head_train(names: list[str]) -> None:
    model, _ = edited(names)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name, _ in classifier().named_parameters()} - ToyTask().head(model) <= {
        name.replace(".base.", ".") for name in frozen
    }
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
        backward: Any = exact
        for method in methods:
            method.start_step(0)
            backward = method.wrap_backward(backward, model)
        backward()
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
