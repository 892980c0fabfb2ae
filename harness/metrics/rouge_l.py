"""ROUGE-L of generated texts: the longest common subsequence of words (Lin 2004, aclanthology.org/W04-1013, section 3).

    P = LCS / words generated,  R = LCS / words of the reference,  F = 2 P R / (P + R),  0 without a common word

The mean of F over the examples, without stemming. Words are runs of letters, digits and marks of any script, in lower
case: on ASCII those of Google's rouge-score, which cuts words at every accented letter. Scripts that put no space
between words are not divided further. This is ROUGE-L of the whole text, not ROUGE-Lsum, which takes lines one by one.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar

from harness.metric import Metric
from harness.predictions import Completed


class RougeL(Metric[Completed]):
    """`rouge_l`, over the examples for which a completion was generated."""

    produces: ClassVar[tuple[str, ...]] = ("rouge_l",)

    def compute(self, predictions: Completed) -> dict[str, float]:
        """The mean of F."""
        scores = [rouge_l(text, reference) for text, reference in predictions.pairs()]
        return {"rouge_l": sum(scores) / max(1, len(scores))}


def rouge_l(generated: str, reference: str) -> float:
    """F of two texts; 0 where one of them has no word."""
    ours, theirs = words(generated), words(reference)
    common = longest_common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def words(text: str) -> list[str]:
    """Runs of letters, digits and combining marks, in lower case."""
    composed = unicodedata.normalize("NFC", text).lower()
    return "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in composed).split()


def longest_common_subsequence(one: list[str], other: list[str]) -> int:
    """Its length: words in the same order, others may stand between."""
    lengths = [0] * (len(other) + 1)  # of what was read of `one`, and the first j of `other`
    for word in one:
        before = 0
        for j, its in enumerate(other, 1):
            before, lengths[j] = lengths[j], before + 1 if word == its else max(lengths[j], lengths[j - 1])
    return lengths[-1]
