from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.errors import ModelError, StorageError
from harness.methods.bottleneck_adapter import BottleneckAdapter
from harness.methods.lora import (
    LoRA,
    LoRAAttention,
    LoRALinear,
    base_state,
    load_lora_state,
    lora_layers,
    lora_state,
    save_lora_state,
)
from harness.models import surgery
from harness.optim import Train, build_optimizer
from tests.test_train import SETTINGS
from tests.toys import ALL_FAMILIES, classifier, deviation, random_batch

ROLE_NAMES = {
    "bert": ["query", "key", "value", "attention.output.dense"],
    "roberta": ["query", "key", "value", "attention.output.dense"],
    "electra": ["query", "key", "value", "attention.output.dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin"],
    "deberta-v2": [
        *("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj"), "attention.output.dense"
    ],
    "albert": ["query", "key", "value", "attention.dense"],
    "modernbert": ["Wqkv", "attn.Wo"],
    "gpt2": ["c_attn", "attn.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
}  # fmt: skip


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
        use_rslora=method.rslora,
        fan_in_fan_out=family == "gpt2",
        lora_dropout=0.0,
        target_modules=ROLE_NAMES[family],
    )
    twin = peft.get_peft_model(classifier(family), config)
    parameters = dict(twin.named_parameters())
    for name, layer in lora_layers(model).items():
        for theirs, ours in (("lora_A", layer.lora_a), ("lora_B", layer.lora_b)):
            with torch.no_grad():
                parameters[f"base_model.model.{name}.{theirs}.default.weight"].copy_(ours)
    return twin.double().eval()


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers, asked by peft
def test_against_peft(family: str, rslora: bool) -> None:
    method = LoRA(rank=4, alpha=16.0, rslora=rslora, dropout=0.0)
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


@pytest.mark.parametrize(
    ("target", "number"), [("attention", 8), ("feed_forward", 4), ("all", 12), ("head", 2), (["query"], 2)]
)
def test_targets(target: Any, number: int) -> None:
    model = LoRA(rank=2, target_modules=target).edit_model(classifier())
    assert len(lora_layers(model)) == number


def test_a_role_is_found_in_every_family() -> None:
    for family in ALL_FAMILIES:
        for role in ("attention", "feed_forward", "all", "head"):
            assert lora_layers(LoRA(rank=1, target_modules=role).edit_model(classifier(family)))


def test_the_layers_of_an_adapter_are_no_targets() -> None:
    adapted = BottleneckAdapter(size=4).edit_model(classifier())
    assert len(lora_layers(LoRA(rank=2, target_modules="all").edit_model(adapted))) == 12


def test_a_layer_that_is_wrapped_already_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"query is already wrapped by another method \(LoRALinear\)"):
        LoRA(rank=2).edit_model(LoRA(rank=2).edit_model(classifier()))


def test_a_name_that_matches_nothing_is_an_error_with_the_nearest() -> None:
    with pytest.raises(
        ModelError,
        match=r"methods\.lora\.target_modules: 'quary' matches no linear layer .*(\n.*)*did you mean 'query'",
    ):
        LoRA(target_modules=["query", "quary"]).edit_model(classifier())


def test_a_rank_above_the_layer_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"methods\.lora\.rank: rank 17 is larger than"):
        LoRA(rank=17).edit_model(classifier())


@pytest.mark.parametrize(
    ("family", "targets"),
    [("bert", "attention"), ("roberta", "all"), ("gpt2", "attention"), ("roberta", ["query", "classifier.dense"])],
)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers, asked by peft
def test_the_saved_folder_loads_in_peft(tmp_path: Path, family: str, targets: Any, rslora: bool) -> None:
    method = LoRA(rank=4, rslora=rslora, target_modules=targets)
    base = classifier(family)
    parameters = [p for name, p in base.named_parameters() if name.startswith(("classifier", "score"))]
    tuned = with_random_b(method.edit_model(base))
    head = surgery.names_of(tuned, parameters)
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


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_is_exact_to_the_bit_and_merging_twice_is_merging_once(family: str, dtype: torch.dtype) -> None:
    model = with_random_b(LoRA(rank=4).edit_model(classifier(family))).to(dtype)
    layers = lora_layers(model)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    for cycle in range(100):
        for name, layer in layers.items():
            layer.merge()
            if cycle == 0:
                once = layer.weight.clone()
                assert not torch.equal(once, before[name])
                layer.merge()
                assert torch.equal(layer.weight, once)
            layer.unmerge()
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())


def test_a_merged_layer_computes_the_same_and_refuses_to_train() -> None:
    layer = next(iter(lora_layers(with_random_b(LoRA(rank=4).edit_model(classifier()))).values()))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = layer(x)
    layer.merge()
    assert deviation(layer(x), before) < 1e-12
    with pytest.raises(RuntimeError, match="merged: call unmerge"):
        layer.train()(x)


class CountedMatmuls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += int(func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default))
        return func(*args, **(kwargs or {}))


def matmuls(model: nn.Module) -> int:
    with CountedMatmuls() as counted:
        model(**random_batch([5, 9, 3]).per_token)
    number: int = counted.number
    return number


def test_merged_it_costs_what_the_base_costs_and_unmerged_two_products_a_layer() -> None:
    model = LoRA(rank=4).edit_model(classifier())
    assert matmuls(model) == matmuls(classifier()) + 2 * len(lora_layers(model))
    assert matmuls(LoRA(rank=4).merge(model)) == matmuls(classifier())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_base_and_adapter_are_separate_states(family: str) -> None:
    model = with_random_b(LoRA(rank=4, target_modules="all").edit_model(classifier(family)))
    base, pretrained = base_state(model), classifier(family).state_dict()
    assert base.keys() == pretrained.keys()
    assert all(torch.equal(base[name], value) for name, value in pretrained.items())
    assert lora_state(model).keys() == LoRA().trainable(model)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("merged_on", ["neither", "saving", "loading"])
def test_saved_states_come_back(tmp_path: Path, family: str, merged_on: str) -> None:
    inputs, path = random_batch([5, 9, 3]).per_token, tmp_path / "lora.safetensors"
    tuned = with_random_b(LoRA(rank=4, rslora=True).edit_model(classifier(family)))
    save_lora_state(tuned, path, merge_weights=merged_on == "saving")
    fresh = classifier(family)
    if merged_on == "saving":
        fresh.load_state_dict(load_file(path))
    else:
        fresh = fresh if merged_on == "loading" else LoRA(rank=4, rslora=True).edit_model(fresh)
        load_lora_state(fresh, path, merge_weights=merged_on == "loading")
    assert bool(lora_layers(fresh)) == (merged_on == "neither")
    assert merged_on == "neither" or all(parameter.requires_grad for parameter in fresh.parameters())
    assert deviation(fresh(**inputs).logits, tuned(**inputs).logits) < 1e-10
    assert tuned.state_dict().keys() == LoRA(rank=4).edit_model(classifier(family)).state_dict().keys()


def test_a_state_of_other_layers_ranks_or_scales_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora_state(LoRA(rank=4).edit_model(classifier()), path)
    for other in (LoRA(rank=2), LoRA(rank=4, alpha=8.0), LoRA(rank=4, target_modules="all")):
        with pytest.raises(StorageError, match="layers, ranks or scales are not those of the model"):
            load_lora_state(other.edit_model(classifier()), path)
    narrow = nn.ModuleDict({"bert": nn.Linear(3, 3)})
    with pytest.raises(StorageError, match="holds no LoRA of this model"):
        load_lora_state(narrow, path, merge_weights=True)
    other_width = classifier()
    name = next(iter(lora_layers(LoRA(rank=4).edit_model(classifier()))))
    surgery.replace(other_width, name, nn.Linear(3, 3))
    with pytest.raises(StorageError, match="layers, ranks or scales are not those of the model"):
        load_lora_state(other_width, path, merge_weights=True)
    assert not lora_layers(other_width)
    with pytest.raises(StorageError, match="holds no LoRA of this model"):
        load_lora_state(LoRA(rank=4).edit_model(classifier("distilbert")), path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers, asked by peft
def test_lora_plus_gives_b_the_rate_peft_gives_it() -> None:
    method = LoRA(rank=4, learning_rate_ratio=16.0, dropout=0.0)
    model = method.edit_model(classifier())
    surgery.freeze_except(model, method.trainable(model) or ())
    train = Train.model_validate(SETTINGS)
    optimizer = build_optimizer(model, train, method.optimizer_rules(model))
    found = {tuple(p.shape): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    theirs = create_loraplus_optimizer(
        peft_twin(model, "bert", method), torch.optim.AdamW, lr=train.learning_rate, loraplus_lr_ratio=16.0
    )
    expected = {tuple(p.shape): group["lr"] for group in theirs.param_groups for p in group["params"]}
    assert found == {(4, 16): train.learning_rate, (16, 4): 16 * train.learning_rate}
    assert {shape: expected[shape] for shape in found} == found
    assert "B learns 16 times as fast as A" in method.prepare(model, train, 3)


def attentions(batch_first: bool, bias: bool) -> tuple[nn.MultiheadAttention, LoRAAttention]:
    torch.manual_seed(0)
    base = nn.MultiheadAttention(16, 4, bias=bias, batch_first=batch_first).double().eval()
    if bias:
        nn.init.normal_(base.in_proj_bias)
        nn.init.normal_(base.out_proj.bias)
    return base, LoRAAttention(copy.deepcopy(base), 2, 2.0)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", ["no", "padding", "causal", "both", "per head"])
def test_attention_as_one_unit_equals_torchs(batch_first: bool, bias: bool, masked: str) -> None:
    base, ours = attentions(batch_first, bias)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    padding = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
    masks: dict[str, Any] = {}
    if masked in ("padding", "both"):
        masks["key_padding_mask"] = padding
    if masked in ("causal", "both"):
        masks["attn_mask"] = torch.ones(5, 5).triu(1).bool()
    if masked == "per head":
        masks["attn_mask"] = torch.randn(12, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start, expected = ours(x, x, x, **masks), base(x, x, x, **masks)
    assert deviation(start[0], expected[0]) < 1e-12
    assert deviation(start[1], expected[1]) < 1e-12
    with_random_b(ours)
    tuned, merged = ours(x, x, x, **masks)[0], ours.plain()(x, x, x, **masks)[0]
    assert deviation(tuned, expected[0]) > 1e-2
    assert deviation(tuned, merged) < 1e-12


def test_lora_reaches_torchs_own_encoder_whose_fused_path_would_pass_it_by() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        tuned = LoRA(rank=2, dropout=0.0).edit_model(model)
        assert len(lora_layers(tuned)) == 8
        assert deviation(tuned(x), before) < 1e-12
        after = with_random_b(tuned)(x)
        assert deviation(after, before) > 1e-2
        assert deviation(LoRA().merge(tuned)(x), after) < 1e-12
    assert not lora_layers(tuned)


def test_dropout_of_the_branch_by_hand() -> None:
    """With A = B = I the branch is scale * dropout(x): zero or x / (1 - p), on the branch alone."""
    layer = LoRALinear(nn.Linear(8, 8).double(), rank=8, scale=1.0, dropout=0.25).train()
    with torch.no_grad():
        layer.lora_a.copy_(torch.eye(8))
        layer.lora_b.copy_(torch.eye(8))
    x = torch.randn(50, 8, dtype=torch.float64)
    branch = layer(x) - layer.base(x)
    kept = branch.abs() > 1e-12
    assert deviation(branch[kept], (x / 0.75)[kept]) < 1e-12
    assert 0 < int((~kept).sum()) < 200


def test_a_folder_that_peft_could_not_read_is_left_out(tmp_path: Path) -> None:
    method = LoRA(rank=2, target_modules=["classifier"])
    model = method.edit_model(classifier())
    method.save(model, tmp_path / "lora", "base", {"classifier.base.weight", "classifier.base.bias"})
    assert not (tmp_path / "lora").exists()
