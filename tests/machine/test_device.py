from __future__ import annotations

import os

import pytest
import torch

from harness.machine import device


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_what_this_device_would_ignore_or_only_imitate_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    assert device.resolve_precision("auto", told.append) == "no"
    assert device.resolve_precision("no", told.append) == "no"
    assert not told
    assert device.resolve_precision("fp16", told.append) == "no"
    assert told.pop() == "NOTE precision=fp16 needs a GPU; this machine has none, training in float32"
    for has, count in ((True, 0), (False, 1)):
        monkeypatch.setattr(device, "_has_bf16", lambda on_gpu, has=has: has)
        assert device.resolve_precision("bf16", told.append) == "bf16"
        assert len(told) == count
    assert "no instructions for it" in told[0]


@pytest.mark.parametrize(("launched", "told"), [("no", 0), ("bf16", 1), (None, 0)])
def test_a_precision_that_only_the_launcher_was_given_is_said(
    launched: str | None, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --mixed_precision`, or its config file."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    notes: list[str] = []
    assert device.resolve_precision("no", notes.append) == "no"
    assert notes == ["NOTE Accelerate's mixed precision bf16 is not used: precision=no decides, here float32"] * told


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_is_bf16_where_the_gpu_has_it() -> None:
    expected = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "no"
    assert device.resolve_precision("auto") == expected


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is the GPU's")
def test_the_peak_is_that_of_the_run_not_of_all_runs_of_the_process() -> None:
    block = bytearray(os.urandom(1) * 400 * 1024**2)
    before = device.peak_memory_gib()
    del block
    device.reset_peak_memory()
    assert device.peak_memory_gib() < before - 0.3


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is the GPU's")
def test_memory_that_an_earlier_run_gave_back_is_not_part_of_the_next_peak() -> None:
    """Small pieces stay in the heap of glibc below any that is still in use."""
    pieces = [torch.ones(8_000) for _ in range(10_000)]
    before, last = device.peak_memory_gib(), torch.ones(8_000)
    del pieces
    device.reset_peak_memory()
    assert device.peak_memory_gib() < before - 0.2
    assert last.sum() == 8_000
