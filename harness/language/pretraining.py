"""What masked and causal language-model pre-training share: raw text, cleaned and cut into chunks, and its settings.

Legend: B chunks, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from harness import losses
from harness.batch import Batch
from harness.data.dataset import Example, Splits
from harness.data.labelling import Texts
from harness.language import modelling as lm
from harness.language.chunks import Chunks
from harness.language.cleaning import Cleaning
from harness.models import tokenizing
from harness.models.model import Model
from harness.task import Task


class Pretraining(Task):
    """Tokens of raw text are predicted; loss: cross-entropy averaged over those that are."""

    labelling = Texts()
    headline: ClassVar[dict[str, str]] = {"perplexity": "perplexity"}
    kind: ClassVar[Literal["masked_lm", "causal_lm"]]

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
    """any, or such as latin: lines with too many letters of other scripts are dropped, counted."""
    max_foreign: float = Field(default=0.3, ge=0, le=1)
    """The largest share of a line's letters that may be of other scripts than `script`."""
    language: str = "any"
    """any, or english, spanish, german, french: lines with too few of its most frequent words are dropped, counted."""
    min_stop_words: float = Field(default=0.1, ge=0, le=1)
    """The smallest share of them among a line's words; lines of fewer than ten words are not judged."""

    _tokenizer: Any = PrivateAttr(None)
    _chunks: dict[str, Chunks] = PrivateAttr(default_factory=dict)
    _ids: dict[str, list[str]] = PrivateAttr(default_factory=dict)
    _new_parameters: set[str] = PrivateAttr(default_factory=set)

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """Clean, tokenise and cut all splits; returns tokens, chunks, overlap and what cleaning did of each.

        Raises:
            ModelError: the tokenizer cannot be loaded, or lacks a token that is needed.
            DataError: a split of which nothing is left.
            SpecError: a script or language that is not known.
        """
        rules = self._rules()
        self._open(model, lambda: lm.texts(splits.train.examples, rules))
        return {
            split.name: self._read(split.name, split.examples)
            for split in (splits.train, splits.validation, splits.test)
        }

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """The same of texts as the split `inputs`."""
        self._open(model)
        return self._read("inputs", examples)

    def _read_once(self, splits: Splits, model: Model) -> None:
        """Read the splits, if nobody did."""
        if "train" not in self._chunks:
            self.load_data(splits, model)

    def _open(self, model: Model, texts: Callable[[], Iterator[str]] | None = None) -> None:
        """Load the model's tokenizer; an own model's is trained on the texts."""
        self._tokenizer = tokenizing.load(model, texts)

    @abstractmethod
    def _read(self, name: str, examples: Sequence[Example]) -> dict[str, Any]:
        """The chunks of a split, under its name; returns what `load_data` does."""

    def _rules(self) -> Cleaning:
        kept = self.mojibake, self.characters, self.script, self.max_foreign, self.language, self.min_stop_words
        return lm.check_cleaning(Cleaning(*kept), f"task.{self.kind}")

    def load_model(self, model: Model) -> nn.Module:
        """The model in float32. Raises ModelError: it cannot be loaded, or does not fit tokenizer or chunks."""
        longest = max(int(chunks.lengths.max()) for chunks in self._chunks.values()) + self._frame_length()
        loaded, self._new_parameters = lm.load_model(self.kind, model, self._tokenizer, longest, f"task.{self.kind}")
        return loaded

    def _frame_length(self) -> int:
        """Tokens that are put around each chunk when it is read."""
        return 0

    def head(self, model: nn.Module) -> set[str]:
        """What the checkpoint had no values for; nothing of an own model, all of which trains."""
        return self._new_parameters & {name for name, _ in model.named_parameters()}

    def num_rows(self, split: str) -> int:
        """Chunks of a split."""
        return len(self._chunks[split])

    def train_lengths(self) -> list[int]:
        """Tokens of each chunk."""
        return list(map(int, self._chunks["train"].lengths))

    def count(self, batch: Batch) -> dict[str, float]:
        """Tokens that are predicted."""
        return {"tokens": losses.count_targets(batch.per_token["labels"])}

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        """The micro-batch's share of the batch's cross-entropy; 0 where nothing of the batch has to be predicted."""
        summed = losses.cross_entropy_sum(lm.logits_of(model, micro), micro.per_token["labels"])
        return summed / max(1.0, units["tokens"])

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
