"""The devices that make memory run out in other tests."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from tests import address_space
from tests.memcap import MemCap

KIB = 1024


def test_it_counts_new_tensors_until_they_are_gone() -> None:
    with MemCap() as memory:
        one = torch.zeros(KIB)
        two = one * 2
        assert memory.current == 8 * KIB
        del one
        assert memory.current == 4 * KIB
        del two
        assert (memory.current, memory.peak) == (0, 8 * KIB)


def test_what_was_there_before_views_and_changes_in_place_cost_nothing() -> None:
    before = torch.zeros(KIB, KIB)
    with MemCap(cap=0) as memory:
        view = before.t()[3:].view(-1, KIB)
        before.add_(1).t().mul_(2)
        torch.add(before, 1, out=before)
    assert not memory.failed
    assert view[0, 0] == 3


def test_it_raises_torchs_own_error_after_the_operation_ran() -> None:
    weight = torch.ones(KIB)
    with MemCap(cap=4 * KIB) as memory:
        held = weight + 1
        with memory.in_phase("optimizer"), pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 4096 bytes"):
            weight.add_(1).sqrt()
    assert memory.failed == [("optimizer", "aten.sqrt.default")]
    assert weight[0] == 2  # half of it is done
    assert held[0] == 2


def test_it_sees_the_backward_pass_and_inference() -> None:
    layer, x = nn.Linear(8, 8), torch.ones(4, 8)
    with MemCap() as memory:
        with memory.in_phase("forward"):
            loss = layer(x).sum()
        with memory.in_phase("backward"):
            loss.backward()
        with memory.in_phase("evaluation"), torch.inference_mode():
            layer(x)
    assert {phase for phase, _ in memory.levels} == {"forward", "backward", "evaluation"}
    assert memory.current >= layer.weight.numel() * 4  # its gradient stays


def test_every_cap_fails_at_another_tensor() -> None:
    def work() -> None:
        x = torch.ones(KIB)
        y = torch.cat([x, x])
        del x
        y.exp().sum()

    with MemCap() as memory:
        work()
    caps = memory.caps("")
    failed = []
    for cap in caps:
        with MemCap(cap) as limited, pytest.raises(torch.OutOfMemoryError):
            work()
        failed += limited.failed
    assert [name for _, name in failed] == ["aten.sum.default", "aten.exp.default", "aten.cat.default",
                                            "aten.ones.default"]  # fmt: skip


def test_the_cap_can_lift() -> None:
    with MemCap(cap=0, times=1) as memory:
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(1)
        torch.ones(1)
    assert len(memory.failed) == 1


def test_nothing_is_counted_twice_when_an_address_is_used_again() -> None:
    with MemCap() as memory:
        for _ in range(50):
            torch.ones(KIB)
        gc.collect()
    assert (memory.current, memory.peak) == (0, 4 * KIB)


ERRORS = """
from harness.machine import memory
import numpy as np
limit(200)
for allocate in (lambda: torch.ones(2**28), lambda: np.ones(2**28), lambda: [0] * 2**28):
    try:
        allocate()
    except BaseException as error:
        print(type(error).__name__.lstrip('_Array'), memory.ran_out(error))
torch.ones(1000), np.ones(1000)
print("on it goes")
"""


def test_a_small_address_space_makes_torch_numpy_and_python_run_out_and_all_are_recognised() -> None:
    """F9: three real errors of the host, none of them made by us."""
    said = address_space.run(ERRORS).splitlines()
    assert said == ["RuntimeError True", "MemoryError True", "MemoryError True", "on it goes"]
