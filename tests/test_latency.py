from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from harness.latency import FEWEST_RUNS, Latency, Row, as_metrics, measure, write

CPU = torch.device("cpu")


class FakeModel:
    """A clock and the calls that make it advance: the n-th call takes the n-th duration, later ones the last."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.now = list(seconds), 0.0
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def clock(self) -> float:
        return self.now

    def variant(self, name: str) -> object:
        def call(inputs: dict[str, Tensor]) -> Tensor:
            assert torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
            self.calls.append((name, tuple(inputs["input_ids"].shape)))
            self.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
            return inputs["input_ids"]

        return call


def example(batch_size: int, length: int) -> dict[str, Tensor]:
    return {"input_ids": torch.zeros(batch_size, length, dtype=torch.long)}


def run(model: FakeModel, settings: Latency, *names: str) -> list[Row]:
    variants = {name: model.variant(name) for name in names}
    return measure(variants, example, settings, CPU, clock=model.clock)  # type: ignore[arg-type]


def shape(**changes: object) -> Latency:
    """One shape unless told otherwise."""
    return Latency.model_validate({"batch_sizes": [4], "lengths": [8], "max_seconds": 1e9} | changes)


def test_calls_are_counted_exactly_and_warm_up_is_excluded() -> None:
    model = FakeModel([100.0] * 3 + [0.5] * 20)
    (row,) = run(model, shape(warmup=3, runs=20), "plain")
    assert len(model.calls) == 23
    assert (row.runs, row.warmup) == (20, 3)
    assert row.p99_ms == row.p50_ms == pytest.approx(500.0)


def test_variants_take_turns() -> None:
    model = FakeModel([0.1])
    run(model, shape(warmup=2, runs=12), "merged", "unmerged")
    assert [name for name, _ in model.calls] == ["merged", "unmerged"] * (2 + 12)


def test_every_shape_is_warmed_up_and_measured_on_its_own() -> None:
    model = FakeModel([0.1])
    rows = run(model, shape(batch_sizes=[1, 2], lengths=[4, 16], warmup=1, runs=10), "plain")
    assert [(row.batch_size, row.length) for row in rows] == [(1, 4), (1, 16), (2, 4), (2, 16)]
    shapes = [shape for _, shape in model.calls]
    assert shapes == [(1, 4)] * 11 + [(1, 16)] * 11 + [(2, 4)] * 11 + [(2, 16)] * 11


def test_times_stay_with_their_variant() -> None:
    model = FakeModel([0.1, 0.3] * 20)
    fast, slow = run(model, shape(warmup=0, runs=10), "fast", "slow")
    assert (fast.variant, slow.variant) == ("fast", "slow")
    assert fast.p50_ms == pytest.approx(100.0)
    assert slow.p50_ms == pytest.approx(300.0)


def test_statistics_equal_numpys() -> None:
    seconds = np.random.default_rng(0).exponential(0.02, size=57)
    (row,) = run(FakeModel(seconds.tolist()), shape(warmup=0, runs=57), "plain")
    for percent in (50, 95, 99):
        assert getattr(row, f"p{percent}_ms") == pytest.approx(1000 * np.percentile(seconds, percent), rel=1e-9)
    assert row.mean_ms == pytest.approx(1000 * seconds.mean())
    assert row.sd_ms == pytest.approx(1000 * seconds.std(ddof=1))


def test_a_percentile_lies_between_order_statistics() -> None:
    """Of 1, 2, ..., 11 s the p95 is 10.5 s: place 0.95 x 10 = 9.5, counted from 0."""
    (row,) = run(FakeModel([float(i) for i in range(1, 12)]), shape(warmup=0, runs=11), "plain")
    assert row.p95_ms == pytest.approx(10_500.0)


def test_throughput_is_work_over_mean_time() -> None:
    (row,) = run(FakeModel([0.1, 0.3] * 5), shape(warmup=0, runs=10), "plain")
    assert row.throughput_examples_per_second == pytest.approx(4 / 0.2)
    assert row.throughput_tokens_per_second == pytest.approx(4 * 8 / 0.2)


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [
        (0.125, 16),  # 16 x 0.125 s reach the budget of 2 s
        (0.0625, 32),
        (5.0, FEWEST_RUNS),  # the first call is over budget, ten are made all the same
        (0.001, 50),  # the budget is never reached
    ],
)
def test_time_budget(seconds: float, runs: int) -> None:
    model = FakeModel([seconds])
    (row,) = run(model, shape(warmup=1, runs=50, max_seconds=2.0), "plain")
    assert row.runs == runs
    assert len(model.calls) == runs + 1


def test_the_budget_is_each_variants_own() -> None:
    """The slow variant stops at ten, the fast one goes on."""
    model = FakeModel([1.0, 0.0625] * FEWEST_RUNS + [0.0625])
    slow, fast = run(model, shape(warmup=0, runs=50, max_seconds=2.0), "slow", "fast")
    assert (slow.runs, fast.runs) == (10, 32)


def test_a_slow_warm_up_does_not_use_up_the_budget() -> None:
    (row,) = run(FakeModel([60.0] * 5 + [0.125]), shape(warmup=5, runs=50, max_seconds=2.0), "plain")
    assert row.runs == 16


def test_an_accelerator_is_waited_for_inside_the_timed_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `meta` device stands in for one whose calls return before the work is done."""
    model = FakeModel([0.0])

    def synchronize(device: torch.device) -> None:
        model.now += 0.25

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    variants = {"plain": model.variant("plain")}
    (row,) = measure(variants, example, shape(warmup=0, runs=10), torch.device("meta"), model.clock)  # type: ignore[arg-type]
    assert row.mean_ms == pytest.approx(250.0)
    assert row.device == "meta"


def test_cuda_events_enclose_the_call_and_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event times are milliseconds; reading them before the end has been reached would be an error on the device."""
    model, log = FakeModel([0.25]), []

    class FakeEvent:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.time = -1.0

        def record(self, stream: str) -> None:
            log.append(f"record on {stream}")
            self.time = model.now

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: FakeEvent) -> float:
            log.append("read")
            return 1000 * (end.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "this stream")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")

    def on_device(batch_size: int, length: int) -> dict[str, Any]:
        tensor = SimpleNamespace(shape=(batch_size, length))
        tensor.to = lambda device: tensor
        return {"input_ids": tensor}

    variants = {"plain": model.variant("plain")}
    (row,) = measure(variants, on_device, shape(warmup=0, runs=10), torch.device("cuda"))  # type: ignore[arg-type]
    assert row.mean_ms == pytest.approx(250.0)
    assert row.device == "some GPU"
    assert log == ["record on this stream", "record on this stream", "synchronize", "read"] * 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_time_includes_work_that_outlasts_the_call() -> None:
    """A matrix product whose floating-point work alone takes longer than launching it."""
    device = torch.device("cuda")
    matrix = torch.randn(8192, 8192, device=device)
    variants = {"large": lambda inputs: matrix @ matrix, "nothing": lambda inputs: None}
    large, nothing = measure(variants, example, shape(warmup=3, runs=10), device)
    assert large.p50_ms > 1.0 > nothing.p50_ms
    assert large.device == torch.cuda.get_device_name(device)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_sizes": []},
        {"batch_sizes": [0]},
        {"lengths": [16, -1]},
        {"lengths": []},
        {"runs": FEWEST_RUNS - 1},
        {"warmup": -1},
        {"max_seconds": 0.0},
        {"max_seconds": float("inf")},
        {"repeats": 3},
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Latency.model_validate(wrong)


def grid() -> list[Row]:
    settings = Latency(batch_sizes=[1, 8, 32], lengths=[16, 32, 64, 128], warmup=0, runs=10)
    return run(FakeModel([0.01, 0.02] * 10), settings, "merged", "unmerged")


def test_metrics_are_few_and_are_the_rows_numbers() -> None:
    rows = grid()
    values = as_metrics(rows)
    assert len(values) == 2 * 4 * 3 + 2 + 3
    assert values["latency/p50_ms"] == values["latency/merged_b1_t128_p50_ms"]  # what one would deploy
    assert values["latency/merged_b1_t128_p50_ms"] == next(
        row.p50_ms for row in rows if (row.variant, row.batch_size, row.length) == ("merged", 1, 128)
    )
    assert values["latency/unmerged_b32_t128_examples_per_second"] == next(
        row.throughput_examples_per_second
        for row in rows
        if (row.variant, row.batch_size, row.length) == ("unmerged", 32, 128)
    )


def test_files(tmp_path: Path) -> None:
    rows = grid()
    write(rows, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latency.csv",
        "latency.html",
        "latency.json",
        "latency.png",
    ]
    assert json.loads((tmp_path / "latency.json").read_text()) == [asdict(row) for row in rows]
    with (tmp_path / "latency.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["p95_ms"]) for line in lines] == [row.p95_ms for row in rows]
    page = (tmp_path / "latency.html").read_text(encoding="utf-8")
    assert "<script src=" not in page
    for word in ("Batch size 1", "Batch size 8", "Batch size 32", "merged", "Tokens per example"):
        assert word in page
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_one_variant_at_one_shape_can_be_drawn(tmp_path: Path) -> None:
    write(run(FakeModel([0.1]), shape(runs=10), "plain"), tmp_path)
    assert (tmp_path / "latency.png").stat().st_size > 0
