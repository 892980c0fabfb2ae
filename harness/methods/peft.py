"""Any tuner of the PEFT library, by PEFT's own names, so that its methods stand in the same table as ours.

    peft: {type: IA3, config: {target_modules: [key, value]}}

`type` is PEFT's `peft_type`, `config` the fields of the configuration class of that type. The tuner's layers are
injected into the model; the new head trains whole, as under every method.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, PrivateAttr, model_validator
from torch import nn

from harness import surgery
from harness.errors import ModelError, SpecError, did_you_mean
from harness.method import Method

ADAPTER = "default"
"""The name PEFT gives an adapter when none is asked for; it stands in the names of parameters."""


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """Every layer of a PEFT tuner, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


class Peft(Method):
    """A tuner of the PEFT library."""

    not_after: ClassVar[dict[str, str]] = {
        "lora": "PEFT would wrap the layers of LoRA instead of the pretrained ones",
        "bottleneck_adapter": "PEFT would also wrap the adapters' own layers",
    }

    type: str = Field(min_length=1)
    """PEFT's name of the method, such as IA3, LOHA or VERA; upper or lower case."""
    config: dict[str, Any] = {}
    """Settings of that type by PEFT's own names."""
    _parameters: list[nn.Parameter] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _known(self) -> Peft:
        known = {str(found.value) for found in CONFIGS}
        if self.type.upper() not in known:
            fix = did_you_mean(self.type.upper(), known)
            raise SpecError(f"PEFT has no type '{self.type}'", where="methods.peft.type", fix=fix)
        fields = {field.name for field in dataclasses.fields(CONFIGS[self.type.upper()])}
        for key in self.config:
            if key not in fields:
                what = f"{CONFIGS[self.type.upper()].__name__} has no such key"
                raise SpecError(what, where=f"methods.peft.config.{key}", fix=did_you_mean(key, fields))
        return self

    def edit_model(self, model: nn.Module) -> nn.Module:
        """Inject the tuner's layers. Raises ModelError with PEFT's words where PEFT refuses."""
        name = self.type.upper()
        try:
            TUNERS[name](model, CONFIGS[name](**self.config), ADAPTER)
        except (ValueError, TypeError) as error:
            raise ModelError(f"PEFT cannot put {name} into this model", where="methods.peft", why=str(error)) from error
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model

    def trainable(self, model: nn.Module) -> set[str] | None:
        """What PEFT added."""
        return surgery.names_of(model, self._parameters)

    def prepare(self, model: nn.Module, steps_per_epoch: int, total_steps: int) -> str:
        """Says which tuner it is and where."""
        layers = tuner_layers(model)
        return f"PEFT's {self.type.upper()} on {len(layers)} layers such as {next(iter(layers))}"

    def merge(self, model: nn.Module) -> nn.Module:
        """Replace each layer of the tuner by the layer it wraps, with the update merged in."""
        for name, layer in tuner_layers(model).items():
            layer.merge(safe_merge=True)
            surgery.replace(model, name, layer.get_base_layer())
        return model
