from __future__ import annotations

import gc
import re
import weakref

import numpy as np
import pytest
import torch

from harness.machine import memory
from harness.machine.memory import AllocatorThrash

RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 4 bytes"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((2**40,), np.dtype(float)),  # type: ignore[attr-defined]
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("could not create a primitive descriptor for the matmul primitive"),
    ValueError("CUDA out of memory. Tried to allocate"),
    OSError(28, "No space left on device"),
    KeyboardInterrupt(),
    memory.exhausted("training", 1, 13),
]


@pytest.mark.parametrize("error", RAN_OUT, ids=lambda error: f"{type(error).__name__}: {str(error)[:40]}")
def test_a_lack_of_memory_is_recognised(error: BaseException) -> None:
    """F9: `MemoryError` too, which accelerate's classifier leaves out."""
    assert memory.ran_out(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: f"{type(error).__name__}: {str(error)[:40]}")
def test_nothing_else_is_taken_for_one(error: BaseException) -> None:
    assert not memory.ran_out(error)


def test_release_collects_what_only_a_cycle_holds() -> None:
    class Knot:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        held = weakref.ref(Knot())
        assert held() is not None
        memory.release()
        assert held() is None
    finally:
        gc.enable()


def test_the_last_word_names_peak_shape_longest_text_free_memory_and_four_things_to_try() -> None:
    """F6: one message, word for word but for the sizes."""
    said = re.sub(r"\d+\.\d\d GiB", "N GiB", str(memory.exhausted("training", 1, 13)))
    assert said == (
        "out of memory in training with 1 x 13 tokens (batch x longest text)\n"
        "  why: peak N GiB, N GiB free on the host; there is nothing left to halve\n"
        "  fix: a smaller max_length, precision=bf16 (on a GPU), fewer trained parameters (exp=lora), "
        "or a smaller model"
    )


def test_the_optimizer_has_no_batch_to_blame() -> None:
    assert str(memory.exhausted("the optimizer step", 0, 0)).startswith("out of memory in the optimizer step\n  why:")


@pytest.mark.parametrize(
    ("retries", "expected"),
    [
        ([0, 0, 0, 0], [False] * 4),
        ([1, 1, 2, 2], [False] * 4),
        ([1, 2, 3, 4], [False, True, False, True]),
        ([1, 1, 2, 5, 5], [False, False, False, True, False]),
    ],
    ids=["calm", "now and then", "always", "late"],
)
def test_two_steps_in_a_row_with_new_retries_are_thrash(retries: list[int], expected: list[bool]) -> None:
    """F8, with the allocator's statistics replaced."""
    counts = iter([0, *retries])
    thrash = AllocatorThrash(lambda: {"num_alloc_retries": next(counts)})
    assert [thrash.is_thrashing() for _ in retries] == expected


def test_retries_before_the_run_do_not_count() -> None:
    thrash = AllocatorThrash(lambda: {"num_alloc_retries": 7})
    assert not any(thrash.is_thrashing() for _ in range(3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the statistics are those of the GPU there")
def test_without_a_gpu_nothing_thrashes() -> None:
    assert not any(AllocatorThrash().is_thrashing() for _ in range(3))
