"""Predict every token of a text from those before it. Legend: B chunks, T tokens, V tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from harness import losses, notes
from harness.batch import Batch
from harness.data.dataset import Data, Example, Splits
from harness.data.labelling import Texts
from harness.errors import DataError
from harness.language import modelling as lm
from harness.language import writing
from harness.language.chunks import Chunks, Cut
from harness.language.cleaning import Cleaning
from harness.models import tokenizing
from harness.models.model import Model
from harness.predictions import Continued, Paragraph
from harness.task import Task

_WHERE = "task.causal_lm"


class CausalLM(Task):
    """The next token; loss: cross-entropy averaged over all tokens that are predicted.

    A document stands between the tokenizer's tokens for its begin and end. A chunk of T tokens predicts T tokens: each
    token of a document but the first is a target of exactly one chunk; where chunks overlap, of the first that has it
    when the model is judged, and of all when it is trained.
    """

    labelling = Texts()
    headline: ClassVar[dict[str, str]] = {"perplexity": "perplexity"}

    chunk_length: int = Field(default=128, ge=4)
    """Tokens that are read at once."""
    overlap: float = Field(default=0.0, ge=0, lt=1)
    """Share of a chunk that is the end of the one before it."""
    across_documents: bool = False
    """Whether a chunk may hold the end of one document and the begin of the next."""
    mojibake: Literal["keep", "repair", "drop"] = "repair"
    """Lines with characters that were decoded wrongly: repaired as far as that can be done, or dropped; counted."""
    characters: Literal["all", "text"] = "text"
    """text: letters, digits, punctuation, currency and mathematical signs of all scripts; others go, counted."""
    script: str = "any"
    """Such as latin: lines with too many letters of other scripts are dropped, counted."""
    max_foreign: float = Field(default=0.3, ge=0, le=1)
    """The largest share of a line's letters that may be of other scripts than `script`."""
    language: str = "any"
    """english, spanish, german or french: lines with too few of its most frequent words are dropped, counted."""
    min_stop_words: float = Field(default=0.1, ge=0, le=1)
    """The smallest share of them among a line's words; lines of fewer than ten words are not judged."""
    paragraphs: int = Field(default=5, ge=1)
    """So many texts of a split are written on, each time it is judged."""
    prompt_tokens: int = Field(default=16, ge=1)
    """Tokens of the begin of a text that are given; fewer of a shorter one."""
    paragraph_tokens: int = Field(default=80, ge=1)
    """Tokens that are written, special ones excepted; each costs a forward pass of all paragraphs."""
    temperature: float = Field(default=1.0, gt=0)
    """Below 1 likely tokens are written more often."""
    judge: str | None = None
    """A stronger causal language model (a local folder or a Hub id) that says how coherent the paragraphs of the test
    split are; null: nobody does."""

    _tokenizer: Any = PrivateAttr(None)
    _chunks: dict[str, Chunks] = PrivateAttr(default_factory=dict)
    _ids: dict[str, list[str]] = PrivateAttr(default_factory=dict)
    _new_parameters: set[str] = PrivateAttr(default_factory=set)

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """Clean, tokenise and cut all splits; returns tokens, chunks, overlap and what cleaning did of each.

        Raises:
            ModelError: the tokenizer cannot be loaded, or has no token for the begin or the end of a text.
            DataError: a split of which nothing is left.
            SpecError: a script or language that is not known.
        """
        rules = self._rules()
        self._tokenizer = tokenizing.load(model, lambda: lm.texts(splits.train.examples, rules))
        return {
            split.name: self._read(split.name, split.examples)
            for split in (splits.train, splits.validation, splits.test)
        }

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """The same of texts whose likelihood is asked for: one row each, however long it is."""
        self._tokenizer = tokenizing.load(model)
        facts = self._read("inputs", examples)
        if odd := sorted({*range(len(examples))} - {*self._chunks["inputs"].bounds[:, 0].tolist()}):
            what = f"nothing of row {examples[odd[0]].id} is left to be predicted"
            raise DataError(what, where=_WHERE, fix="leave it out, or clean less")
        return facts

    def _rules(self) -> Cleaning:
        kept = self.mojibake, self.characters, self.script, self.max_foreign, self.language, self.min_stop_words
        return lm.check_cleaning(Cleaning(*kept), _WHERE)

    def _read(self, name: str, examples: list[Example]) -> dict[str, Any]:
        fix = "take a checkpoint whose tokenizer has one"
        before = lm.special(self._tokenizer, "bos_token", "cls_token", "eos_token", fix=fix, where="model.name")
        after = lm.special(self._tokenizer, "eos_token", "sep_token", fix=fix, where="model.name")
        across = self.across_documents and name != "inputs"
        how = Cut(self.chunk_length, self.overlap, 1, across)
        found = lm.read(name, examples, self._tokenizer, self._rules(), how, [before], [after])
        self._chunks[name] = found
        self._ids[name] = ["all"] if across else [example.id for example in examples]
        return found.facts

    def load_model(self, model: Model) -> nn.Module:
        """The model in float32. Raises ModelError: it cannot be loaded, or does not fit tokenizer or chunks."""
        longest = max(int(chunks.lengths.max()) for chunks in self._chunks.values())
        loaded, self._new_parameters = lm.load_model("causal_lm", model, self._tokenizer, longest, _WHERE)
        return loaded

    def head(self, model: nn.Module) -> set[str]:
        """What the checkpoint had no values for; nothing of an own model, all of which trains."""
        return self._new_parameters & {name for name, _ in model.named_parameters()}

    def answer_columns(self, labels: list[str]) -> list[str]:
        """How likely a text is: its tokens, nats per token, perplexity."""
        return ["tokens", "nll", "perplexity"]

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """A unigram model, and a trigram one with Kneser-Ney smoothing, on the same tokens."""
        train, test = self._chunks["train"], self._chunks["test"]
        return lm.yardsticks(train, test, 1, lm.new_tokens(test, 1), len(self._tokenizer))

    def num_rows(self, split: str) -> int:
        """Chunks of a split; of `inputs`, texts."""
        return len(self._ids[split]) if split == "inputs" else len(self._chunks[split])

    def train_lengths(self) -> list[int]:
        """Tokens of each chunk."""
        return list(map(int, self._chunks["train"].lengths))

    def batch(self, split: str, rows: list[int]) -> Batch:
        """labels[t] is the token after t; what an earlier chunk has predicted is no target, unless in training."""
        chunks, inputs, labels = self._chunks[split], [], []
        for row in rows:
            _, first, end, new = (int(value) for value in chunks.bounds[row])
            tokens = chunks.tokens[first : end + 1].astype(np.int64)
            inputs.append(tokens[:-1])
            labels.append(tokens[1:].copy())
            if split != "train":
                labels[-1][: new - first] = losses.IGNORE
        return lm.padded(inputs, labels, lm.pad_of(self._tokenizer))

    def count(self, batch: Batch) -> dict[str, float]:
        """Tokens that are predicted."""
        return {"tokens": losses.count_targets(batch.per_token["labels"])}

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        """The micro-batch's share of the batch's cross-entropy."""
        summed = losses.cross_entropy_sum(lm.logits_of(model, micro), micro.per_token["labels"])
        return summed / max(1.0, units["tokens"])

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Continued:
        """How likely each chunk is, and what the model writes after the prompts that are among them."""
        if split == "inputs":
            return self._predict_texts(model, rows, budget)
        found = self._likelihoods(model, split, rows.start, rows.stop, budget)
        bounds = self._chunks[split].bounds[rows.start : rows.stop, :2].tolist()
        shown = [{"id": self._ids[split][document], "token": first} for document, first in bounds]
        return Continued(*found, shown, self._paragraphs(model, split, rows))

    def _predict_texts(self, model: nn.Module, rows: range, budget: int) -> Continued:
        """How likely each text is, over all of its chunks."""
        document = self._chunks["inputs"].bounds[:, 0]
        first, end = np.searchsorted(document, (rows.start, rows.stop)).tolist()
        found = self._likelihoods(model, "inputs", first, end, budget)
        of, number = document[first:end] - rows.start, len(rows)
        targets, hits = (np.bincount(of, part, number).astype(np.int64) for part in (found.targets, found.hits))
        shown = [{"id": self._ids["inputs"][row]} for row in rows]
        nll = np.bincount(of, found.nll, number).astype(np.float64)
        return Continued(nll, targets, hits, shown, [])

    def _likelihoods(self, model: nn.Module, split: str, first: int, end: int, budget: int) -> lm.Scores:
        lengths = self._chunks[split].lengths[first:end].tolist()
        return lm.likelihoods(model, lengths, budget, lambda few: self.batch(split, [first + row for row in few]))

    def _paragraphs(self, model: nn.Module, split: str, rows: range) -> list[Paragraph]:
        """What is written after some begins of texts, as far as they are among the rows; the same whatever the rows."""
        chunks = self._chunks[split]
        mine = [row for row in writing.prompts(chunks, self.paragraphs, self.prompt_tokens) if row in rows]
        judge = self._judge() if split == "test" and mine else None
        how = writing.Way(self.paragraph_tokens, self.temperature, self.chunk_length)
        pen = writing.Pen(model, self._tokenizer, how, judge)
        return pen.paragraphs(chunks, mine, self.prompt_tokens, self._ids[split])

    def _judge(self) -> writing.Judge | None:
        if self.judge is None:
            notes.note(f"nobody judges how coherent the paragraphs are: name a stronger model as {_WHERE}.judge")
            return None
        return writing.Judge(self.judge)

    def example(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Tokens of the training texts at random, for latency. [batch_size, length]"""
        seen = torch.from_numpy(np.unique(self._chunks["train"].tokens[:100_000]).astype(np.int64))
        ids = seen[torch.randint(len(seen), (batch_size, length), generator=torch.Generator().manual_seed(0))]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tokenizer, and the model's configuration."""
        config: Any = model.config
        config.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)
