"""A data set and a model so small that a run takes a second, both as files that a spec names."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from harness.catalogue import builtin

WORDS = ["good", "bad", "the screen", "was", "never", "again", "a very nice one", "terrible"]


def overrides(folder: Path) -> list[str]:
    """What names them: a csv with 60 texts, and a two-layer BERT with dropout under a real tokenizer."""
    rows = [f"{i} {' '.join(WORDS[(i * k) % 8] for k in range(1, 2 + i % 7))},{'ab'[i % 2]}" for i in range(60)]
    (folder / "own.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    settings = {"initializer_range": 0.3}  # so that every layer matters to the logits
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=30522, **sizes, **settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "model")
    for path in builtin.model_path("minilm").glob("*"):
        if "token" in path.name or path.name == "vocab.txt":
            shutil.copy(path, folder / "model" / path.name)
    return [f"data.name={folder / 'own.csv'}", f"model.name={folder / 'model'}", "data.max_test_overlap=1.0"]
