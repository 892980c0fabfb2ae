"""Predict every token of a text from those before it. Legend: B chunks, T tokens, V tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from harness import losses, notes
from harness.batch import Batch
from harness.data.dataset import Data, Example, Splits
from harness.errors import DataError
from harness.language import modelling as lm
from harness.language import writing
from harness.language.chunks import Cut
from harness.language.pretraining import Pretraining
from harness.models.model import Model
from harness.predictions import Continued, Paragraph

_JUDGE = "task.causal_lm.judge"


class CausalLM(Pretraining):
    """The next token; loss: cross-entropy averaged over all tokens that are predicted.

    A document stands between the tokenizer's tokens for its begin and end. A chunk of T tokens predicts T tokens: each
    token of a document but the first is a target of exactly one chunk; where chunks overlap, of the first that has it
    when the model is judged, and of all when it is trained.
    """

    kind: ClassVar[Literal["masked_lm", "causal_lm"]] = "causal_lm"

    paragraphs: int = Field(default=5, ge=1)
    """So many texts of a split are written on, each time it is judged."""
    prompt_tokens: int = Field(default=16, ge=1)
    """Tokens of the begin of a text that are given; fewer of a shorter one."""
    paragraph_tokens: int = Field(default=80, ge=1)
    """Tokens that are written, special ones excepted; each costs a forward pass of all paragraphs."""
    temperature: float = Field(default=1.0, gt=0)
    """Below 1 likely tokens are written more often."""
    judge: str | None = None
    """A stronger causal language model (a local folder, a Hub id, builtin:smollm2) that says how coherent the
    paragraphs of the test split are; null: nobody does."""

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """The same, and see that there is a judge where one is named: it is asked only at the end of a run."""
        self._named_judge()
        return super().load_data(splits, model)

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """The same of texts whose likelihood is asked for: one row each, however long it is."""
        facts = super().load_inputs(examples, labels, model)
        if odd := sorted({*range(len(examples))} - {*self._chunks["inputs"].bounds[:, 0].tolist()}):
            what = f"nothing of row {examples[odd[0]].id} is left to be predicted"
            raise DataError(what, where="task.causal_lm", fix="leave it out, or clean less")
        return facts

    def _read(self, name: str, examples: Sequence[Example]) -> dict[str, Any]:
        """The chunks of a split. Raises ModelError: the tokenizer has no token for the begin or the end of a text."""
        fix = "take a checkpoint whose tokenizer has one"
        before = lm.special(self._tokenizer, "bos_token", "cls_token", "eos_token", fix=fix, where="model.name")
        after = lm.special(self._tokenizer, "eos_token", "sep_token", fix=fix, where="model.name")
        across = self.across_documents and name != "inputs"
        how = Cut(self.chunk_length, self.overlap, 1, across)
        found = lm.read(name, examples, self._tokenizer, self._rules(), how, [before], [after])
        self._chunks[name] = found
        self._ids[name] = ["all"] if across else [example.id for example in examples]
        return found.facts

    def answer_columns(self, labels: list[str]) -> list[str]:
        """How likely a text is: its tokens, nats per token, perplexity."""
        return ["tokens", "nll", "perplexity"]

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """A unigram model, and a trigram one with Kneser-Ney smoothing, on the same tokens."""
        self._read_once(splits, model)
        train, test = self._chunks["train"], self._chunks["test"]
        return lm.yardsticks(train, test, 1, lm.new_tokens(test, 1), len(self._tokenizer))

    def num_rows(self, split: str) -> int:
        """Chunks of a split; of `inputs`, texts."""
        return len(self._ids[split]) if split == "inputs" else len(self._chunks[split])

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
            notes.note(f"nobody judges how coherent the paragraphs are: name a stronger model as {_JUDGE}")
        return self._named_judge()

    def _named_judge(self) -> writing.Judge | None:
        return None if self.judge is None else writing.Judge(self.judge, _JUDGE)
