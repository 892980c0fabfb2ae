"""A pretrained Transformer, or one of random weights, with a new head: what tasks on encoders have in common."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from harness.catalogue import hub
from harness.errors import ModelError
from harness.models.model import Model

Row = dict[str, list[int]]
"""The tokens of one text: model input -> a value per token."""


Kind = Literal["sequence_classification", "token_classification"]


def set_pad_token(tokenizer: Any, wanted: str | None, checkpoint: str, where: str) -> None:
    """See that there is one: the tokenizer's own, or else an existing token. Raises ModelError."""
    if tokenizer.pad_token is not None:
        return
    if wanted not in (known := tokenizer.get_vocab()):
        usual = (tokenizer.eos_token, tokenizer.unk_token, *known)
        what = f"the tokenizer of '{checkpoint}' has no pad token"
        what += f", and no token {wanted!r} to take its place" if wanted else ""
        fix = f"name an existing token to pad with, such as {next(token for token in usual if token)}"
        raise ModelError(what, where=where, fix=fix)
    tokenizer.pad_token = wanted


@dataclass(frozen=True)
class WithHead:
    """A model as it was loaded."""

    model: nn.Module
    new: set[str]
    """Names of the parameters that the checkpoint had no values for."""

    def head(self, model: nn.Module) -> set[str]:
        """Everything outside the pretrained base, and whatever the checkpoint had no values for."""
        names = {name for name, _ in model.named_parameters()}
        return {n for n in names if n in self.new or not n.startswith(f"{model.base_model_prefix}.")}


def load_with_head(kind: Kind, model: Model, labels: Sequence[str], tokenizer: Any) -> WithHead:
    """Pretrained weights in float32 with a new head for these labels; of `builtin:transformer` all are new.

    Raises:
        ModelError: it cannot be loaded, or its weights are not those of its config.
    """
    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if model.is_own:
        from harness.models import transformer

        sizes = {"vocab_size": len(tokenizer), "num_labels": len(labels), "pad_token_id": tokenizer.pad_token_id}
        own = transformer.build(model, kind, **sizes)
        own.config.id2label, own.config.label2id = names["id2label"], names["label2id"]
        return WithHead(own, set())
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    auto: Any = {
        "sequence_classification": AutoModelForSequenceClassification,
        "token_classification": AutoModelForTokenClassification,
    }[kind]
    loaded: Any
    with hub.explained("model", model.name), hub.quiet_loading():
        loaded, info = auto.from_pretrained(
            hub.resolve(model.name, model.revision),
            revision=model.revision,
            num_labels=len(labels),
            **names,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    misfits = {str(entry[0]) for entry in info["mismatched_keys"]}
    new = misfits | {str(name) for name in info["missing_keys"]}
    base = {name for name, _ in loaded.named_parameters() if name.startswith(f"{loaded.base_model_prefix}.")}
    if base & misfits or (base and base <= new):
        why = f"in its config, not in its weights: {', '.join(sorted(base & (misfits or base))[:3])}, ..."
        fix = "give the config.json that belongs to the weights"
        raise ModelError(f"the weights of '{model.name}' do not fit", where="model.name", why=why, fix=fix)
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return WithHead(cast(nn.Module, loaded), new)


def check_length(model: Any, tokenizer: Any, longest: int, checkpoint: str, where: str, what_else: str) -> None:
    """Raise ModelError if the model cannot read `longest` tokens; `what_else`: what becomes of longer texts."""
    positions = getattr(model.config, "max_position_embeddings", None) or -1  # -1: any number, as in XLNet
    limit = min(positions if positions > 0 else longest, tokenizer.model_max_length)
    if longest > limit:
        what = f"a text has {longest} tokens, '{checkpoint}' reads {limit}"
        raise ModelError(what, where=where, fix=f"set it to {limit}; {what_else}")


def readable(model: Any, row: Row) -> Row:
    """Without what the model does not take."""
    known = inspect.signature(model.forward).parameters
    return {name: values for name, values in row.items() if name in known}


def padded(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows of different lengths as tensors, padded on the right. [B, T] each"""
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {
        name: nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill.get(name, 0)
        )
        for name in rows[0]
    }


def ordinary(tokenizer: Any, rows: Sequence[Row], batch_size: int, length: int) -> dict[str, Tensor]:
    """Ordinary tokens of these texts at random, framed as texts are, unpadded. [batch_size, length]"""
    frame = rows[0]["input_ids"]
    seen = {token for row in rows[:1000] for token in row["input_ids"]}
    words = torch.tensor(sorted(seen - set(tokenizer.all_special_ids)) or [frame[0]])
    ids = words[torch.randint(len(words), (batch_size, length), generator=torch.Generator().manual_seed(0))]
    ids[:, 0], ids[:, -1] = frame[0], frame[-1]
    filled = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: filled.get(name, torch.zeros_like(ids)) for name in rows[0]}


def save(model: Any, tokenizer: Any, folder: Any) -> None:
    """Write the tokenizer, and the model's configuration with its labels."""
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
