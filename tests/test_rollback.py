"""F3: memory that runs out in the optimizer step changes nothing, or the step is taken as if nothing had been."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from harness import rollback
from harness.errors import TrainingError
from harness.machine import memory as memory_module
from tests.memcap import MemCap

KINDS: dict[str, dict[str, Any]] = {
    "default": {}, "loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True},
}  # fmt: skip
SHAPES = [(7,), (33, 5), (1,), (40, 41), (8, 8), (33, 5)]
STEPS = 4
State = list[Tensor]


def silent(_: str) -> None:
    pass


def build(kind: str, dtype: torch.dtype = torch.float32) -> AdamW:
    """Two groups with and without weight decay at different rates, and one parameter that never gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0, "lr": 3e-3},
        {"params": [nn.Parameter(torch.ones(5, dtype=dtype))], "lr": 1e-2},
    ]
    return AdamW(groups, lr=1e-2, **KINDS[kind])


def give_gradients(optimizer: AdamW, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for group in optimizer.param_groups[:2]:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def everything(optimizer: AdamW) -> State:
    """Copies of weights and state; state that was not created yet counts as what it is created as."""
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            nothing = rollback._no_state(parameter, group["fused"])
            state = optimizer.state.get(parameter) or nothing
            found += [parameter.detach().clone(), *(state[kind].clone() for kind in nothing)]
    return found


def are_equal(left: State, right: State) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def undisturbed(kind: str) -> list[State]:
    """After 0, 1, ... steps of torch's own AdamW."""
    optimizer, states = build(kind), []
    states.append(everything(optimizer))
    for number in range(STEPS):
        give_gradients(optimizer, number)
        optimizer.step()
        states.append(everything(optimizer))
    return states


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Not a whole collection for each of a thousand failures."""
    calls: list[bool] = []
    monkeypatch.setattr(memory_module, "release", lambda: calls.append(True))
    return calls


@pytest.fixture(params=["together", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Few parameters, which are copied together; or too many for that."""
    if request.param == "one by one":
        monkeypatch.setattr(rollback, "SMALL", 0)
    return str(request.param)


@pytest.mark.parametrize("is_materialised", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_adamws_bit_for_bit(kind: str, is_materialised: bool, way: str) -> None:
    optimizer, expected = build(kind), undisturbed(kind)
    if is_materialised:
        rollback.materialise(optimizer)
    for number in range(STEPS):
        give_gradients(optimizer, number)
        rollback.step(optimizer, silent)
        assert are_equal(everything(optimizer), expected[number + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_created_state_is_the_one_adamw_creates(kind: str, dtype: torch.dtype) -> None:
    own, torchs = build(kind, dtype), build(kind, dtype)
    rollback.materialise(own)
    for optimizer in (own, torchs):
        give_gradients(optimizer, 0)
        optimizer.step()
    found, expected = own.state_dict()["state"], torchs.state_dict()["state"]
    assert found.keys() - expected.keys() == {6}  # the one without a gradient, which AdamW would not know
    for number, state in expected.items():
        assert list(found[number]) == list(state)
        for name, tensor in state.items():
            assert found[number][name].dtype == tensor.dtype
            assert torch.equal(found[number][name], tensor)


def after(kind: str, number: int) -> AdamW:
    optimizer = build(kind)
    for earlier in range(number):
        give_gradients(optimizer, earlier)
        rollback.step(optimizer, silent)
    return optimizer


def caps(kind: str, number: int) -> list[int]:
    """Every place of the step after `number` steps where memory can run out."""
    optimizer = after(kind, number)
    give_gradients(optimizer, number)
    with MemCap() as memory:
        rollback.step(optimizer, silent)
    return memory.caps("")


def is_taken(optimizer: AdamW) -> bool:
    """Step; whether it was taken, or refused with a sentence."""
    try:
        rollback.step(optimizer, silent)
    except TrainingError as error:
        assert str(error).startswith("out of memory in the optimizer step\n  why: peak ")
        return False
    return True


@pytest.mark.parametrize("number", [0, 2], ids=["first step", "later step"])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_memory_runs_out_it_is_the_undisturbed_step_or_none(kind: str, number: int, way: str) -> None:
    """A constant cap: what does not fit is undone, with difference 0 in weights and state; the rest of the run too."""
    expected, outcomes = undisturbed(kind), set()
    tried = caps(kind, number)
    for cap in tried:
        optimizer = after(kind, number)
        give_gradients(optimizer, number)
        with MemCap(cap) as memory:
            was_taken = is_taken(optimizer)
        outcomes.add(was_taken)
        assert memory.failed
        assert are_equal(everything(optimizer), expected[number + was_taken]), (cap, memory.failed)
        for later in range(number + was_taken, STEPS):
            give_gradients(optimizer, later)
            rollback.step(optimizer, silent)
        assert are_equal(everything(optimizer), expected[STEPS])
    if (kind, way, number) == ("fused", "one by one", 2):
        assert not tried  # it asks for no memory at all
    else:
        assert False in outcomes
    if (kind, way) == ("foreach", "together"):
        assert True in outcomes  # one by one it fits


@pytest.mark.parametrize("number", [0, 2], ids=["first step", "later step"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_comes_back_is_enough(kind: str, number: int, way: str, released: list[bool]) -> None:
    """One failure at any place: the step is taken, and said once."""
    expected = undisturbed(kind)
    for cap in caps(kind, number):
        optimizer, said = after(kind, number), list[str]()
        give_gradients(optimizer, number)
        with MemCap(cap, times=1) as memory:
            rollback.step(optimizer, said.append)
        assert len(memory.failed) == len(said) == len(released) == 1
        released.clear()
        assert "undone" in said[0]
        assert are_equal(everything(optimizer), expected[number + 1]), (cap, memory.failed)


def test_a_step_that_is_just_taken_again_would_differ() -> None:
    """What all this is for: a naive second try moves weights twice."""
    expected = undisturbed("loop")
    for cap in (700, 1500, 7000):
        optimizer = build("loop")
        rollback.materialise(optimizer)
        give_gradients(optimizer, 0)
        with MemCap(cap), pytest.raises(torch.OutOfMemoryError):
            optimizer.step()
        optimizer.step()
        assert not are_equal(everything(optimizer), expected[1])


def test_a_fused_step_asks_for_no_memory() -> None:
    optimizer = build("fused")
    rollback.materialise(optimizer)
    give_gradients(optimizer, 0)
    with MemCap(cap=0) as memory:
        optimizer.step()
    assert not memory.failed


def test_state_is_created_for_all_or_for_none() -> None:
    optimizer = build("default")
    with MemCap() as memory:
        rollback.materialise(optimizer)
    assert len(memory.caps("")) == 3 * (len(SHAPES) + 1)
    for cap in memory.caps(""):
        optimizer = build("default")
        with MemCap(cap), pytest.raises(torch.OutOfMemoryError):
            rollback.materialise(optimizer)
        assert not optimizer.state


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("shapes do not match")], ids=["ctrl-c", "other"])
def test_other_errors_pass_and_leave_nothing_half_done(error: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, calls = build("default"), []
    rollback.materialise(optimizer)
    give_gradients(optimizer, 0)
    before, groups = everything(optimizer), optimizer.param_groups

    def fail_half_way() -> None:
        calls.append(0)
        optimizer.param_groups[0]["params"][0].data.add_(1)
        raise error

    monkeypatch.setattr(optimizer, "step", fail_half_way)
    with pytest.raises(error if inspect.isclass(error) else type(error)):
        rollback.step(optimizer, silent)
    assert len(calls) == 1
    assert are_equal(everything(optimizer), before)
    assert optimizer.param_groups is groups


def test_a_schedule_sees_one_step(way: str) -> None:
    """It counts calls of `step` only to warn of a wrong order; warnings are errors here."""
    optimizer = build("default")
    schedule = LambdaLR(optimizer, lambda number: 1 / (1 + number))
    for number in range(2):
        give_gradients(optimizer, number)
        rollback.step(optimizer, silent)
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2 / 3, 1e-3, 1e-2 / 3])
