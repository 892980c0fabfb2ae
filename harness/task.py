"""The contract of a task: it loads data and a model, yields batches, counts, gives shares of the loss, predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.batch import Batch
from harness.data.dataset import Data, Example, Splits
from harness.data.labelling import Classes, Labelling
from harness.models.model import Model
from harness.predictions import Predictions
from harness.settings import Settings


class Task(Settings, ABC):
    """What is learnt. The loop knows only this class."""

    labelling: ClassVar[Labelling] = Classes()
    """What the rows of its data are."""
    headline: ClassVar[dict[str, str]]
    """The scores that are told first, by what people call them; yardsticks give them too. The first one ranks;
    of the others a yardstick may lack one."""

    @abstractmethod
    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """Turn text into tensors; returns what a person should know about it (such as how many rows were truncated)."""

    @abstractmethod
    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """Turn examples whose labels nobody knows into the split `inputs`, for a model that was trained on `labels`.

        Returns what a person should know about them; `truncated`, where it is known, is how many were truncated.
        """

    @abstractmethod
    def load_model(self, model: Model) -> nn.Module:
        """The pretrained model with this task's head. Raises ModelError."""

    @abstractmethod
    def head(self, model: nn.Module) -> set[str]:
        """Names of the head's parameters: those without pretrained values. They train whatever the methods."""

    @abstractmethod
    def train_lengths(self) -> Sequence[int]:
        """Tokens of each training example."""

    @abstractmethod
    def batch(self, split: str, rows: list[int]) -> Batch:
        """These examples of a split; of train, those that `train_lengths` counts."""

    def num_batches(self, size: int) -> int:
        """Batches (optimizer steps) per epoch; the last one may be smaller."""
        return -(-len(self.train_lengths()) // size)

    def batches(self, model: nn.Module, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch of batches; one batch = one optimizer step over all processes, fixed before any forward.

        The training examples in random order.
        """
        order = torch.randperm(len(self.train_lengths()), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield self.batch("train", order[start : start + size])

    def longest_batch(self, size: int) -> Batch | None:
        """The `size` longest training examples, to see whether they fit into memory; None where that is not known."""
        lengths = self.train_lengths()
        return self.batch("train", sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[:size])

    @abstractmethod
    def count(self, batch: Batch) -> dict[str, float]:
        """What the loss is averaged over (examples, tokens, their weights), counted before any forward."""

    @abstractmethod
    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        """This micro-batch's share of the batch loss, shape []: the shares of a batch add up to its loss."""

    @abstractmethod
    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Predictions:
        """Predictions for these rows of a split, in order, at most `budget` padded tokens per forward."""

    def answer_columns(self, labels: list[str]) -> list[str]:
        """The columns of `Predictions.answers` for a model trained on `labels`; []: it does not answer single texts."""
        return []

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """What a score has to beat, by name: each returns the scores of `headline` on the test split.

        `harness baselines` asks without `load_data`.
        """
        return {}

    @abstractmethod
    def num_rows(self, split: str) -> int:
        """Rows of a split."""

    @abstractmethod
    def example(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Model inputs of exactly this shape, for measuring latency. [batch_size, length]"""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what is needed beside the weights to use them again (tokenizer, configuration with the labels)."""
