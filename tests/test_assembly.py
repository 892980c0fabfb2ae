from __future__ import annotations

from pathlib import Path

from harness import assembly
from harness.catalogue import builtin
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


def test_parameters_of_the_head_are_counted_once() -> None:
    """With `bias: all` the tuner trains the head's bias too."""
    tuner = "methods.peft={type: LORA, config: {r: 2, bias: all}}"
    chosen = spec.load("full_finetune", ["data.limit=24", "data.max_test_overlap=1.0", tuner])
    assembled = assembly.assemble(chosen, assembly.load(chosen), 0)
    assert sum(assembled.by_family.values()) == assembled.count.trainable
    assert assembled.by_family["head"] == 1_155
