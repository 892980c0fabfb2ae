from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from harness import surgery
from harness.errors import ModelError
from harness.methods.lora import LoRA, lora_layers
from tests.toys import FAMILIES, classifier, deviation, random_batch

ROLE_NAMES = {
    "bert": ["query", "key", "value", "attention.output.dense"],
    "roberta": ["query", "key", "value", "attention.output.dense"],
    "electra": ["query", "key", "value", "attention.output.dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin"],
}


def with_random_b(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        with torch.no_grad():
            layer.lora_b.copy_(torch.randn(layer.lora_b.shape, generator=generator, dtype=torch.float64))
    return model


def peft_twin(model: nn.Module, family: str, method: LoRA) -> Any:
    """PEFT's own model with our A and B copied in."""
    config = peft.LoraConfig(
        r=method.rank,
        lora_alpha=int(method.alpha),
        lora_dropout=0.0,
        target_modules=ROLE_NAMES[family],
        task_type="SEQ_CLS",
    )
    twin = peft.get_peft_model(classifier(family), config)
    parameters = dict(twin.named_parameters())
    for name, layer in lora_layers(model).items():
        for theirs, ours in (("lora_A", layer.lora_a), ("lora_B", layer.lora_b)):
            with torch.no_grad():
                parameters[f"base_model.model.{name}.{theirs}.default.weight"].copy_(ours)
    return twin.double().eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers, asked by peft
def test_against_peft(family: str) -> None:
    method = LoRA(rank=4, alpha=16.0, dropout=0.0)
    ours = with_random_b(method.edit_model(classifier(family)))
    theirs = peft_twin(ours, family, method)
    inputs = random_batch([5, 9, 3]).per_token
    mine, reference = ours(**inputs).logits, theirs(**inputs).logits
    assert deviation(mine, reference) < 1e-10

    mine.square().sum().backward()
    reference.square().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if ".lora_" in name}
    assert len(gradients) == 2 * len(lora_layers(ours)) > 0
    for name, layer in lora_layers(ours).items():
        for their_name, matrix in (("lora_A", layer.lora_a), ("lora_B", layer.lora_b)):
            expected = gradients[f"base_model.model.{name}.{their_name}.default.weight"]
            assert matrix.grad is not None
            assert deviation(matrix.grad, expected) < 1e-10

    merged, their_merged = method.merge(copy.deepcopy(ours)), theirs.merge_and_unload()
    for name in lora_layers(ours):
        difference = merged.get_submodule(name).weight - their_merged.get_submodule(name).weight
        assert float(difference.detach().abs().max()) < 1e-10


def test_training_starts_at_the_pretrained_model_exactly() -> None:
    inputs = random_batch([5, 9, 3]).per_token
    assert torch.equal(classifier()(**inputs).logits, LoRA().edit_model(classifier())(**inputs).logits)


def test_dropout_acts_on_the_branch_only() -> None:
    method = LoRA(rank=4, dropout=0.5)
    layer = next(iter(lora_layers(with_random_b(method.edit_model(classifier()))).values())).train()
    x = torch.randn(200, 16, dtype=torch.float64)
    with torch.no_grad():
        layer.lora_a.zero_()
    assert torch.equal(layer(x), layer.base(x))


def test_a_merged_model_has_the_pretrained_modules_and_the_same_outputs() -> None:
    method = LoRA(rank=4)
    tuned = with_random_b(method.edit_model(classifier()))
    inputs = random_batch([5, 9, 3]).per_token
    before = tuned(**inputs).logits
    merged = method.merge(copy.deepcopy(tuned))
    assert deviation(merged(**inputs).logits, before) < 1e-10
    assert [type(m) for m in merged.modules()] == [type(m) for m in classifier().modules()]


@pytest.mark.parametrize(("target", "number"), [("attention", 8), ("feed_forward", 4), ("all", 12), (["query"], 2)])
def test_targets(target: Any, number: int) -> None:
    model = LoRA(rank=2, target_modules=target).edit_model(classifier())
    assert len(lora_layers(model)) == number


def test_a_name_that_matches_nothing_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'quary' matches no linear layer .*(\n.*)*did you mean 'query'"):
        LoRA(target_modules=["query", "quary"]).edit_model(classifier())


def test_a_rank_above_the_layer_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"methods\.lora\.rank: rank 17 is larger than"):
        LoRA(rank=17).edit_model(classifier())


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers, asked by peft
def test_the_saved_folder_loads_in_peft(tmp_path: Path, family: str) -> None:
    method = LoRA(rank=4)
    base = classifier(family)
    head = {name for name, _ in base.named_parameters() if name.startswith("classifier")}
    tuned = with_random_b(method.edit_model(base))
    with torch.no_grad():
        for name in head:
            tuned.get_parameter(name).add_(0.5)
    method.save(tuned, tmp_path, "base", head)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4
    loaded = peft.PeftModel.from_pretrained(classifier(family), tmp_path).double().eval()
    inputs = random_batch([5, 9, 3]).per_token
    assert deviation(loaded(**inputs).logits, tuned(**inputs).logits) < 1e-10


def test_only_the_matrices_are_its_own() -> None:
    method = LoRA(rank=4)
    model = method.edit_model(classifier())
    names = method.trainable(model)
    assert names is not None
    surgery.freeze_except(model, names)
    assert surgery.count_parameters(model, 1).trainable == 8 * 4 * (16 + 16)
