"""The contract of a metric: predictions in, numbers out, and files for people to look at."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.settings import Settings

History = dict[str, list[tuple[int, float]]]
"""Metric name -> (step, value) in order."""


class Predictions(ABC):
    """What a task predicted for one split, with what is true, example by example. Shapes: N examples."""

    rows: list[dict[str, Any]]
    """What identifies each example to a person, such as id and text. [N]"""

    @property
    @abstractmethod
    def values(self) -> NDArray[np.float64]:
        """The numbers behind the answers: two ways to compute the same model have to agree in them. [N, ...]"""

    @abstractmethod
    def num_flips(self, other: Self) -> int:
        """How many answers are other ones."""

    @abstractmethod
    def joined(self, following: Sequence[Self]) -> Self:
        """This part of a split and those that follow it."""

    def answers(self) -> list[dict[str, Any]]:
        """What is said of each example: the columns that the task's `answer_columns` names. [N]"""
        return []

    def items(self) -> dict[str, Any] | None:
        """`labels` and `predicted`, indices into `label_names`, as JSON holds them: for tests over items; None where an
        example has not one answer of a fixed list.
        """
        return None


@dataclass(frozen=True)
class Classified(Predictions):
    """One label of a fixed list for each example. Shapes: N examples, L labels."""

    labels: NDArray[np.int64]
    """True label of each example, an index into `label_names`. [N]"""
    scores: NDArray[np.float64]
    """Logits. [N, L]"""
    label_names: list[str]
    """The fixed label list, whether or not a label occurs. [L]"""
    rows: list[dict[str, Any]]
    """What identifies each example to a person: id and text. [N]"""

    @property
    def values(self) -> NDArray[np.float64]:
        """The logits. [N, L]"""
        return self.scores

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits. [N, L]"""
        shifted = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The label with the highest logit. [N]"""
        return np.asarray(self.scores.argmax(axis=1), dtype=np.int64)

    def num_flips(self, other: Self) -> int:
        """Labels that changed."""
        return int((self.predicted != other.predicted).sum())

    def joined(self, following: Sequence[Self]) -> Self:
        """This part of a split and those that follow it."""
        parts = [self, *following]
        return dataclasses.replace(
            self,
            labels=np.concatenate([part.labels for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            rows=[row for part in parts for row in part.rows],
        )

    def answers(self) -> list[dict[str, Any]]:
        """predicted, confidence and `probability_<label>` of each example."""
        names, answers = self.label_names, []
        for guess, shares in zip(self.predicted.tolist(), self.probabilities.tolist(), strict=True):
            probabilities = {f"probability_{name}": share for name, share in zip(names, shares, strict=True)}
            answers.append({"predicted": names[guess], "confidence": shares[guess], **probabilities})
        return answers

    def items(self) -> dict[str, Any]:
        """True and predicted labels."""
        return {
            "predicted": self.predicted.tolist(), "labels": self.labels.tolist(), "label_names": self.label_names
        }  # fmt: skip


@dataclass(frozen=True)
class Likelihood(Predictions):
    """How likely the tokens of each example are that a language model was to predict. Shapes: N examples."""

    nll: NDArray[np.float64]
    """Negative log-likelihood in nats, summed over its target tokens. [N]"""
    targets: NDArray[np.int64]
    """Number of its target tokens: those that reach the loss. [N]"""
    hits: NDArray[np.int64]
    """How many of them were the most likely token. [N]"""
    rows: list[dict[str, Any]]
    """What identifies each example to a person. [N]"""

    @property
    def values(self) -> NDArray[np.float64]:
        """The summed negative log-likelihoods. [N]"""
        return self.nll

    def answers(self) -> list[dict[str, Any]]:
        """Target tokens of each example, nats per token, and what they are as perplexity."""
        per_token = (self.nll / self.targets).tolist()
        pairs = zip(self.targets.tolist(), per_token, strict=True)
        return [{"tokens": number, "nll": nll, "perplexity": float(np.exp(nll))} for number, nll in pairs]

    def num_flips(self, other: Self) -> int:
        """Examples in which another number of tokens was right."""
        return int((self.hits != other.hits).sum())

    def joined(self, following: Sequence[Self]) -> Self:
        """This part of a split and those that follow it."""
        parts = [self, *following]
        return dataclasses.replace(
            self,
            nll=np.concatenate([part.nll for part in parts]),
            targets=np.concatenate([part.targets for part in parts]),
            hits=np.concatenate([part.hits for part in parts]),
            rows=[row for part in parts for row in part.rows],
        )


@dataclass(frozen=True)
class Completed(Likelihood):
    """The same, and what the model wrote where a completion was asked for."""

    generated: list[str]
    """[N]"""
    references: list[str]
    """What was to be written. [N]"""

    def num_flips(self, other: Self) -> int:
        """Completions that are other ones."""
        return sum(own != its for own, its in zip(self.generated, other.generated, strict=True))

    def joined(self, following: Sequence[Self]) -> Self:
        """This part of a split and those that follow it."""
        parts = [self, *following]
        return dataclasses.replace(
            super().joined(following),
            generated=[text for part in parts for text in part.generated],
            references=[text for part in parts for text in part.references],
        )


@dataclass(frozen=True)
class Paragraph:
    """What a language model wrote after the beginning of a text. Legend: n tokens it wrote."""

    id: str
    """Of the text."""
    prompt: str
    text: str
    """What it wrote."""
    tokens: tuple[int, ...]
    """The same as tokens. [n]"""
    nll: float
    """Its own negative log-likelihood of them in nats, summed."""
    reference: str
    """How the text goes on in truth, about as long."""
    judged: float | None = None
    """Nats per token of another, stronger model for `text` after `prompt`; None: there is none."""
    judged_reference: float | None = None
    """The same for `reference`."""


@dataclass(frozen=True)
class Continued(Likelihood):
    """The same, and paragraphs that the model wrote after the beginnings of a few of the texts."""

    paragraphs: list[Paragraph]

    def joined(self, following: Sequence[Self]) -> Self:
        """This part of a split and those that follow it."""
        written = [paragraph for part in (self, *following) for paragraph in part.paragraphs]
        return dataclasses.replace(super().joined(following), paragraphs=written)


P = TypeVar("P", bound=Predictions)


class Metric(Settings, Generic[P]):
    """One metric: its settings are its fields. `P` is what it reads: the predictions of the tasks it is for.

    `produces` lists the keys `compute` returns whatever the data, so that a spec which monitors a metric that never
    appears is refused before training; keys that depend on the labels may come on top.
    """

    produces: ClassVar[tuple[str, ...]] = ()
    less_is_better: ClassVar[tuple[str, ...]] = ()
    """Those of its keys that are losses or errors."""

    def compute(self, predictions: P) -> dict[str, float]:
        """Numbers over one whole split, from pooled counts, never averaged over batches. Keys are without the split."""
        return {}

    def section(self, predictions: P) -> str:
        """A section of the model card, in Markdown, for the test split. Default: none."""
        return ""

    def write(self, predictions: P, folder: Path) -> None:
        """Files for people and tools (tables, figures); called once, for the test split. Default: none."""
