from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from harness.errors import ModelError, SpecError
from harness.gradients import ExactGradient
from harness.methods.bottleneck_adapter import BottleneckAdapter
from harness.methods.lora import LoRA, lora_layers
from harness.methods.mixout import Mask, MixConv1D, MixLinear, Mixout, keep_factor, mix
from harness.methods.peft import Peft
from harness.models import surgery
from harness.optim import Rule, Train, parameter_groups
from tests.test_train import SETTINGS
from tests.toys import ToyTask, classifier, deviation, random_batch

TRAIN = Train.model_validate(SETTINGS)
INPUTS = random_batch([5, 9, 3]).per_token
UNITS: dict[str, tuple[int, int]] = {"element": (2, 3), "input": (1, 3), "output": (2, 1)}
W = torch.tensor([[1.0, 2.0, -3.0], [0.5, -1.0, 4.0]], dtype=torch.float64)
W0 = torch.tensor([[0.0, 1.0, 1.0], [2.0, -1.0, 0.5]], dtype=torch.float64)


def factors(units: str, p: float) -> list[tuple[float, Tensor]]:
    """Every mask there is, with its probability, as keep / (1 - p)."""
    rows, columns = UNITS[units]
    masks = (torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0.0, 1.0), repeat=rows * columns))
    return [
        (math.prod((1 - p) if bit else p for bit in mask.tolist()), mask.view(rows, columns) / (1 - p))
        for mask in masks
    ]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_expectation_and_variance_by_enumeration(units: str, p: float) -> None:
    drawn = [(chance, mix(W, W0, factor)) for chance, factor in factors(units, p)]
    mean = sum((chance * value for chance, value in drawn), torch.zeros_like(W))
    variance = sum((chance * (value - W) ** 2 for chance, value in drawn), torch.zeros_like(W))
    assert deviation(mean, W) < 1e-12
    assert deviation(variance, p / (1 - p) * (W - W0) ** 2) < 1e-11


def test_the_expected_quadratic_loss_has_the_penalty_of_the_paper() -> None:
    """E[L(mixed)] = L(w) + p / (2 (1 - p)) sum of H_ii (w - w0)_i^2, exactly, for a quadratic loss."""
    half = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian, p = half @ half.T, 0.3

    def loss(weight: Tensor) -> Tensor:
        return weight.flatten() @ hessian @ weight.flatten() / 2

    expected = sum(chance * float(loss(mix(W, W0, factor))) for chance, factor in factors("element", p))
    penalty = p / (2 * (1 - p)) * float((hessian.diag() * (W - W0).flatten() ** 2).sum())
    assert expected == pytest.approx(float(loss(W)) + penalty, rel=1e-12)


@pytest.mark.parametrize("units", UNITS)
def test_the_expected_gradient_is_that_of_the_expected_loss(units: str) -> None:
    """By finite differences of the enumerated expectation, for a loss that is not quadratic."""
    x, p, eps = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), 0.4, 1e-6

    def expected_loss(weight: Tensor) -> float:
        return sum(float(c * torch.tanh(F.linear(x, mix(weight, W0, f))).sum()) for c, f in factors(units, p))

    found = torch.zeros_like(W)
    for chance, factor in factors(units, p):
        weight = W.clone().requires_grad_()
        torch.tanh(F.linear(x, mix(weight, W0, factor))).sum().backward()
        found += chance * weight.grad  # type: ignore[operator]
    for place in itertools.product(range(2), range(3)):
        step = torch.zeros_like(W)
        step[place] = eps
        numeric = (expected_loss(W + step) - expected_loss(W - step)) / (2 * eps)
        assert float(found[place]) == pytest.approx(numeric, abs=1e-8)


@pytest.mark.parametrize("units", UNITS)
def test_masks_have_their_shape_two_values_and_the_keep_rate(units: str) -> None:
    rows, columns = {"element": (300, 200), "input": (1, 60_000), "output": (60_000, 1)}[units]
    outputs, inputs = {"element": (300, 200), "input": (4, 60_000), "output": (60_000, 4)}[units]
    generator = torch.Generator().manual_seed(0)
    factor = keep_factor((outputs, inputs), 0.3, units, W, generator)
    assert factor.shape == (rows, columns)
    assert set(factor.unique().tolist()) == {0.0, 1 / 0.7}
    kept = int((factor > 0).sum())
    assert abs(kept - 0.7 * 60_000) < 6 * math.sqrt(60_000 * 0.7 * 0.3)
    assert not torch.equal(factor, keep_factor((outputs, inputs), 0.3, units, W, generator))


def prepared(method: Mixout, model: nn.Module | None = None) -> nn.Module:
    """A model in training whose weights have left their start."""
    model = classifier() if model is None else model
    torch.manual_seed(7)
    method.prepare(model, TRAIN, 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 10)
    return model.train()


def gradient(model: nn.Module, method: Mixout, budget: int = 1000) -> tuple[Tensor, dict[str, Tensor]]:
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), budget)
    exact.load(random_batch([3, 11, 5, 5]))
    loss = method.wrap_backward(exact, model)()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "number"), [("bert", 14), ("gpt2", 9)])
@pytest.mark.parametrize("units", UNITS)
def test_a_step_equals_autograd_through_the_formula(units: Any, family: str, number: int) -> None:
    """The weights seen inside the backward give the masks; a functional call of the plain model gives the reference."""
    method = Mixout(p=0.5, layers="all", units=units)
    model = prepared(method, classifier(family))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen: dict[str, Tensor] = {}
    model.register_forward_pre_hook(
        lambda *_: seen.update({name: p.detach().clone() for name, p in model.named_parameters()})
    )
    loss, found = gradient(model, method)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    start = dict(classifier(family).named_parameters())
    weights = {name: value.clone().requires_grad_() for name, value in before.items()}
    mixed = dict(weights)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MixLinear | MixConv1D)}
    assert len(layers) == number
    for layer, module in layers.items():
        name = f"{layer}.weight"
        ratio = (seen[name] - start[name]) / (before[name] - start[name])
        factor = (2 * (ratio > 1)).double().detach()
        assert deviation(ratio, factor) < 1e-6
        axis = {"element": None, "input": 0, "output": 1}[units]
        of = factor.T if isinstance(module, MixConv1D) else factor  # [O, I]
        assert axis is None or torch.equal(of.amin(axis), of.amax(axis))
        mixed[name] = mix(weights[name], start[name].detach(), factor)
    batch = random_batch([3, 11, 5, 5])
    logits = functional_call(classifier(family).train(), mixed, kwargs=dict(batch.per_token)).logits
    expected = F.cross_entropy(logits, batch.per_example["labels"])
    expected.backward()
    assert deviation(loss, expected) < 1e-6  # the sum of a loss is kept in float32
    assert max(deviation(found[name], value.grad) for name, value in weights.items() if value.grad is not None) < 1e-12


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("scope", ["step", "forward"])
def test_of_a_lora_layer_the_update_is_mixed(units: Any, scope: Any) -> None:
    method = Mixout(p=0.5, layers="encoder", units=units, scope=scope)
    model = LoRA(rank=2, dropout=0.0).edit_model(classifier())
    surgery.freeze_except(model, LoRA().trainable(model) or ())
    layer: Any = next(iter(lora_layers(prepared(method, model)).values()))
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[Tensor] = []

    def backward() -> Tensor:
        for module, given in ((layer, x), (layer.update_mask, layer.lora_a)):
            torch.manual_seed(5)
            seen.append(module(given).detach())
        return torch.zeros(())

    method.wrap_backward(backward, model)()
    assert scope == "forward" or layer.update_mask(layer.lora_a) is None  # between steps the layer is as it is
    found, factor = seen
    assert set(factor.unique().tolist()) == {0.0, 2.0}
    update = layer.scale * layer.lora_b @ layer.lora_a
    expected = F.linear(x, mix(layer.weight + update, layer.weight, factor), layer.bias)
    assert deviation(found, expected) < 1e-12
    assert deviation(layer.eval()(x), F.linear(x, layer.weight + update, layer.bias)) < 1e-12


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("p", [0.0, 0.9])
@pytest.mark.parametrize("scope", ["step", "forward"])
def test_evaluation_is_that_of_plain_layers_bit_for_bit(p: float, scope: Any, family: str) -> None:
    model = prepared(Mixout(p=p, layers="all", scope=scope), classifier(family)).eval()
    plain = classifier(family)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(**INPUTS).logits, plain(**INPUTS).logits)


@pytest.mark.parametrize("scope", ["step", "forward"])
def test_p_zero_trains_as_without_bit_for_bit(scope: Any) -> None:
    found = gradient(prepared(Mixout(p=0.0, scope=scope)), Mixout(p=0.0, scope=scope))[1]
    plain = prepared(Mixout(p=0.0))
    exact = ExactGradient(Accelerator(cpu=True), plain, ToyTask(), 1000)
    exact.load(random_batch([3, 11, 5, 5]))
    exact()
    assert all(torch.equal(found[name], p.grad) for name, p in plain.named_parameters() if p.grad is not None)


def test_the_target_is_a_snapshot_that_neither_moves_nor_trains_nor_is_saved() -> None:
    model = prepared(Mixout(layers="all"))
    assert model.state_dict().keys() == classifier().state_dict().keys()
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in classifier().named_parameters()}
    layer: Any = model.get_submodule("classifier")
    assert torch.equal(layer.target, classifier().get_parameter("classifier.weight"))
    assert not torch.equal(layer.target, layer.weight)
    assert not layer.target.requires_grad
    assert model.float().get_buffer("classifier.target").dtype == torch.float32
    twin: Any = copy.deepcopy(model).get_submodule("classifier")
    assert twin.target is not layer.target


def test_masks_change_from_step_to_step_and_are_the_same_for_the_same_step() -> None:
    def masked(step: int) -> Tensor:
        method = Mixout(p=0.5, units="element")
        model = prepared(method)
        method.start_step(step)
        return gradient(model, method)[1]["classifier.weight"]

    torch.rand(3)  # whatever was drawn elsewhere meanwhile
    assert torch.equal(masked(4), masked(4))
    assert not torch.equal(masked(4), masked(5))


def test_a_second_backward_of_a_step_sees_the_same_masks() -> None:
    method = Mixout(p=0.5, layers="all", units="element")
    model = prepared(method)
    first, second = gradient(model, method)[1], gradient(model, method)[1]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("family", "name"), [("bert", "classifier"), ("gpt2", "transformer.h.0.mlp.c_fc")])
def test_forward_scope_draws_a_new_mask_each_time_and_survives_checkpointing(family: str, name: str) -> None:
    method = Mixout(p=0.5, layers="all", units="element", scope="forward")
    layer: Any = prepared(method, classifier(family)).get_submodule(name)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert not torch.equal(layer(x), layer(x))
    gradients = []
    for run in (layer, lambda value: checkpoint(layer, value, use_reentrant=False)):
        torch.manual_seed(1)
        layer.zero_grad()
        run(x).square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_merging_gives_plain_layers_with_the_same_weights(family: str) -> None:
    model = prepared(Mixout(layers="all"), classifier(family)).eval()
    before = model(**INPUTS).logits
    merged = Mixout().merge(copy.deepcopy(model))
    assert torch.equal(merged(**INPUTS).logits, before)
    assert [type(module) for module in merged.modules()] == [type(module) for module in classifier(family).modules()]


def test_mixed_weights_have_no_weight_decay() -> None:
    method = Mixout(layers="head")
    model = prepared(method)
    rules = method.optimizer_rules(model)
    assert rules == dict.fromkeys(("bert.pooler.dense.weight", "classifier.weight"), Rule(weight_decay=0.0))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {
        names[id(p)]: group["weight_decay"] for group in parameter_groups(model, TRAIN, rules) for p in group["params"]
    }
    assert decays["classifier.weight"] == 0.0
    assert decays["bert.encoder.layer.0.output.dense.weight"] == TRAIN.weight_decay


@pytest.mark.parametrize(("layers", "number"), [("head", 2), ("encoder", 12), ("all", 14)])
def test_layers_by_role(layers: Any, number: int) -> None:
    note = Mixout(layers=layers).prepare(classifier(), TRAIN, 3)
    assert note.startswith(f"{number} layers such as")


def test_what_cannot_work_is_refused() -> None:
    frozen = classifier().requires_grad_(False)
    with pytest.raises(ModelError, match=r"methods\.mixout\.layers: no linear layer with the role 'encoder' trains"):
        Mixout(layers="encoder").prepare(frozen, TRAIN, 3)
    with pytest.raises(SpecError, match=r"methods\.lora\.dropout: mixout on a LoRA layer takes the place"):
        Mixout(layers="encoder").prepare(LoRA(rank=2).edit_model(classifier()), TRAIN, 3)
    ia3 = Peft(type="IA3", config={"target_modules": ["key"], "feedforward_modules": []}).edit_model(classifier())
    with pytest.raises(ModelError, match=r"key is wrapped by another method; mixout is for plain linear layers"):
        Mixout(layers="all").prepare(ia3, TRAIN, 3)
    on_head = LoRA(rank=2, target_modules="head", dropout=0.0).edit_model(classifier()).requires_grad_(True)
    with pytest.raises(SpecError, match="belongs to the new head"):
        Mixout().prepare(on_head, TRAIN, 3)


def test_an_exception_while_mixing_puts_the_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Mixout(p=0.5, layers="all")
    model = prepared(method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    count = itertools.count()

    def draw(self: Mask, like: Tensor, generator: Any = None) -> Tensor:
        if next(count) == 6:
            raise MemoryError
        return keep_factor(self.shape, self.p, self.units, like, generator)

    monkeypatch.setattr(Mask, "draw", draw)
    with pytest.raises(MemoryError):
        gradient(model, method)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_frozen_layer_that_carries_an_adapter_is_not_mixed() -> None:
    adapted = BottleneckAdapter(size=4).edit_model(classifier("albert"))
    surgery.freeze_except(adapted, BottleneckAdapter().trainable(adapted) or ())
    with pytest.raises(ModelError, match="no linear layer with the role 'encoder' trains"):
        Mixout(layers="encoder").prepare(adapted, TRAIN, 3)
    assert len(BottleneckAdapter().trainable(adapted) or ()) == 4


def test_layers_that_share_a_weight_are_left_alone() -> None:
    model: Any = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "three": nn.Linear(4, 4)})
    model["two"].weight = model["one"].weight
    assert list(surgery.layers(model)) == ["three"]
