"""Classify a text, or a pair of texts, into one of L classes. Legend: B examples, T tokens, L labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from harness import losses
from harness.batch import Batch, cut, overhead_tokens
from harness.data.dataset import Data, Example, Split, Splits
from harness.errors import DataError
from harness.models import pretrained, tokenizing
from harness.models.model import Model
from harness.models.pretrained import WithHead
from harness.predictions import Classified
from harness.task import Task
from harness.yardsticks import baselines

_WHERE = "task.sequence_classification"


class SequenceClassification(Task):
    """One label per text; loss: cross-entropy averaged over examples (or their class weights)."""

    headline: ClassVar[dict[str, str]] = {"f1_macro": "macro-F1", "accuracy": "accuracy"}

    max_length: int = Field(default=128, ge=4)
    """Longer texts are truncated to so many tokens, and counted."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: each class weighs n / (L * n_class), as in scikit-learn."""
    pad_token: str | None = None
    """For a tokenizer without one: the existing token to pad with."""

    _tokenizer: Any = PrivateAttr(None)
    _splits: dict[str, Split] = PrivateAttr(default_factory=dict)
    _labels: list[str] = PrivateAttr(default_factory=list)
    _encoded: dict[str, list[dict[str, list[int]]]] = PrivateAttr(default_factory=dict)
    _weights: Tensor | None = PrivateAttr(None)
    _loaded: WithHead | None = PrivateAttr(None)

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """Tokenise all splits; returns the tokens, longest and truncated rows of each.

        Raises:
            ModelError: the tokenizer cannot be loaded, or has no pad token.
            DataError: a text without any token.
        """
        self._open_tokenizer(model, lambda: map(_whole, splits.train.examples))
        self._splits = {split.name: split for split in (splits.train, splits.validation, splits.test)}
        self._labels = splits.labels
        report = {name: self._encode(name, split) for name, split in self._splits.items()}
        if self.class_weights == "balanced":
            counts = np.bincount([e.label for e in splits.train.examples], minlength=len(self._labels))
            self._weights = torch.tensor(len(splits.train.examples) / (len(self._labels) * counts))
        return report

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """Tokenise them as the split `inputs`; the facts and errors of `load_data`."""
        self._open_tokenizer(model)
        self._splits, self._labels = {"inputs": Split("inputs", examples, "")}, labels
        return self._encode("inputs", self._splits["inputs"])

    def _open_tokenizer(self, model: Model, texts: Callable[[], Iterable[str]] | None = None) -> None:
        self._tokenizer = tokenizing.load(model, texts)
        pretrained.set_pad_token(self._tokenizer, self.pad_token, model.name, f"{_WHERE}.pad_token")

    def _encode(self, name: str, split: Split) -> dict[str, Any]:
        columns = self._tokens(split.examples, truncation=True, max_length=self.max_length)
        self._encoded[name] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        lengths = [len(row["input_ids"]) for row in self._encoded[name]]
        if 0 in lengths:
            what = f"row {split.examples[lengths.index(0)].id} of {name} has no tokens"
            raise DataError(what, where="data.text", fix="leave it out, or take a checkpoint whose tokenizer reads it")
        full = [split.examples[i] for i, length in enumerate(lengths) if length >= self.max_length]
        whole = self._tokens(full)["input_ids"] if full else []
        truncated = sum(len(ids) > self.max_length for ids in whole)
        return {"tokens": sum(lengths), "longest": max(lengths), "truncated": truncated}

    def _tokens(self, examples: Sequence[Example], **options: Any) -> Any:
        """Columns by name, a list of token values per example; unpadded, because batches are padded on their own."""
        texts = [example.text for example in examples]
        pairs = None if examples[0].pair is None else [example.pair for example in examples]
        return self._tokenizer(texts, pairs, return_attention_mask=True, verbose=False, **options)

    def load_model(self, model: Model) -> nn.Module:
        """Pretrained weights in float32 with a new head for this task's labels.

        Raises:
            ModelError: it cannot be loaded, its weights are not those of its config, or it reads shorter texts only.
        """
        self._loaded = pretrained.load_with_head("sequence_classification", model, self._labels, self._tokenizer)
        loaded = self._loaded.model
        longest = max(len(row["input_ids"]) for rows in self._encoded.values() for row in rows)
        where = f"{_WHERE}.max_length", "longer texts are truncated and counted"
        pretrained.check_length(loaded, self._tokenizer, longest, model.name, *where)
        for rows in self._encoded.values():
            rows[:] = [pretrained.readable(loaded, row) for row in rows]
        return loaded

    def head(self, model: nn.Module) -> set[str]:
        """Everything outside the pretrained base, and whatever the checkpoint had no values for."""
        assert self._loaded
        return self._loaded.head(model)

    def answer_columns(self, labels: list[str]) -> list[str]:
        """The label, how sure, and the probability of every label."""
        return ["predicted", "confidence", *(f"probability_{label}" for label in labels)]

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """Majority class, TF-IDF, frozen embeddings; VADER and a human rater where ratings are known."""
        return baselines.of_classes(splits, data, model)

    def num_rows(self, split: str) -> int:
        """Rows of a split."""
        return len(self._encoded[split])

    def train_lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(row["input_ids"]) for row in self._encoded["train"]]

    def batch(self, split: str, rows: list[int]) -> Batch:
        """These texts with their labels."""
        encoded = [self._encoded[split][row] for row in rows]
        lengths = torch.tensor([len(row["input_ids"]) for row in encoded])
        per_token = pretrained.padded(self._tokenizer, encoded)
        labels = torch.tensor([self._splits[split].examples[row].label for row in rows])
        return Batch(lengths, per_token, {"labels": labels})

    def count(self, batch: Batch) -> dict[str, float]:
        """Examples, or the sum of their class weights."""
        return {"examples": losses.count_targets(batch.per_example["labels"], self._weights)}

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        """The micro-batch's share of the batch's cross-entropy."""
        logits = model(**micro.per_token).logits  # [B, L]
        labels = micro.per_example["labels"]
        return losses.cross_entropy_sum(logits, labels, self._weights, self.label_smoothing) / units["examples"]

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Classified:
        """Logits in float32 for these rows, computed sorted by length, returned in their order."""
        device = next(model.parameters()).device
        lengths = [len(self._encoded[split][row]["input_ids"]) for row in rows]
        scores = torch.zeros(len(rows), len(self._labels))
        model.eval()
        with torch.inference_mode():
            for chunk in cut(lengths, budget, overhead_tokens(device)):
                micro = self.batch(split, [rows[i] for i in chunk]).to(device)
                scores[chunk] = model(**micro.per_token).logits.float().cpu()
        examples = [self._splits[split].examples[row] for row in rows]
        return Classified(
            np.array([example.label for example in examples], dtype=np.int64),
            scores.double().numpy(),
            self._labels,
            [{"id": e.id, "text": e.text, **({} if e.pair is None else {"pair": e.pair})} for e in examples],
        )

    def example(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Ordinary tokens of the training texts at random, framed as texts are, unpadded. [batch_size, length]"""
        return pretrained.ordinary(self._tokenizer, self._encoded["train"], batch_size, length)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tokenizer, and the model's configuration with its labels."""
        pretrained.save(model, self._tokenizer, folder)


def _whole(example: Example) -> str:
    return example.text if example.pair is None else f"{example.text}\n{example.pair}"
