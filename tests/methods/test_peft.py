from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from harness import assembly, checkpoint
from harness.errors import ModelError, SpecError
from harness.gradients import ExactGradient
from harness.methods.lora import LoRA, lora_layers
from harness.methods.peft import CONFIGS, PROMPTS, REFUSED, Peft, tuner_layers
from harness.models import surgery
from harness.specs import spec
from tests.toys import ToyTask, classifier, deviation, random_batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # transformers, asked by peft
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension"),  # BOFT
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),  # torch, asked by FROD
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm"),  # LN_TUNING
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term"),  # BEFT
]
TRAIN = spec.load("full_finetune").train
RANK: dict[str, Any] = {"r": 4}
TYPES: dict[str, dict[str, Any]] = {
    "ADAMSS": RANK,
    "BEFT": {},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": RANK,
    "DELORA": RANK,
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {},
    "GLORA": RANK,
    "GRALORA": RANK,
    "HIRA": RANK,
    "HRA": RANK,
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "LOHA": RANK,
    "LOKR": RANK,
    "LORA": RANK | {"use_dora": True},
    "MISS": RANK,
    "OFT": {"oft_block_size": 4},
    "OSF": {},
    "PEANUT": RANK,
    "PSOFT": RANK,
    "PVERA": RANK,
    "RANDLORA": RANK,
    "ROAD": {"group_size": 4},
    "SHIRA": RANK,
    "SUPERTUNING": RANK,
    "TINYLORA": RANK,
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3], "target_modules": ["word_embeddings"]},
    "UNILORA": RANK,
    "VBLORA": {"vector_length": 4, "num_vectors": 8},
    "VERA": RANK,
    "WAVEFT": {"n_frequency": 20},
}
ONLY_FLOAT32 = {"PSOFT"}
IN_FLOAT32 = {"C3A", "DEFT"}  # the product of these is computed in float32, whatever the model's precision
PROMPT = {"num_virtual_tokens": 4, "encoder_hidden_size": 8}
LENGTHS = [3, 11, 5, 5, 8, 2, 13]


def method_of(kind: str) -> Peft:
    if kind in PROMPTS:
        return Peft(type=kind, config={k: v for k, v in PROMPT.items() if k in CONFIGS[kind].__dataclass_fields__})
    return Peft(type=kind, config={"target_modules": ["query", "value"]} | TYPES[kind])


def pretrained(kind: str, family: str = "bert") -> nn.Module:
    return classifier(family).float() if kind in ONLY_FLOAT32 else classifier(family)


def tuned(kind: str, method: Peft) -> tuple[nn.Module, set[str]]:
    """A model as it is assembled, and the names of its head."""
    model = pretrained(kind)
    head = [model.get_parameter(name) for name in ToyTask().head(model)]
    torch.manual_seed(1)
    model = method.edit_model(model)
    names, own = surgery.names_of(model, head), method.trainable(model)
    assert own
    surgery.freeze_except(model, names | own)
    return model.eval(), names


def moved(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) / 5)
    return model


def one_block(family: str) -> nn.Module:
    """A random classifier of one block, of the families whose sizes have other names."""
    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **sizes))
    return model.eval()


def bound(kind: str) -> float:
    return 1e-5 if kind in ONLY_FLOAT32 else 1e-8 if kind in IN_FLOAT32 else 1e-10


def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(**random_batch(LENGTHS).per_token).logits
    return found


def test_every_type_of_peft_is_tested_or_refused() -> None:
    assert CONFIGS.keys() == TYPES.keys() | PROMPTS | REFUSED.keys()


@pytest.mark.parametrize("kind", TYPES)
def test_a_merged_tuner_is_the_pretrained_architecture_with_the_same_outputs(kind: str) -> None:
    method = method_of(kind)
    model = moved(tuned(kind, method)[0])
    before = logits(model)
    with surgery.disabled(model):
        assert deviation(logits(model), before) > 1e-5
    merged = method.merge(copy.deepcopy(model))
    assert deviation(logits(merged), before) < bound(kind)
    assert torch.equal(logits(model), before)
    assert [type(module) for module in merged.modules()] == [type(module) for module in classifier().modules()]


@pytest.mark.parametrize("kind", [*TYPES, *sorted(PROMPTS)])
def test_saved_weights_come_back_in_a_fresh_model(kind: str, tmp_path: Path) -> None:
    model = moved(tuned(kind, method_of(kind))[0])
    checkpoint.save(checkpoint.trained_state(model), tmp_path)
    fresh = tuned(kind, method_of(kind))[0]
    checkpoint.restore(fresh, checkpoint.load(tmp_path))
    assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize("kind", [kind for kind in (*TYPES, *sorted(PROMPTS)) if kind != "FROD"])
def test_the_saved_folder_loads_in_peft(kind: str, tmp_path: Path) -> None:
    method = method_of(kind)
    model, head = tuned(kind, method)
    moved(model)
    method.save(copy.deepcopy(model), tmp_path, "base", head)
    torch.manual_seed(99)
    loaded = peft.PeftModel.from_pretrained(pretrained(kind), tmp_path).eval()
    loaded = loaded if kind in ONLY_FLOAT32 else loaded.double()
    assert deviation(logits(loaded), logits(model)) < bound(kind)


NAMES_ELSEWHERE = {
    "distilbert": {"query": "q_lin", "value": "v_lin", "LayerNorm": "sa_layer_norm"},
    "llama": {
        "query": "q_proj", "value": "v_proj", "LayerNorm": "input_layernorm", "word_embeddings": "embed_tokens",
    },
}  # fmt: skip


@pytest.mark.parametrize("family", NAMES_ELSEWHERE)
@pytest.mark.parametrize("kind", TYPES)
def test_a_tuner_fits_other_families(kind: str, family: str) -> None:
    model = one_block("llama") if family == "llama" else pretrained(kind, family)
    model = model.float() if kind in ONLY_FLOAT32 else model.double()
    names = NAMES_ELSEWHERE[family]
    targets = [names.get(name, name) for name in method_of(kind).config["target_modules"]]
    method = Peft(type=kind, config=method_of(kind).config | {"target_modules": targets})
    torch.manual_seed(1)
    model = method.edit_model(model)
    own = method.trainable(model) or set()
    logits(model).square().sum().backward()
    assert any(float(model.get_parameter(name).grad.abs().max()) > 0 for name in own)  # type: ignore[union-attr]
    surgery.freeze_except(model, own)
    before = logits(moved(model.eval()))
    merged = method.merge(copy.deepcopy(model))
    assert deviation(logits(merged), before) < 1e4 * bound(kind)
    assert torch.equal(logits(model), before)
    assert method.can_merge == (not tuner_layers(merged))
    assert method.can_merge or (kind, family) == ("BEFT", "llama"), "its bias has no place in a layer without one"


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "llama"])
@pytest.mark.parametrize("kind", sorted(PROMPTS))
def test_a_prompt_is_before_the_text_whatever_the_padding(kind: str, family: str) -> None:
    if family == "llama" and kind != "PREFIX_TUNING":
        pytest.skip("refused")
    model = one_block("llama").double() if family == "llama" else classifier(family)
    before = logits(model)
    model = method_of(kind).edit_model(model).eval()
    together = logits(model)
    assert deviation(together, before) > 1e-5
    batch = random_batch(LENGTHS).per_token
    for row, length in enumerate(LENGTHS):
        alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()}).logits
        assert deviation(alone[0], together[row]) < 1e-10


@pytest.mark.parametrize("kind", sorted(PROMPTS))
def test_a_prompt_trains_with_the_head_itself(kind: str) -> None:
    method = method_of(kind)
    model, head = tuned(kind, method)
    assert head == {"base_model.classifier.weight", "base_model.classifier.bias"}
    gradients = []
    for budget in (1_000_000, 13):
        exact = ExactGradient(Accelerator(cpu=True), moved(copy.deepcopy(model)), ToyTask(), budget)
        exact.load(random_batch(LENGTHS))
        exact()
        gradients.append({name: p.grad for name, p in exact.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == head | (method.trainable(model) or set())
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[0].values())
    # PEFT keeps prompts in float32
    assert all(deviation(gradient, gradients[1][name]) < 1e-6 for name, gradient in gradients[0].items())
    assert not method.can_merge
    assert method.merge(model) is model
    assert "4 virtual tokens" in method.prepare(model, TRAIN, 1)


@pytest.mark.parametrize("kind", sorted(PROMPTS))
def test_other_methods_leave_the_prompt_alone(kind: str) -> None:
    model = LoRA(rank=2, target_modules="all").edit_model(tuned(kind, method_of(kind))[0])
    assert len(lora_layers(model)) == 12
    assert not any("prompt_encoder" in name for name in lora_layers(model))


@pytest.mark.parametrize(
    ("family", "kind", "why"),
    [
        ("llama", "P_TUNING", "reads the last token"),
        ("llama", "PROMPT_TUNING", "reads the last token"),
        ("modernbert", "PREFIX_TUNING", "takes no past_key_values"),
        ("distilbert", "PREFIX_TUNING", "takes no past_key_values"),
    ],
)
def test_a_model_that_cannot_take_the_prompt_says_so(family: str, kind: str, why: str) -> None:
    model = classifier(family) if family == "distilbert" else one_block(family)
    with pytest.raises(ModelError, match=why):
        method_of(kind).edit_model(model)


def test_only_what_peft_added_is_its_own() -> None:
    method = Peft(type="ia3", config={"target_modules": ["key", "value"], "feedforward_modules": []})
    model, head = tuned("IA3", method)
    own = method.trainable(model) or set()
    assert {name.rsplit(".", 2)[-2] for name in own} == {"ia3_l"}
    assert sum(model.get_parameter(name).numel() for name in own) == 2 * (16 + 16)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == own | head
    assert method.prepare(model, TRAIN, 1) == ("PEFT's IA3 on 4 layers such as bert.encoder.layer.0.attention.self.key")


def test_its_own_parameters_are_followed_when_another_method_renames_them() -> None:
    method = method_of("IA3")
    model, _ = tuned("IA3", method)
    outer = nn.Sequential(model)
    assert method.trainable(outer) == {f"0.{name}" for name in method.trainable(model) or set()}


def test_other_methods_see_through_layers_that_are_not_linear() -> None:
    model, _ = tuned("LN_TUNING", method_of("LN_TUNING"))
    assert len(lora_layers(LoRA(rank=2, target_modules="all").edit_model(model))) == 12


@pytest.mark.parametrize("kind", ["LN_TUNING", "LOHA", "VERA"])
def test_switched_off_the_pretrained_model_is_left(kind: str) -> None:
    model, _ = tuned(kind, method_of(kind))
    own = [p for p in model.parameters() if p.requires_grad]
    moved(nn.ParameterList(p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n))
    before = logits(model)
    assert deviation(before, logits(classifier())) > 1e-5
    with surgery.disabled(model):
        assert torch.equal(logits(model), logits(classifier()))
    assert own == [p for p in model.parameters() if p.requires_grad]
    assert torch.equal(logits(model), before)


def test_a_tuner_on_the_new_head_is_saved_merged(tmp_path: Path) -> None:
    method = Peft(type="LORA", config={"r": 2, "target_modules": ["query", "classifier"]})
    model, head = tuned("LORA", method)
    assert head == {"classifier.base_layer.weight", "classifier.base_layer.bias"}
    method.save(moved(model), tmp_path, "base", head)
    loaded = peft.PeftModel.from_pretrained(classifier(), tmp_path).double().eval()
    assert deviation(logits(loaded), logits(model)) < 1e-10
    assert len(tuner_layers(model)) == 3
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["task_type"], written["modules_to_save"]) == ("SEQ_CLS", ["classifier"])


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("IA4", {}, r"^methods\.peft\.type: PEFT has no type 'IA4'\n  fix: did you mean 'IA3'"),
    ("adalora", {}, r"^methods\.peft\.type: ADALORA is not for this harness\n  why: its ranks change between steps"),
    ("lily", {}, r"depend on how the batch is cut"),
    ("LOHA", {"alphas": 3}, r"^methods\.peft\.config\.alphas: PEFT's LoHaConfig has no such key\n  fix: .* 'alpha'"),
    ("LOHA", {"modules_to_save": ["classifier"]}, r"modules_to_save: not to be set here\n  why: the new head always"),
    ("LOHA", {"task_type": "SEQ_CLS"}, r"task_type: not to be set here"),
    ("LOHA", {"inference_mode": True}, r"inference_mode: not to be set here"),
    ("LORA", {"init_lora_weights": "eva"}, r"init_lora_weights: 'eva' is not for this harness\n  why: it takes effect"),
    ("LORA", {"eva_config": {}}, r"eva_config: not to be set here"),
    ("ADAMSS", {"use_asa": True}, r"use_asa: not to be set here"),
    ("IA3", {"target_modules": ["key"], "feedforward_modules": ["value"]}, r"IA3Config refuses .*\n  why: .*subset"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "message"), REFUSALS, ids=lambda value: str(value)[:30])
def test_what_peft_does_not_have_and_what_would_be_something_else(
    kind: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        Peft(type=kind, config=config)


def test_a_mistake_is_told_before_anything_is_read() -> None:
    with pytest.raises(SpecError, match=r"methods\.peft\.config\.rank: PEFT's LoHaConfig has no such key"):
        assembly.load(
            spec.load("full_finetune", ["methods.peft={type: LOHA, config: {rank: 4}}", "data.name=nowhere.csv"])
        )


@pytest.mark.parametrize(
    ("config", "family", "message"),
    [
        ({}, "distilbert", r"(?s)cannot put LOHA into DistilBert.*why: Please specify `target_modules`.*q_lin"),
        ({"target_modules": "nothing"}, "bert", r"(?s)why: Target modules nothing not found.*layers of this model"),
        ({"target_modules": ["query", "quary"]}, "bert", r"'quary' matches no module .*\n  fix: did you mean 'query'"),
        ({"target_modules": ["encoder"]}, "bert", r"(?s)cannot put LOHA into Bert.*why: .*BertEncoder.* not supported"),
    ],
)
def test_peft_says_why_it_cannot(config: dict[str, Any], family: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Peft(type="LOHA", config=config).edit_model(classifier(family))
