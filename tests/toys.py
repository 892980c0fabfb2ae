"""Small real things for tests: two-layer models of several families, and tasks over random data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from harness import losses, registry
from harness.batch import Batch
from harness.data.dataset import Example, Splits
from harness.method import Method
from harness.models import surgery
from harness.models.model import Architecture, Model
from harness.optim import Train
from harness.predictions import Classified
from harness.task import Task

VOCABULARY = 50
_SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24},
    "roberta": {
        "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24,
        "max_position_embeddings": 64, "pad_token_id": 0,
    },
    "electra": {
        "hidden_size": 16, "embedding_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 24,
    },
    "distilbert": {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 24},
    "deberta-v2": {
        "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24,
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64,
    },
    "albert": {
        "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 24,
    },
    "modernbert": {
        "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    },
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_inner": 24, "n_positions": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2},
    "llama": {
        "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip
FAMILIES = ("bert", "roberta", "electra", "distilbert")
ALL_FAMILIES = tuple(_SIZES)
OWN = Model(
    name="builtin:transformer",
    revision=None,
    architecture=Architecture(layers=2, d_model=16, heads=2, ffn=24, vocabulary=280, max_length=64),
)
"""`builtin:transformer`, as small as the others."""


def classifier(family: str = "bert", dropout: float = 0.0, labels: int = 3) -> nn.Module:
    """A random two-layer classifier in float64."""
    names = (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
        "seq_classif_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
    )
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, num_labels=labels, **_SIZES[family], **dict.fromkeys(names, dropout)
    )
    torch.manual_seed(0)
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    return model.double().eval()


def language_model(family: str) -> nn.Module:
    """A random two-layer causal language model in float64; `grouped`: a Llama with 4 heads on 2 of keys and values."""
    more = {"num_attention_heads": 4, "num_key_value_heads": 2} if family == "grouped" else {}
    name = "llama" if family == "grouped" else family
    dropouts = dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {**_SIZES[name], **more, "initializer_range": 0.5}  # so that every layer matters to the logits
    config = AutoConfig.for_model(name, vocab_size=VOCABULARY, **sizes, **dropouts)
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.double().eval()


def language_batch(lengths: list[int], seed: int = 0) -> Batch:
    """Random texts of these lengths; of each the second half is learnt."""
    batch = random_batch(lengths, seed=seed)
    ids, labels = batch.per_token["input_ids"], torch.full((len(lengths), max(lengths)), losses.IGNORE)
    for row, length in enumerate(lengths):
        labels[row, length // 2 : length - 1] = ids[row, length // 2 + 1 : length]
    return Batch(batch.lengths, {**batch.per_token, "labels": labels}, {})


def edited(
    model: nn.Module, head: set[str], methods: dict[str, dict[str, Any]], train: Train
) -> tuple[nn.Module, list[Method]]:
    """This model under these methods, as `assembly.assemble` makes it; `head`: names of the head's parameters."""
    parameters = [model.get_parameter(name) for name in head]
    built: list[Method] = [registry.build("method", name, settings) for name, settings in methods.items()]
    for method in built:
        model = method.edit_model(model)
    own = [chosen for method in built if (chosen := method.trainable(model)) is not None]
    if own:
        surgery.freeze_except(model, surgery.names_of(model, parameters).union(*own))
    for method in built:
        method.prepare(model, train, 1)
    return model, built


def moved(model: nn.Module) -> nn.Module:
    """The same model with everything that trains some way from where it was."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 5)
    return model


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference."""
    return float((found - expected).detach().abs().max())


def random_batch(lengths: list[int], labels: int = 3, seed: int = 0, token_labels: bool = False) -> Batch:
    """Random texts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    per_token = {"input_ids": ids * mask, "attention_mask": mask}
    if token_labels:
        targets = torch.randint(0, labels, ids.shape, generator=generator)
        ignored = (mask == 0) | (torch.rand(ids.shape, generator=generator) < 0.3)
        per_token["labels"] = targets.masked_fill(ignored, losses.IGNORE)
    target = torch.randint(0, labels, (len(lengths),), generator=generator)
    return Batch(torch.tensor(lengths), per_token, {} if token_labels else {"labels": target})


class ToyTask(Task):
    """Classification of random texts, or of their tokens, from batches that are given."""

    headline: ClassVar[dict[str, str]] = {"f1_macro": "macro-F1", "accuracy": "accuracy"}

    class_weights: list[float] | None = None
    label_smoothing: float = 0.0
    token_labels: bool = False
    _batches: list[Batch] = PrivateAttr(default_factory=list)

    @property
    def weights(self) -> Tensor | None:
        return None if self.class_weights is None else torch.tensor(self.class_weights, dtype=torch.float64)

    def with_batches(self, batches: list[Batch]) -> ToyTask:
        self._batches = batches
        return self

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        return {}

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        return {}

    def load_model(self, model: Model) -> nn.Module:
        return classifier()

    def head(self, model: nn.Module) -> set[str]:
        return {name for name, _ in model.named_parameters() if name.startswith("classifier")}

    def num_rows(self, split: str) -> int:
        return sum(len(batch) for batch in self._batches)

    def train_lengths(self) -> list[int]:
        return [int(length) for batch in self._batches for length in batch.lengths]

    def batch(self, split: str, rows: list[int]) -> Batch:
        return self._batches[0].take(rows)

    def longest_batch(self, size: int) -> Batch | None:
        return None

    def num_batches(self, size: int) -> int:
        return len(self._batches)

    def batches(self, model: nn.Module, size: int, generator: torch.Generator) -> Iterator[Batch]:
        yield from self._batches

    def _labels_of(self, batch: Batch) -> Tensor:
        return batch.per_token["labels"] if self.token_labels else batch.per_example["labels"]

    def count(self, batch: Batch) -> dict[str, float]:
        return {"units": losses.count_targets(self._labels_of(batch), self.weights)}

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        inputs = {name: tensor for name, tensor in micro.per_token.items() if name != "labels"}
        logits = model(**inputs) if self.token_labels else model(**inputs).logits
        summed = losses.cross_entropy_sum(logits, self._labels_of(micro), self.weights, self.label_smoothing)
        return summed / units["units"]

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Classified:
        return Classified(np.zeros(0, dtype=np.int64), np.zeros((0, 3)), ["a", "b", "c"], [])

    def example(self, batch_size: int, length: int) -> dict[str, Tensor]:
        return {"input_ids": torch.ones(batch_size, length, dtype=torch.long)}

    def save(self, model: nn.Module, folder: Path) -> None:
        pass


class TokenTagger(nn.Module):
    """One label per token, from the encoder of the classifier."""

    def __init__(self, labels: int = 3) -> None:
        super().__init__()
        self.encoder = classifier().get_submodule("bert")
        self.tagger = nn.Linear(16, labels).double()

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.tagger(self.encoder(**inputs).last_hidden_state)
        return logits


class OutOfMemoryAbove:
    """Raises torch's own error in the backward of a weight while a micro-batch has more tokens than a limit."""

    def __init__(self, model: nn.Module, limit: int, weight: str = "classifier.weight") -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self.see, with_kwargs=True)
        model.get_parameter(weight).register_hook(self.fail)
        self.limit = limit

    def see(self, module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        self.tokens = kwargs["input_ids"].numel()

    def fail(self, grad: Tensor) -> Tensor:
        if self.tokens > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return grad
