"""Any tuner of the PEFT library (0.21), by PEFT's own names, so that its methods stand in the same table as ours.

    peft: {type: IA3, config: {target_modules: [key, value], feedforward_modules: []}}

`type` is PEFT's `peft_type`, `config` the fields of that type's configuration class. Tested, the layers on BERT,
DistilBERT and Llama, the prompts on BERT, RoBERTa and ELECTRA (of Llama, only PREFIX_TUNING):

    layers           ADAMSS BEFT BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR LORA
                     (DoRA: use_dora) MISS OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA
                     TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT
    prompt learning  PREFIX_TUNING PROMPT_TUNING P_TUNING

Refused, with the reason: types and settings that need a call, data or a loss term which no run gives them (`REFUSED`).
Hazards: many types do not start at the pretrained model exactly, or compute in float32 whatever the model's precision;
a prompt takes positions from the texts, and in BERT's kin the first virtual token, not [CLS], is what the head reads;
a configuration without `target_modules` takes PEFT's defaults for the architecture, where it has some.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor, nn

from harness import storage
from harness.errors import ModelError, SpecError, did_you_mean
from harness.method import Method
from harness.models import surgery
from harness.optim import Train

CONFIGS: dict[str, Any] = {str(kind.value): found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
TUNERS: dict[str, Any] = {str(kind.value): found for kind, found in PEFT_TYPE_TO_TUNER_MAPPING.items()}
"""PEFT's classes by the name of the type."""

ADAPTER = "default"
"""The name PEFT gives an adapter when none is asked for; it stands in the names of parameters."""

PROMPTS = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
"""Prompt learning: virtual tokens, or their keys and values, before every text."""

_LANGUAGE_MODELS = "PEFT has it for language models that generate"
_TASK_IDS = "every example would need the number of its task"
REFUSED = {
    "ADALORA": "its ranks change between steps, by a call and a loss term that PEFT leaves to the training loop",
    "ADAPTION_PROMPT": _LANGUAGE_MODELS,
    "CARTRIDGE": _LANGUAGE_MODELS,
    "CPT": _LANGUAGE_MODELS,
    "LILY": "its router averages over all tokens of a forward: the gradient would depend on how the batch is cut",
    "MULTITASK_PROMPT_TUNING": _TASK_IDS,
    "POLY": _TASK_IDS,
    "SHADOW": _LANGUAGE_MODELS,
    "XLORA": "it mixes LoRA adapters that are trained already",
}
"""Types that would silently be something else here, or nothing."""

_IN_NO_RUN = "it takes effect only with data or a call that no run gives it"
REFUSED_KEYS: dict[str, dict[str, str]] = {
    "": {
        "auto_mapping": "it says how a saved adapter is found, and is written by `save`",
        "base_model_name_or_path": "it is `model.name`",
        "inference_mode": "what trains is for the run to decide",
        "layer_replication": "it makes another model; what is compared would no longer be the method",
        "modules_to_save": "the new head always trains whole, and the pretrained model stays frozen",
        "peft_type": "it is `methods.peft.type`",
        "peft_version": "it is written by `save`",
        "revision": "it is `model.revision`",
        "target_parameters": "it reaches weights outside layers, which merging and saving here do not",
        "task_type": "it follows from the task",
        "trainable_token_indices": "it is a method of its own: type TRAINABLE_TOKENS",
    },
    "ADAMSS": {"use_asa": "the subspaces change between steps by a call that PEFT leaves to the training loop"},
    "LORA": dict.fromkeys(("arrow_config", "corda_config", "eva_config", "lora_ga_config", "loftq_config"), _IN_NO_RUN)
    | {
        "alora_invocation_tokens": _LANGUAGE_MODELS,
        "megatron_config": "its layers are those of another library",
        "monteclora_config": "it has a loss term of its own, which PEFT leaves to the training loop",
        "runtime_config": "it is no setting of the method",
    },
}
"""Keys that a run decides, or that would have no effect; under "" those of every type."""

_DATA_STARTS = ("corda", "eva", "loftq", "lora_ga")


class _Prompts(surgery.Added, nn.ModuleDict):
    """PEFT's prompt encoders, marked as added: their layers are no targets of other methods."""


class Peft(Method):
    """A tuner of the PEFT library."""

    not_after: ClassVar[dict[str, str]] = {
        "lora": "PEFT would take the layers of LoRA for pretrained ones",
        "bottleneck_adapter": "PEFT would take the layers of the adapters for pretrained ones",
    }

    type: str = Field(min_length=1)
    """PEFT's name of the method, such as IA3, LOHA or VERA; upper or lower case."""
    config: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings of that type by PEFT's own names."""

    _parameters: list[nn.Parameter] = PrivateAttr(default_factory=list)
    _merges: bool = PrivateAttr(True)
    _shared: list[str] = PrivateAttr(default_factory=list)

    @property
    def kind(self) -> str:
        """The type as PEFT writes it."""
        return self.type.upper()

    @model_validator(mode="after")
    def _check(self) -> Peft:
        """Raise SpecError for a type or key that PEFT does not have, or that is refused."""
        if self.kind not in CONFIGS:
            fix = did_you_mean(self.kind, CONFIGS.keys() - REFUSED.keys())
            raise SpecError(f"PEFT has no type '{self.type}'", where="methods.peft.type", fix=fix)
        if self.kind in REFUSED:
            raise SpecError(f"{self.kind} is not for this harness", where="methods.peft.type", why=REFUSED[self.kind])
        fields = {field.name for field in dataclasses.fields(CONFIGS[self.kind])}
        refused = REFUSED_KEYS[""] | REFUSED_KEYS.get(self.kind, {})
        for key, value in self.config.items():
            where = f"methods.peft.config.{key}"
            if key not in fields:
                fix = did_you_mean(key, fields - refused.keys())
                raise SpecError(f"PEFT's {CONFIGS[self.kind].__name__} has no such key", where=where, fix=fix)
            if key in refused:
                raise SpecError("not to be set here", where=where, why=refused[key])
            if key == "init_lora_weights" and str(value).startswith(_DATA_STARTS):
                raise SpecError(f"'{value}' is not for this harness", where=where, why=_IN_NO_RUN)
        try:
            self._configuration()
        except (ValueError, TypeError, ImportError) as error:
            what = f"PEFT's {CONFIGS[self.kind].__name__} refuses these settings"
            raise SpecError(what, where="methods.peft.config", why=str(error)) from error
        return self

    def _configuration(self) -> Any:
        """PEFT's configuration, a new one each time: PEFT writes into it."""
        task_type = {"task_type": "SEQ_CLS"} if self.kind in PROMPTS else {}
        return CONFIGS[self.kind](**copy.deepcopy(self.config), **task_type)

    @property
    def starts_pretrained(self) -> bool:
        """Depends on the type and its configuration, and PEFT does not tell."""
        return False

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Inject the tuner's layers, or put the prompt around the model.

        Raises:
            ModelError: a target matches nothing, PEFT refuses (in its words), or the model cannot take this prompt.
        """
        names = sorted({name.rsplit(".", 1)[-1] for name in surgery.layers(model)})
        self._check_targets(model, names)
        try:
            if self.kind in PROMPTS:
                model = _prompted(model, self._configuration())
            else:
                tuner = TUNERS[self.kind](model, self._configuration(), ADAPTER)
                self._merges = any(plain(copy.deepcopy(layer)) is not None for layer in tuner_layers(model).values())
                self._shared = [name for name, _ in tuner.named_children() if name != "model"]
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError) as error:
            what = f"PEFT cannot put {self.kind} into {type(model).__name__}"
            fix = f"see methods.peft.config; layers of this model: {', '.join(names)}"
            raise ModelError(what, where="methods.peft", why=str(error), fix=fix) from error
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model

    def _check_targets(self, model: nn.Module, names: list[str]) -> None:
        """PEFT is content if one of several targets matches."""
        targets = self.config.get("target_modules")
        modules = [name for name, _ in model.named_modules()]
        for target in targets if isinstance(targets, list) else []:
            if not any(name == target or name.endswith(f".{target}") for name in modules):
                what = f"'{target}' matches no module of {type(model).__name__}"
                fix = did_you_mean(str(target), names)
                raise ModelError(what, where="methods.peft.config.target_modules", fix=fix)

    def trainable(self, model: nn.Module) -> set[str] | None:
        """What PEFT lets train."""
        return surgery.names_of(model, self._parameters)

    def prepare(self, model: nn.Module, train: Train, steps_per_epoch: int) -> str:
        """Says which tuner it is and where."""
        if self.kind in PROMPTS:
            tokens = _settings(model).num_virtual_tokens
            return f"PEFT's {self.kind}, {tokens} virtual tokens before every text"
        layers = tuner_layers(model)
        return f"PEFT's {self.kind} on {len(layers)} layers such as {next(iter(layers))}"

    @property
    def can_merge(self) -> bool:
        """A prompt stays before the text, and a bias (BEFT) stays beside a layer that has none."""
        return self._merges and self.kind not in PROMPTS

    def merge(self, model: nn.Module) -> nn.Module:
        """Replace each layer of the tuner by the layer it wraps, with the update merged in, where it can be."""
        for name, layer in tuner_layers(model).items():
            if (merged := plain(layer)) is not None:
                surgery.replace(model, name, merged)
        if not tuner_layers(model) and self.kind not in PROMPTS and hasattr(model, "peft_config"):
            del model.peft_config
        return model

    def save(self, model: nn.Module, folder: Path, base_model: str, head: set[str]) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained` reads.

        A layer of the new head that the tuner wraps is saved merged and whole, as PEFT saves the rest of the head. The
        folder is left out for FROD: its layers know only their own share of what PEFT would save.
        """
        if self.kind == "FROD":
            return
        prompted = isinstance(model, PeftModel)
        inner: Any = model.base_model if prompted else model
        prefix = "base_model." if prompted else "base_model.model."
        shell = model if prompted else _shell(model, self.kind, self._shared)
        whole = _head_state(model, head)
        wrapped = tuple(f"{prefix}{n}." for n in tuner_layers(model) if f"{n}.base_layer.weight" in head)
        state: dict[str, Tensor] = get_peft_model_state_dict(shell, save_embedding_layers=False)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(wrapped)}
        state |= {f"{prefix}{name}": tensor for name, tensor in whole.items()}
        storage.write_tensors(folder / "adapter_model.safetensors", {n: t.detach().clone() for n, t in state.items()})
        config = copy.deepcopy(_settings(model))
        config.task_type = surgery.peft_task_type(inner)
        config.modules_to_save = sorted({surgery.owner(inner, name) for name in whole})
        config.base_model_name_or_path, config.inference_mode = base_model, True
        config.save_pretrained(str(folder))


def _head_state(model: nn.Module, head: set[str]) -> dict[str, Tensor]:
    """The head's parameters by the names they have in the pretrained model, merged where a tuner is around them."""
    parameters = dict(model.named_parameters())
    for name, layer in tuner_layers(model).items():
        if f"{name}.base_layer.weight" in head:
            merged = plain(copy.deepcopy(layer))
            values = {} if merged is None else dict(merged.named_parameters())
            parameters |= {f"{name}.base_layer.{part}": value for part, value in values.items()}
    return {surgery.pretrained_name(name).removeprefix("base_model."): parameters[name] for name in head}


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """Every layer of a PEFT tuner, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _settings(model: Any) -> Any:
    """The configuration that PEFT keeps at the model it has edited."""
    return model.peft_config[ADAPTER]


def plain(layer: Any) -> nn.Module | None:
    """The layer that a tuner's layer wraps, with the update merged in, in place; None where PEFT cannot merge it."""
    base: nn.Module
    try:
        if hasattr(layer, "unload_and_optionally_merge_module"):  # nn.MultiheadAttention
            base = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            layer.merge()
            base = layer.get_base_layer()
    except (ValueError, NotImplementedError):
        return None
    return base


def _prompted(model: nn.Module, config: Any) -> nn.Module:
    """PEFT's wrapper around the model, with the head as it was: PEFT would train a copy of it."""
    if config.peft_type != "PREFIX_TUNING" and hasattr(model, "score"):
        raise ValueError("this model reads the last token, which it cannot tell from padding when given a prompt")
    parts = (model, *model.children())
    if config.peft_type == "PREFIX_TUNING" and not any("past_key_values" in _arguments(part) for part in parts):
        raise ValueError("this model takes no past_key_values, which a prefix needs")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # transformers, asked by PEFT
        wrapped: Any = get_peft_model(model, config)
    for name, module in list(wrapped.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            surgery.replace(wrapped, name, module.original_module)
    wrapped.prompt_encoder = _Prompts(wrapped.prompt_encoder)
    return wrapped  # type: ignore[no-any-return]


def _arguments(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _shell(model: nn.Module, kind: str, shared: list[str]) -> nn.Module:
    """The model by the names it has inside a `PeftModel`, where what layers share (VeRA's A and B) is the tuner's."""
    shell, tuner = nn.Module(), TUNERS[kind].__new__(TUNERS[kind])
    nn.Module.__init__(tuner)  # an empty tuner: PEFT knows by its class whose the shared parts are
    shell.base_model, tuner.model = tuner, model
    shell.peft_config = model.peft_config
    layer = next(iter(tuner_layers(model).values()))
    for name in shared:
        tuner.add_module(name, getattr(layer, name))
    return shell
