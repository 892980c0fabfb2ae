from __future__ import annotations

from pathlib import Path

import pytest

from harness.compare.comparison import Comparison, compare
from harness.compare.texts import adapters, small_gpu, texts
from tests.compare.runs import finished

FULL = {"weights": 1.0, "gradients": 1.0, "optimizer": 2.0, "activations": 0.5, "total": 4.5}
FEW = {"weights": 1.0, "gradients": 0.1, "optimizer": 0.2, "activations": 0.5, "total": 1.8}


def made_of(output: Path) -> Comparison:
    (made,), _ = compare([], output)
    return made


def cell(p50: float, variant: str) -> dict[str, float]:
    return {f"latency/{variant}_b1_t8_p50_ms": p50, f"latency/{variant}_b1_t8_p95_ms": 9.0}


def test_what_adapters_cost_is_told_against_the_reference(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path, "full_finetune", seed, 0.7, trainable=1000, scores=cell(5.0, "model"))
        two = cell(6.0, "unmerged") | cell(5.0, "merged") | {"memory/peak_gib": 1.0}
        finished(tmp_path, "lora", seed, 0.6, trainable=10, scores=two)
        finished(tmp_path, "bottleneck_adapter", seed, 0.5, trainable=20, scores=cell(7.5, "model"))
    found = adapters(made_of(tmp_path))
    assert found is not None
    told = " ".join(found.sentences)
    assert "Measured on a CPU" in told
    assert "lora trains 1.00% of the parameters of full_finetune; 1.00 GiB at the peak (-50%)." in told
    assert "Batch 1, 8 tokens, p50: lora 6.0 ms, merged 5.0 ms (-17%); full_finetune 5.0 ms." in told
    assert "bottleneck_adapter 7.5 ms; it does not merge; full_finetune 5.0 ms." in told


def test_seconds_of_different_runs_are_never_told_as_an_effect(tmp_path: Path) -> None:
    finished(tmp_path, "full_finetune", 0, 0.7, trainable=1000, scores={"train/examples_per_second": 48.0})
    finished(tmp_path, "lora", 0, 0.6, trainable=10, scores={"train/examples_per_second": 38.6})
    found = adapters(made_of(tmp_path))
    assert found is not None
    (told,) = (one for one in found.sentences if "per second" in one)
    assert told.startswith("Texts per second in training: full_finetune 48.0, lora 38.6. Seconds belong to the machine")
    assert "%" not in told


def test_what_fits_four_gib_follows_from_the_estimate_and_stands_beside_the_measurement(tmp_path: Path) -> None:
    before = {"memory/before_gib": 0.5}
    finished(tmp_path, "full_finetune", 0, 0.7, memory=FULL, scores=before, train__micro_batch_tokens=1000)
    finished(tmp_path, "lora", 0, 0.6, memory=FEW, scores=before, train__micro_batch_tokens=1000)
    finished(tmp_path, "mixout", 0, 0.6)  # of a time when no run wrote its estimate down
    found = small_gpu(made_of(tmp_path))
    assert found is not None and found.table is not None
    fits = int((4.0 - 0.6 - 1.3) / 0.5 * 1000)
    assert found.table.rows == [
        ["full_finetune", "1,000", "4.00", "0.50", "4.50", "1.00", "0"],
        ["lora", "1,000", "1.30", "0.50", "1.80", "1.00", f"{fits:,}"],
    ]
    assert found.sentences[-2].startswith("full_finetune does not fit")
    assert f"`train.micro_batch_tokens={fits}`" in found.sentences[-1]


def test_nothing_is_told_of_what_nobody_measured(tmp_path: Path) -> None:
    finished(tmp_path, "full_finetune", 0, 0.7)
    assert texts(made_of(tmp_path)) == []


@pytest.mark.parametrize("missing", ["memory/peak_gib", "memory/before_gib"])
def test_a_measurement_that_is_missing_is_left_out(tmp_path: Path, missing: str) -> None:
    both = {"memory/peak_gib": 2.0, "memory/before_gib": 0.5}
    finished(tmp_path, "full_finetune", 0, 0.7, memory=FULL, scores={key: both[key] for key in both if key != missing})
    found = small_gpu(made_of(tmp_path))
    assert found is not None and found.table is not None
    assert (found.table.rows[0][5] == "") == (missing == "memory/before_gib")
