"""A tiny language model with a tokenizer of words, and texts of them, for the tests of both tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from harness.data.dataset import Example, Split, Splits

SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
    "bos_token": "[BOS]", "eos_token": "[EOS]",
}  # fmt: skip
WORDS = [f"w{i}" for i in range(30)]
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL.values(), *WORDS])}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (
        AutoModelForMaskedLM,
        {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24},
    ),
    "gpt2": (AutoModelForCausalLM, {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_inner": 24, "n_positions": 64}),
}


def tokenizer(**changed: Any) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **{**SPECIAL, **changed})


def checkpoint(folder: Path, family: str, **changed: Any) -> str:
    """Random weights and the tokenizer, as a folder."""
    torch.manual_seed(0)
    kind, sizes = FAMILIES[family]
    config = AutoConfig.for_model(family, vocab_size=len(VOCABULARY), **sizes)
    kind.from_config(config).save_pretrained(folder)
    tokenizer(**changed).save_pretrained(folder)
    return str(folder)


def text(length: int, offset: int = 0) -> str:
    return " ".join(WORDS[(i * i + offset) % len(WORDS)] for i in range(length))


def splits(lengths: list[int]) -> Splits:
    """Texts of so many words in each split."""
    made = [
        Split(name, [Example(f"{name}-{i}", text(n, i + 7 * k), None, None) for i, n in enumerate(lengths)], "sha256:-")
        for k, name in enumerate(("train", "validation", "test"))
    ]
    train, validation, test = made
    return Splits(train, validation, test, labels=[], source="made by hand", report={})
