"""Answer a question by a span of its context, or say that it has no answer.

A new linear layer gives every token two logits, for the first and the last token of the answer (Devlin et al. 2019,
arXiv 1810.04805, section 4.2). A long context is read in windows. Legend: B windows, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor, nn

from harness import losses
from harness.batch import Batch, cut, overhead_tokens
from harness.catalogue import hub
from harness.data.dataset import Data, Example, Split, Splits
from harness.errors import DataError, ModelError
from harness.extraction import spans
from harness.extraction.answers import Answers
from harness.models import tokenizing
from harness.models.model import Model
from harness.predictions import Spans
from harness.task import Task
from harness.yardsticks import answer_baselines

_WHERE = "task.question_answering"


class QuestionAnswering(Task):
    """One question and its context per row; loss: the mean of both cross-entropies over the tokens of a window,
    averaged over windows. A training example, as `train.batch_size` counts them, is a window.
    """

    labelling = Answers()
    headline: ClassVar[dict[str, str]] = {"squad_f1": "F1", "squad_exact_match": "exact match"}

    max_length: int = Field(default=384, ge=16)
    """Tokens of a window: the question, and as much of the context as fits. Questions are never truncated."""
    stride: int = Field(default=128, ge=0)
    """Context tokens that neighbouring windows share."""
    max_answer_length: int = Field(default=30, ge=1)
    """Tokens of a predicted answer at most; longer ones are learnt from all the same."""
    num_candidates: int = Field(default=20, ge=1)
    """The confidence of an answer is its share among so many of the best spans of all windows."""
    null_threshold: float = Field(default=0.0, allow_inf_nan=False)
    """Where train has questions without an answer: there is none if that scores higher than the best span by more."""
    pad_token: str | None = None
    """For a tokenizer without one: the existing token to pad with."""

    _tokenizer: Any = PrivateAttr(None)
    _splits: dict[str, Split] = PrivateAttr(default_factory=dict)
    _labels: list[str] = PrivateAttr(default_factory=list)
    _windows: dict[str, list[spans.Window]] = PrivateAttr(default_factory=dict)
    _targets: dict[str, list[tuple[int, int]]] = PrivateAttr(default_factory=dict)
    _of: dict[str, list[list[int]]] = PrivateAttr(default_factory=dict)
    """The windows of each question."""
    _inputs: set[str] = PrivateAttr(default_factory=set)
    _new_parameters: set[str] = PrivateAttr(default_factory=set)

    @model_validator(mode="after")
    def _windows_move_on(self) -> Self:
        if self.stride >= self.max_length:
            raise ValueError(f"stride {self.stride} leaves nothing new for a window of {self.max_length} tokens")
        return self

    # Data

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """Cut all splits into windows; returns the tokens, windows and longest window of each.

        `truncated`: questions whose answer stands whole in no window, so that it cannot be learnt.

        Raises:
            ModelError: the tokenizer cannot be loaded, knows no places of its tokens, or has no pad token.
            DataError: a question that leaves no room for its context, a context without any token.
        """
        self._open_tokenizer(model, lambda: (text for e in splits.train.examples for text in (e.text, e.pair or "")))
        self._labels = splits.labels
        return {split.name: self._encode(split) for split in (splits.train, splits.validation, splits.test)}

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """Cut them as the split `inputs`; the facts and errors of `load_data`."""
        self._open_tokenizer(model)
        self._labels = labels
        return self._encode(Split("inputs", examples, ""))

    def _open_tokenizer(self, model: Model, texts: Callable[[], Iterator[str]] | None = None) -> None:
        self._tokenizer = tokenizing.load(model, texts)
        if not self._tokenizer.is_fast:
            what = f"the tokenizer of '{model.name}' does not know where in a text its tokens stand"
            raise ModelError(what, where="model.name", fix="take a model with a tokenizer.json")
        if self._tokenizer.pad_token is None:
            if self.pad_token not in (known := self._tokenizer.get_vocab()):
                what = f"the tokenizer of '{model.name}' has no pad token"
                fix = f"name an existing token to pad with, such as {self._tokenizer.eos_token or next(iter(known))}"
                raise ModelError(what, where=f"{_WHERE}.pad_token", fix=fix)
            self._tokenizer.pad_token = self.pad_token

    def _encode(self, split: Split) -> dict[str, Any]:
        name, examples = split.name, split.examples
        pairs = [(example.text, example.pair or "") for example in examples]
        self._check_questions(split)
        windows = list(spans.windows(self._tokenizer, pairs, self.max_length, self.stride))
        self._splits[name], self._windows[name] = split, windows
        self._of[name] = [[] for _ in examples]
        for number, window in enumerate(windows):
            if not len(window.offsets):
                what = f"the context of row {examples[window.row].id} of {name} has no tokens"
                raise DataError(what, where="data.text", fix="leave it out, or take another tokenizer")
            self._of[name][window.row].append(number)
        self._targets[name] = [window.target(examples[window.row].label[0]) for window in windows]
        whole = [any(self._targets[name][one] != (0, 0) for one in of) for of in self._of[name]]
        lost = sum(example.label[0][1] >= 0 and not found for example, found in zip(examples, whole, strict=True))
        lengths = list(map(len, windows))
        facts = {"tokens": sum(lengths), "longest": max(lengths), "windows": len(windows)}
        return facts | ({"truncated": lost} if name != "inputs" else {})

    def _check_questions(self, split: Split) -> None:
        texts = [example.text for example in split.examples]
        ids = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        room = self.max_length - self._tokenizer.num_special_tokens_to_add(pair=True)
        longest = max(range(len(ids)), key=lambda row: len(ids[row]))
        if room - len(ids[longest]) <= self.stride:
            what = f"the question of row {split.examples[longest].id} of {split.name} has {len(ids[longest])} tokens"
            why = f"of {self.max_length} tokens, {room - len(ids[longest])} are left for the context, and windows share"
            fix = "raise max_length, lower stride, or leave the row out"
            raise DataError(what, where=f"{_WHERE}.max_length", why=f"{why} {self.stride}", fix=fix)

    # Model

    def load_model(self, model: Model) -> nn.Module:
        """Pretrained weights in float32 with a new head.

        Raises:
            ModelError: it cannot be loaded, its weights are not those of its config, or it reads shorter texts only.
        """
        if model.is_own:
            return self._own_model(model)
        from transformers import AutoModelForQuestionAnswering

        loaded: Any
        with hub.explained("model", model.name), hub.quiet_loading():
            loaded, info = AutoModelForQuestionAnswering.from_pretrained(
                hub.resolve(model.name, model.revision),
                revision=model.revision,
                num_labels=2,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        misfits = {str(entry[0]) for entry in info["mismatched_keys"]}
        self._new_parameters = misfits | {str(name) for name in info["missing_keys"]}
        self._check_model(loaded, misfits, model.name)
        loaded.config.pad_token_id = self._tokenizer.pad_token_id
        self._inputs = set(inspect.signature(loaded.forward).parameters)
        return cast(nn.Module, loaded)

    def _own_model(self, model: Model) -> nn.Module:
        """`builtin:transformer` with two logits for each token. Raises ModelError."""
        from harness.models import transformer

        own = transformer.build(
            model, "token_classification", vocab_size=len(self._tokenizer), num_labels=2,
            pad_token_id=self._tokenizer.pad_token_id,
        )  # fmt: skip
        self._check_length(own, model.name)
        self._inputs = set(inspect.signature(own.forward).parameters)
        return own

    def _check_model(self, model: Any, misfits: set[str], checkpoint: str) -> None:
        base = {name for name, _ in model.named_parameters() if name.startswith(f"{model.base_model_prefix}.")}
        if base & misfits or (base and base <= self._new_parameters):
            why = f"in its config, not in its weights: {', '.join(sorted(base & (misfits or base))[:3])}, ..."
            fix = "give the config.json that belongs to the weights"
            raise ModelError(f"the weights of '{checkpoint}' do not fit", where="model.name", why=why, fix=fix)
        self._check_length(model, checkpoint)

    def _check_length(self, model: Any, checkpoint: str) -> None:
        longest = max(len(window) for windows in self._windows.values() for window in windows)
        positions = getattr(model.config, "max_position_embeddings", None) or -1  # -1: any number, as in XLNet
        limit = min(positions if positions > 0 else longest, self._tokenizer.model_max_length)
        if longest > limit:
            what, where = f"a window has {longest} tokens, '{checkpoint}' reads {limit}", f"{_WHERE}.max_length"
            raise ModelError(what, where=where, fix=f"set it to {limit}: longer contexts are read in more windows")

    def head(self, model: nn.Module) -> set[str]:
        """Everything outside the pretrained base, and whatever the checkpoint had no values for."""
        names = {name for name, _ in model.named_parameters()}
        return {n for n in names if n in self._new_parameters or not n.startswith(f"{model.base_model_prefix}.")}

    # Training

    def num_rows(self, split: str) -> int:
        """Questions of a split."""
        return len(self._of[split])

    def train_lengths(self) -> list[int]:
        """Tokens of each window."""
        return [len(window) for window in self._windows["train"]]

    def batch(self, split: str, rows: list[int]) -> Batch:
        """These windows, with the places of the first and the last token of their answers."""
        chosen = [self._windows[split][row] for row in rows]
        fill = {"input_ids": self._tokenizer.pad_token_id, "token_type_ids": self._tokenizer.pad_token_type_id}
        per_token = {
            name: nn.utils.rnn.pad_sequence(
                [torch.from_numpy(window.inputs[name]).long() for window in chosen],
                batch_first=True, padding_value=fill.get(name, 0),
            )
            for name in chosen[0].inputs if name in self._inputs
        }  # fmt: skip
        lengths = torch.tensor(list(map(len, chosen)))
        targets = torch.tensor([self._targets[split][row] for row in rows])
        return Batch(lengths, per_token, {"start": targets[:, 0], "end": targets[:, 1]})

    def count(self, batch: Batch) -> dict[str, float]:
        """Windows."""
        return {"windows": losses.count_targets(batch.per_example["start"])}

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        """The micro-batch's share of the batch's loss."""
        start, end = _logits(model, micro)  # [B, T]
        first = losses.cross_entropy_sum(start, micro.per_example["start"])
        last = losses.cross_entropy_sum(end, micro.per_example["end"])
        return (first + last) / 2 / units["windows"]

    # Prediction

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Spans:
        """The best span of each of these questions over all its windows, or no answer, in their order."""
        device, numbers = next(model.parameters()).device, [number for row in rows for number in self._of[split][row]]
        lengths = [len(self._windows[split][number]) for number in numbers]
        logits: dict[int, NDArray[np.float64]] = {}
        model.eval()
        with torch.inference_mode():
            for chunk in cut(lengths, budget, overhead_tokens(device)):
                micro = self.batch(split, [numbers[i] for i in chunk]).to(device)
                both = torch.stack(_logits(model, micro), dim=1).float().cpu().double().numpy()  # [B, 2, T]
                logits |= {numbers[i]: one[:, : lengths[i]] for i, one in zip(chunk, both, strict=True)}
        examples = [self._splits[split].examples[row] for row in rows]
        found = [self._answer(split, row, logits) for row in rows]
        return Spans(
            [one.text for one in found],
            [one.start for one in found],
            [[text for text, _ in example.label] for example in examples],
            np.array([(one.span_score, one.null_score) for one in found]).reshape(-1, 2),
            np.array([one.confidence for one in found]),
            [{"id": example.id, "question": example.text, "context": example.pair} for example in examples],
        )

    def _answer(self, split: str, row: int, logits: dict[int, NDArray[np.float64]]) -> spans.Found:
        parts = [(self._windows[split][number], logits[number]) for number in self._of[split][row]]
        threshold = self.null_threshold if self._labels else None
        context = self._splits[split].examples[row].pair or ""
        return spans.decode(parts, context, self.max_answer_length, self.num_candidates, threshold)

    def answer_columns(self, labels: list[str]) -> list[str]:
        """The answer ("": there is none), how sure, and where in the context it begins."""
        return ["answer", "confidence", "start"]

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """A random span, the sentence most like the question, and the names and numbers in it."""
        return answer_baselines.of_answers(splits)

    def example(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Ordinary tokens of the training texts at random, framed as texts are, unpadded. [batch_size, length]"""
        windows = self._windows["train"]
        frame = windows[0].inputs["input_ids"].tolist()
        seen = {token for window in windows[:1000] for token in window.inputs["input_ids"].tolist()}
        words = torch.tensor(sorted(seen - set(self._tokenizer.all_special_ids)) or [frame[0]])
        ids = words[torch.randint(len(words), (batch_size, length), generator=torch.Generator().manual_seed(0))]
        ids[:, 0], ids[:, -1] = frame[0], frame[-1]
        filled = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {name: filled.get(name, torch.zeros_like(ids)) for name in windows[0].inputs if name in self._inputs}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tokenizer, and the model's configuration."""
        config: Any = model.config
        config.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)


def _logits(model: nn.Module, micro: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the first and the last token; those of padding are -inf, whatever it is padded to. [B, T]"""
    found: Any = model(**micro.per_token)
    both = (found.start_logits, found.end_logits) if hasattr(found, "start_logits") else found.logits.unbind(dim=-1)
    padding = torch.arange(both[0].shape[1]) >= micro.lengths[:, None]
    start, end = (logits.masked_fill(padding.to(logits.device), -torch.inf) for logits in both)
    return start, end
