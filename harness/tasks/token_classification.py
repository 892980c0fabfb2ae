"""Tag the words of a sentence, such as names in it. Legend: B windows, T tokens, L tags, W words.

A word's tag is learnt and predicted at its first token. A sentence longer than `max_length` tokens is read in windows
that overlap; each word is learnt and predicted once, in the window that shows the most tokens on its poorer side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from harness import losses, notes
from harness.batch import Batch, cut, overhead_tokens
from harness.data.dataset import Data, Example, Split, Splits
from harness.errors import DataError, ModelError
from harness.extraction import windows
from harness.extraction.tagging import Tags
from harness.models import pretrained, tokenizing
from harness.models.model import Model
from harness.models.pretrained import WithHead
from harness.predictions import Tagged
from harness.task import Task
from harness.yardsticks import tag_baselines

_WHERE = "task.token_classification"
_UNSEEN = -30.0
"""The logits of all tags but `O` for a word that the tokenizer leaves nothing of; that of `O` is 0."""


@dataclass(frozen=True)
class _Window:
    """Some words of a sentence, as tokens."""

    row: pretrained.Row
    places: list[tuple[int, int]]
    """Words that are learnt and predicted here: number in the sentence, and place of the first token."""


@dataclass(frozen=True)
class _Encoded:
    """A text as tokens, and the word of each, None of a token that belongs to none."""

    row: pretrained.Row
    owners: list[int | None]


class TokenClassification(Task):
    """One tag per word; loss: cross-entropy averaged over words."""

    labelling = Tags()
    headline: ClassVar[dict[str, str]] = {"entity_f1": "entity F1", "tag_accuracy": "tag accuracy"}

    max_length: int = Field(default=128, ge=8)
    """Tokens of a window; longer sentences are read in several, and nothing of them is lost."""
    overlap: int = Field(default=32, ge=0)
    """Tokens that neighbouring windows of a sentence share, about; less than half of `max_length`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over all tags (Szegedy et al. 2016, arXiv 1512.00567)."""
    pad_token: str | None = None
    """For a tokenizer without one: the existing token to pad with."""

    _tokenizer: Any = PrivateAttr(None)
    _splits: dict[str, Split] = PrivateAttr(default_factory=dict)
    _labels: list[str] = PrivateAttr(default_factory=list)
    _windows: dict[str, list[list[_Window]]] = PrivateAttr(default_factory=dict)
    _loaded: WithHead | None = PrivateAttr(None)

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """Tokenise all splits; returns the tokens, longest and truncated rows of each, how many rows are read in
        several windows, and how many words have no token.

        Raises:
            ModelError: the tokenizer cannot be loaded, cannot tell words apart, or has no pad token.
            DataError: a sentence without any token.
        """
        self._open_tokenizer(model, lambda: (" ".join(example.label[0]) for example in splits.train.examples))
        self._splits = {split.name: split for split in (splits.train, splits.validation, splits.test)}
        self._labels = splits.labels
        return {name: self._encode(name, split) for name, split in self._splits.items()}

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """Tokenise them as the split `inputs`; the facts and errors of `load_data`."""
        self._open_tokenizer(model)
        self._splits, self._labels = {"inputs": Split("inputs", examples, "")}, labels
        return self._encode("inputs", self._splits["inputs"])

    def _open_tokenizer(self, model: Model, texts: Callable[[], Iterable[str]] | None = None) -> None:
        self._tokenizer = tokenizing.load(model, texts)
        if not self._tokenizer.is_fast:
            what = f"the tokenizer of '{model.name}' does not say which tokens are of which word"
            raise ModelError(what, where="model.name", fix="take a model whose tokenizer has a tokenizer.json")
        pretrained.set_pad_token(self._tokenizer, self.pad_token, model.name, f"{_WHERE}.pad_token")
        room = self.max_length - self._tokenizer.num_special_tokens_to_add()
        if 2 * self.overlap >= room:
            what = f"windows of {room} tokens cannot share {self.overlap} with each neighbour"
            raise DataError(what, where=f"{_WHERE}.overlap", fix=f"set it to {(room - 1) // 2} or less")

    def _encode(self, name: str, split: Split) -> dict[str, Any]:
        sentences = [example.label[0] for example in split.examples]
        encoded = self._tokens(sentences)
        pairs = zip(encoded, sentences, strict=True)
        self._windows[name] = [[_window(text, range(len(words)))] for text, words in pairs]
        long = [i for i, text in enumerate(encoded) if len(text.row["input_ids"]) > self.max_length]
        truncated = 0
        for i in long:
            self._windows[name][i], is_truncated = self._cut(sentences[i], encoded[i])
            truncated += is_truncated
        rows = [window.row["input_ids"] for window in chain(*self._windows[name])]
        if empty := [e.id for e, text in zip(split.examples, encoded, strict=True) if not text.row["input_ids"]]:
            what = f"row {empty[0]} of {name} has no tokens"
            raise DataError(what, where="data.text", fix="leave it out, or take a checkpoint whose tokenizer reads it")
        lost = sum(map(len, sentences)) - sum(len(window.places) for window in chain(*self._windows[name]))
        if lost:
            notes.note(f"{lost} words of {name} are nothing to the tokenizer: they are predicted O, and not learnt")
        return {
            "tokens": sum(map(len, rows)), "longest": max(map(len, rows)), "truncated": truncated,
            "in_windows": len(long), "words_without_tokens": lost,
        }  # fmt: skip

    def _tokens(self, sentences: Sequence[Sequence[str]], **options: Any) -> list[_Encoded]:
        """Sentences as tokens: their words with spaces between them, and the word of each token."""
        texts = [" ".join(words) for words in sentences]
        given = {"return_attention_mask": True, "return_offsets_mapping": True, "verbose": False}
        columns = dict(self._tokenizer(texts, **given, **options))
        offsets = columns.pop("offset_mapping")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [_Encoded(row, _owners(*of)) for row, *of in zip(rows, sentences, offsets, strict=True)]

    def _cut(self, words: Sequence[str], whole: _Encoded) -> tuple[list[_Window], bool]:
        """The windows of a long sentence, and whether tokens of a word longer than a window are left out."""
        sizes, ownerless = [0] * len(words), 0
        for owner in whole.owners:
            ownerless += owner is None
            if owner is not None:
                sizes[owner], ownerless = sizes[owner] + 1 + ownerless, 0
        room = self.max_length - self._tokenizer.num_special_tokens_to_add()
        parts = windows.lay(sizes, room, self.overlap)
        encoded = self._tokens([words[a:b] for a, b in parts], truncation=True, max_length=self.max_length)
        mine: list[list[int]] = [[] for _ in parts]
        for word, number in enumerate(windows.owners(sizes, parts)):
            mine[number].append(word)
        found = [_window(text, of, start) for text, of, (start, _) in zip(encoded, mine, parts, strict=True)]
        return found, max(sizes) > room

    def load_model(self, model: Model) -> nn.Module:
        """Pretrained weights in float32 with a new head for this task's tags.

        Raises:
            ModelError: it cannot be loaded, its weights are not those of its config, or it reads shorter texts only.
        """
        self._loaded = pretrained.load_with_head("token_classification", model, self._labels, self._tokenizer)
        loaded = self._loaded.model
        of_all = list(chain.from_iterable(chain(*self._windows.values())))
        longest = max(len(window.row["input_ids"]) for window in of_all)
        where = f"{_WHERE}.max_length", "longer sentences are read in several windows"
        pretrained.check_length(loaded, self._tokenizer, longest, model.name, *where)
        for sentences in self._windows.values():
            sentences[:] = [[replace(w, row=pretrained.readable(loaded, w.row)) for w in of] for of in sentences]
        return loaded

    def head(self, model: nn.Module) -> set[str]:
        """Everything outside the pretrained base, and whatever the checkpoint had no values for."""
        assert self._loaded
        return self._loaded.head(model)

    def answer_columns(self, labels: list[str]) -> list[str]:
        """The entities as a line, how sure the least sure word is, and each entity with its place."""
        return ["predicted", "confidence", "entities"]

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """The most frequent tag of each word, a list of the names of train, logistic regression on spelling."""
        return tag_baselines.of_tags(splits)

    def num_rows(self, split: str) -> int:
        """Sentences of a split."""
        return len(self._windows[split])

    def train_lengths(self) -> list[int]:
        """Tokens of each sentence, in all of its windows."""
        return [sum(len(window.row["input_ids"]) for window in of) for of in self._windows["train"]]

    def batch(self, split: str, rows: list[int]) -> Batch:
        """All windows of these sentences, with the tags of their words."""
        examples, of = self._splits[split].examples, self._windows[split]
        tagged = [(window, examples[i].label[1]) for i in rows for window in of[i]]
        per_token = pretrained.padded(self._tokenizer, [window.row for window, _ in tagged])
        labels = torch.full_like(per_token["input_ids"], losses.IGNORE)
        for number, (window, tags) in enumerate(tagged):
            for word, place in window.places:
                labels[number, place] = tags[word]
        lengths = torch.tensor([len(window.row["input_ids"]) for window, _ in tagged])
        return Batch(lengths, per_token | {"labels": labels}, {})

    def count(self, batch: Batch) -> dict[str, float]:
        """Words; 1 if there is none, so that such a batch has the loss 0."""
        return {"words": max(1.0, losses.count_targets(batch.per_token["labels"]))}

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        """The micro-batch's share of the batch's cross-entropy."""
        labels = micro.per_token["labels"]  # [B, T]
        inputs = {name: tensor for name, tensor in micro.per_token.items() if name != "labels"}
        logits = _logits(model, inputs)  # [B, T, L]
        return losses.cross_entropy_sum(logits, labels, label_smoothing=self.label_smoothing) / units["words"]

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Tagged:
        """Logits in float32 for each word of these rows, in their order; the windows are computed sorted by length."""
        device = next(model.parameters()).device
        examples = [self._splits[split].examples[row] for row in rows]
        starts = np.cumsum([0, *(len(example.label[0]) for example in examples)]).tolist()
        scores = torch.full((starts[-1], len(self._labels)), _UNSEEN)
        scores[:, 0] = 0.0
        of = self._windows[split]
        parts = [(window, start) for row, start in zip(rows, starts, strict=False) for window in of[row]]
        model.eval()
        with torch.inference_mode():
            lengths = [len(window.row["input_ids"]) for window, _ in parts]
            for chunk in cut(lengths, budget, overhead_tokens(device)):
                some = [parts[i] for i in chunk]
                inputs = pretrained.padded(self._tokenizer, [window.row for window, _ in some])
                logits = _logits(model, {name: x.to(device) for name, x in inputs.items()}).float().cpu()  # [B, T, L]
                for own, (window, start) in zip(logits, some, strict=True):
                    for word, place in window.places:
                        scores[start + word] = own[place]
        return Tagged(
            np.array([tag for example in examples for tag in example.label[1]], dtype=np.int64),
            scores.double().numpy(),
            self._labels,
            [example.label[0] for example in examples],
            [{"id": example.id, "text": example.text} for example in examples],
        )

    def example(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Ordinary tokens of the training texts at random, framed as texts are, unpadded. [batch_size, length]"""
        rows = [window.row for window in chain(*self._windows["train"][:1000])]
        return pretrained.ordinary(self._tokenizer, rows, batch_size, length)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tokenizer, and the model's configuration with its tags."""
        pretrained.save(model, self._tokenizer, folder)


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Of the real tokens: a method may put tokens of its own before them (prompt tuning). [B, T] each -> [B, T, L]"""
    logits: Tensor = model(**inputs).logits
    return logits[:, -inputs["input_ids"].shape[1] :]


def _owners(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The word of each token, by where the token ends in the words with spaces between them; None: of no word."""
    of_character: list[int | None] = []
    for number, word in enumerate(words):
        of_character += [*([number] * len(word)), None]
    return [of_character[end - 1] if end > start else None for start, end in offsets]


def _window(text: _Encoded, words: Iterable[int], start: int = 0) -> _Window:
    """A text that begins with the word `start` of its sentence, responsible for these words."""
    first: dict[int, int] = {}
    for place, owner in enumerate(text.owners):
        if owner is not None:
            first.setdefault(owner + start, place)
    return _Window(text.row, [(word, first[word]) for word in words if word in first])
