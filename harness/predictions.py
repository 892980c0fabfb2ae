"""What tasks predict, with what is true beside it: one class for each kind of answer. Arrays and text, no torch."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harness.data.entities import lenient, word_places


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

    generated: list[str | None]
    """None: it was not asked to. [N]"""
    references: list[str]
    """What was to be written. [N]"""

    def pairs(self) -> list[tuple[str, str]]:
        """Generated text and reference, where there are both."""
        both = zip(self.generated, self.references, strict=True)
        return [(text, reference) for text, reference in both if text is not None]

    def answers(self) -> list[dict[str, Any]]:
        """The completion of each example."""
        return [{"generated": text} for text in self.generated]

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
class Tagged(Predictions):
    """One tag for each word of each sentence. Shapes: N sentences, W words of all of them, L tags."""

    tags: NDArray[np.int64]
    """True tag of each word, an index into `tag_names`. [W]"""
    scores: NDArray[np.float64]
    """Logits. [W, L]"""
    tag_names: list[str]
    """The fixed list: `O`, then `B-` and `I-` of each type. [L]"""
    words: list[tuple[str, ...]]
    """Of each sentence. [N]"""
    rows: list[dict[str, Any]]
    """What identifies each sentence to a person: id and text. [N]"""

    @property
    def values(self) -> NDArray[np.float64]:
        """The logits. [W, L]"""
        return self.scores

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The tag with the highest logit. [W]"""
        return np.asarray(self.scores.argmax(axis=1), dtype=np.int64)

    def log_probabilities(self) -> NDArray[np.float64]:
        """Log-softmax of the logits. [W, L]"""
        shifted = self.scores - self.scores.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)

    @property
    def types(self) -> list[str]:
        """The types of entities, in the order of the tags."""
        return [name[2:] for name in self.tag_names if name.startswith("B-")]

    def by_sentence(self, tags: NDArray[np.int64]) -> list[list[str]]:
        """Tags of all words as names, sentence by sentence. [W] -> [N]"""
        named, ends = [self.tag_names[tag] for tag in tags.tolist()], np.cumsum([0, *map(len, self.words)]).tolist()
        return [named[start:end] for start, end in pairwise(ends)]

    def num_flips(self, other: Self) -> int:
        """Words whose tag changed."""
        return int((self.predicted != other.predicted).sum())

    def joined(self, following: Sequence[Self]) -> Self:
        """This part of a split and those that follow it."""
        parts = [self, *following]
        return dataclasses.replace(
            self,
            tags=np.concatenate([part.tags for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            words=[words for part in parts for words in part.words],
            rows=[row for part in parts for row in part.rows],
        )

    def answers(self) -> list[dict[str, Any]]:
        """predicted, confidence and entities of each sentence.

        An entity has its text, type, first character and the one after the last, and the probability of the predicted
        tag of its least sure word; `confidence` is the lowest of all words.
        """
        sure = np.exp(self.log_probabilities().max(axis=1))  # [W]
        answers, first = [], 0
        for row, words, tags in zip(self.rows, self.words, self.by_sentence(self.predicted), strict=True):
            own, text, places = sure[first : first + len(words)], row["text"], word_places(row["text"], words)
            first += len(words)
            found = [(one, places[one.start][0], places[one.end - 1][1]) for one in lenient(tags)]
            named = [
                {"text": text[start:end], "type": one.type, "start": start, "end": end,
                 "confidence": float(own[one.start : one.end].min())}
                for one, start, end in found
            ]  # fmt: skip
            told = "; ".join(f"{one['text']} [{one['type']}]" for one in named)
            answers.append({"predicted": told, "confidence": float(own.min(initial=1.0)), "entities": named})
        return answers


@dataclass(frozen=True)
class Spans(Predictions):
    """A span of its context for each question, or no answer. Shapes: N questions."""

    texts: list[str]
    """The answers; "": there is none. [N]"""
    starts: list[int]
    """The character of the context that each begins with; -1: there is none. [N]"""
    references: list[list[str]]
    """What people answered; [""] where the context has no answer. [N, ...]"""
    scores: NDArray[np.float64]
    """Logits of the best span and of no answer, start plus end. [N, 2]"""
    confidence: NDArray[np.float64]
    """Share of the answer among the best candidates. [N]"""
    rows: list[dict[str, Any]]
    """What identifies each question to a person: id, question and context. [N]"""

    @property
    def values(self) -> NDArray[np.float64]:
        """The logits. [N, 2]"""
        return self.scores

    def num_flips(self, other: Self) -> int:
        """Answers that are other ones."""
        return sum(own != its for own, its in zip(self.texts, other.texts, strict=True))

    def joined(self, following: Sequence[Self]) -> Self:
        """This part of a split and those that follow it."""
        parts = [self, *following]
        return dataclasses.replace(
            self,
            texts=[text for part in parts for text in part.texts],
            starts=[start for part in parts for start in part.starts],
            references=[texts for part in parts for texts in part.references],
            scores=np.concatenate([part.scores for part in parts]),
            confidence=np.concatenate([part.confidence for part in parts]),
            rows=[row for part in parts for row in part.rows],
        )

    def answers(self) -> list[dict[str, Any]]:
        """answer, confidence and start of each question."""
        found = zip(self.texts, self.confidence.tolist(), self.starts, strict=True)
        return [{"answer": text, "confidence": share, "start": start} for text, share, start in found]


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
