from __future__ import annotations

from pathlib import Path

import pytest

from harness import assembly
from harness.catalogue import builtin
from harness.cli.launching import SMOKE
from harness.errors import SpecError
from harness.specs import spec


def test_weights_behind_a_link_have_a_digest(tmp_path: Path) -> None:
    """Every snapshot in the Hub's cache is one."""
    for path in builtin.model_path("minilm").iterdir():
        (tmp_path / path.name).symlink_to(path)
    linked = spec.load("lora", [f"model.name={tmp_path}"])
    assert assembly.identify(linked)["sha256"] == assembly.identify(spec.load("lora"))["sha256"]


def test_what_trains_by_family() -> None:
    chosen = spec.load("lora_adapter", ["data.limit=24", "data.max_test_overlap=1.0"])
    assembled = assembly.assemble(chosen, assembly.load(chosen), 0)
    assert assembled.by_family == {"lora": 147_456, "bottleneck_adapter": 297_600, "head": 1_155, "pretrained": 0}
    assert assembled.count.trainable == 446_211
    assert assembled.merges
    full = assembly.assemble(spec.load("full_finetune"), assembly.load(chosen), 0)
    assert full.count.share == 1
    assert full.by_family == {"head": 1_155, "pretrained": full.count.total - 1_155}
    assert not full.merges


def test_in_a_rehearsal_every_method_acts_in_every_step() -> None:
    """Two steps are over before one that waits for the second half of an epoch, or for the second epoch, begins."""
    late = ["methods.awp={start: 0.9, start_epoch: 2}", "train.batch_size=4"]
    chosen = spec.load("full_finetune", [*SMOKE, *late])
    assembled = assembly.assemble(chosen, assembly.load(chosen), 0)
    assert "attacks 38 tensors in 2 of 2 steps" in assembled.notes["awp"]
    real = spec.load("full_finetune", [*SMOKE, *late, "tracking.experiment=mine"])
    with pytest.raises(SpecError, match="never active in 2 steps"):
        assembly.assemble(real, assembly.load(real), 0)
    never = spec.load("full_finetune", [*SMOKE, "methods.awp={start: 0.5, stop: 0.5}"])
    with pytest.raises(SpecError, match=r"methods\.awp\.start: 0\.5 is not below stop"):
        assembly.assemble(never, assembly.load(never), 0)


def test_parameters_of_the_head_are_counted_once() -> None:
    """With `bias: all` the tuner trains the head's bias too."""
    tuner = "methods.peft={type: LORA, config: {r: 2, bias: all}}"
    chosen = spec.load("full_finetune", ["data.limit=24", "data.max_test_overlap=1.0", tuner])
    assembled = assembly.assemble(chosen, assembly.load(chosen), 0)
    assert sum(assembled.by_family.values()) == assembled.count.trainable
    assert assembled.by_family["head"] == 1_155
