"""Guess tokens that were hidden, from all that stands around them. Legend: B chunks, T tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from torch import nn

from harness import losses
from harness.batch import Batch
from harness.data.dataset import Data, Example, Splits
from harness.language import masking
from harness.language import modelling as lm
from harness.language.chunks import Cut
from harness.language.pretraining import Pretraining
from harness.models.model import Model
from harness.predictions import Likelihood

_SHARE = 0.15
"""Of the tokens that are hidden when the model is judged, however it is trained."""


class MaskedLM(Pretraining):
    """The tokens that were hidden; loss: cross-entropy averaged over them.

    A chunk stands between the tokenizer's tokens for its begin and end, which are never hidden. It is always judged on
    15 % of the tokens by the dynamic rule, the same ones in every evaluation, so that ways to train can be compared.
    Tokens for begin and end count for `chunk_length`.
    """

    kind: ClassVar[Literal["masked_lm", "causal_lm"]] = "masked_lm"

    masking: Literal["dynamic", "static"] = "dynamic"
    """dynamic: each token by itself, anew in every epoch; 80 % become the mask, 10 % a random token, 10 % stay. static:
    each chunk by itself, the same ones in every epoch; all of its tokens become the mask, the others teach nothing."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """How likely a token (static: a chunk) is hidden; null: 0.15 (static: 0.1)."""
    mask_seed: int = Field(default=0, ge=0)
    """Draws the chunks that are hidden (static), and nothing else."""
    _frame: tuple[list[int], list[int]] = PrivateAttr(default=([], []))
    _mask: int = PrivateAttr(0)
    _special: NDArray[np.int64] = PrivateAttr(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _others: NDArray[np.int64] = PrivateAttr(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def _open(self, model: Model, texts: Callable[[], Iterator[str]] | None = None) -> None:
        """Load the tokenizer. Raises ModelError: it has no token for a mask."""
        super()._open(model, texts)
        fix = "take a checkpoint that was trained to guess hidden tokens, such as BERT"
        self._mask = lm.special(self._tokenizer, "mask_token", fix=fix, where="model.name")
        self._frame = self._first("cls_token_id", "bos_token_id"), self._first("sep_token_id", "eos_token_id")
        self._special = np.array(sorted(set(self._tokenizer.all_special_ids)), dtype=np.int64)
        self._others = np.setdiff1d(np.arange(len(self._tokenizer), dtype=np.int64), self._special)

    def _first(self, *names: str) -> list[int]:
        """The first of these tokens that the tokenizer has, if it has one."""
        return [token for name in names if (token := getattr(self._tokenizer, name)) is not None][:1]

    def _read(self, name: str, examples: Sequence[Example]) -> dict[str, Any]:
        before, after = self._frame
        how = Cut(self.chunk_length - len(before) - len(after), self.overlap, 0, self.across_documents)
        between = after if self.across_documents else []
        found = lm.read(name, examples, self._tokenizer, self._rules(), how, [], between)
        self._chunks[name] = found
        self._ids[name] = ["all"] if self.across_documents else [example.id for example in examples]
        return found.facts

    def _frame_length(self) -> int:
        return sum(map(len, self._frame))

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """A unigram model, and a trigram one with Kneser-Ney smoothing, on the same hidden tokens."""
        self._read_once(splits, model)
        chunks = self._chunks["test"]
        hidden = [
            first - len(self._frame[0]) + np.flatnonzero(self._row("test", row, None)[1] != losses.IGNORE)
            for row, first in enumerate(chunks.bounds[:, 1].tolist())
        ]
        given = self._chunks["train"], chunks, 0, np.concatenate(hidden), len(self._tokenizer)
        return lm.yardsticks(*given, of=" from the two tokens before")

    def batches(self, model: nn.Module, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """The chunks of the training split in random order; what is hidden is drawn by the same generator."""
        order = torch.randperm(self.num_rows("train"), generator=generator).tolist()
        seed = int(torch.randint(2**62, (), generator=generator))
        for start in range(0, len(order), size):
            yield self._masked("train", order[start : start + size], seed)

    def batch(self, split: str, rows: list[int]) -> Batch:
        """These chunks, masked as they are for all evaluations."""
        return self._masked(split, rows, None)

    def _masked(self, split: str, rows: list[int], seed: int | None) -> Batch:
        read, labels = zip(*(self._row(split, row, seed) for row in rows), strict=True)
        return lm.padded(list(read), list(labels), lm.pad_of(self._tokenizer))

    def _row(self, split: str, row: int, seed: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What is read of a chunk, and what has to be said; `seed`: of the epoch, None where the model is judged."""
        chunks = self._chunks[split]
        _, first, end, new = chunks.bounds[row].tolist()
        before, after = self._frame
        ids = np.array([*before, *chunks.tokens[first:end].tolist(), *after], dtype=np.int64)
        can_be_hidden = ~np.isin(ids, self._special)
        if seed is None:
            can_be_hidden[: len(before) + new - first] = False
            return masking.dynamic(ids, can_be_hidden, _SHARE, self._mask, self._others, 0, row)
        if self.masking == "static":
            return masking.static(ids, can_be_hidden, self.share or 0.1, self._mask, self.mask_seed, row)
        return masking.dynamic(ids, can_be_hidden, self.share or _SHARE, self._mask, self._others, seed, row)

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Likelihood:
        """How likely the hidden tokens of each chunk are."""
        lengths = (self._chunks[split].lengths[rows.start : rows.stop] + self._frame_length()).tolist()
        found = lm.likelihoods(model, lengths, budget, lambda few: self.batch(split, [rows[row] for row in few]))
        bounds = self._chunks[split].bounds[rows.start : rows.stop].tolist()
        return Likelihood(*found, [{"id": self._ids[split][document], "token": at} for document, at, *_ in bounds])
