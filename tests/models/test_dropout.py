"""Dropout masks on a CPU: the probability exactly, by enumeration; the gradient; what repeats them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from harness import seeding
from harness.models.dropout import Dropout, dropout, install


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.9, 1.0])
def test_of_all_65536_values_of_the_bits_as_many_are_dropped_as_p_says(
    p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    monkeypatch.setattr(torch.Tensor, "random_", lambda draws, *_: draws.copy_(every.view(torch.int64)))
    found = dropout(torch.ones(1 << 16, dtype=torch.float64), p)
    assert int((found == 0).sum()) == round(p * (1 << 16))
    if p < 1:
        assert found.mean().item() == pytest.approx(1.0, abs=1e-12)
        assert len(found.unique()) == (2 if p > 0.01 else 1)


def test_each_of_the_64_bits_of_a_draw_is_random() -> None:
    torch.manual_seed(0)
    draws = torch.empty(40_000, dtype=torch.int64).random_(-(2**63), None)
    for bit in range(64):
        share = ((draws >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(40_000)


def test_elements_are_dropped_independently_of_each_other() -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(20_000, 8), 0.3) == 0
    for i in range(8):
        for j in range(i):
            both = (dropped[:, i] & dropped[:, j]).double().mean().item()
            assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_has_the_mask_of_the_output(dtype: torch.dtype) -> None:
    x = torch.ones(7, 5, 3, dtype=dtype).transpose(0, 2).requires_grad_()
    y = dropout(x, 0.4)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert y.dtype == dtype


def test_a_restored_generator_repeats_the_mask() -> None:
    x = torch.ones(100)
    before = seeding.capture()
    first = dropout(x, 0.5)
    assert not torch.equal(first, dropout(x, 0.5))
    seeding.restore(before)
    assert torch.equal(first, dropout(x, 0.5))


def test_evaluation_draws_nothing() -> None:
    before = torch.get_rng_state()
    x = torch.ones(10)
    assert dropout(x, 0.5, training=False) is x
    assert torch.equal(before, torch.get_rng_state())


def test_install_replaces_every_dropout_and_nothing_else() -> None:
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)), Own(0.4))
    model[0].register_forward_hook(lambda _, args, output: output + 1)
    model[0].add_module("hung_on", nn.Linear(2, 2))
    model.eval()
    install(model)
    assert [type(m) for m in model.modules() if isinstance(m, nn.Dropout)] == [Dropout, Dropout, Own]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.3, 0.4]
    assert not any(m.training for m in model.modules())
    assert hasattr(model[0], "hung_on")
    assert torch.equal(model[0](torch.zeros(1, 2)), torch.ones(1, 2))
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 2)), model(torch.ones(1, 2)))
