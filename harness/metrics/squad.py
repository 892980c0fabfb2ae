"""Exact match and token F1 of answers, as SQuAD's own script counts them (Rajpurkar et al. 2016, arXiv 1606.05250).

Both sides are normalised: lower case, without ASCII punctuation, without the articles a, an, the, spaces collapsed.

    exact match    1 if the answer equals a reference, else 0
    F1             2 P R / (P + R) of the tokens that answer and reference share, counted with multiplicity

Each question takes its best reference; the split's value is the mean over its questions. Where one side is empty after
normalising, which is "no answer", both are 1 if the other is empty too, else 0 (`evaluate-v2.0.py`); references that
normalise to nothing do not count if another does. The script says percent, these are shares.
"""

from __future__ import annotations

import csv
import io
import re
import string
from collections import Counter
from pathlib import Path
from typing import ClassVar

from harness.metric import Metric
from harness.predictions import Spans
from harness.storage import write_text

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Squad(Metric[Spans]):
    """`squad_exact_match` and `squad_f1`; where the split has both kinds, also those of questions with and without an
    answer: `squad_f1_answerable`, `squad_f1_unanswerable`. One file: answers.csv.
    """

    produces: ClassVar[tuple[str, ...]] = ("squad_exact_match", "squad_f1")

    def compute(self, predictions: Spans) -> dict[str, float]:
        """Means over the questions."""
        scored = [_score(text, of) for text, of in zip(predictions.texts, predictions.references, strict=True)]
        kinds = ["answerable" if any(of) else "unanswerable" for of in predictions.references]
        found = _means(scored, "")
        if len(set(kinds)) > 1:
            for name in ("answerable", "unanswerable"):
                own = [score for score, kind in zip(scored, kinds, strict=True) if kind == name]
                found |= _means(own, f"_{name}")
        return found

    def write(self, predictions: Spans, folder: Path) -> None:
        """answers.csv, in the order of the split: id, question, context, answer, references, scores, confidence."""
        file = io.StringIO(newline="")
        table = csv.writer(file)
        head = ["id", "question", "context", "answer", "start", "references", "exact_match", "f1", "confidence"]
        table.writerow(head)
        for row, answer, references in zip(
            predictions.rows, predictions.answers(), predictions.references, strict=True
        ):
            exact, f1 = _score(answer["answer"], references)
            known = [row["id"], row["question"], row["context"], answer["answer"], answer["start"]]
            table.writerow([*known, " | ".join(dict.fromkeys(references)), int(exact), f1, answer["confidence"]])
        write_text(folder / "answers.csv", file.getvalue())


def _means(scored: list[tuple[float, float]], suffix: str) -> dict[str, float]:
    exact, f1 = (sum(of) / len(scored) for of in zip(*scored, strict=True))
    return {f"squad_exact_match{suffix}": exact, f"squad_f1{suffix}": f1}


def _score(answer: str, references: list[str]) -> tuple[float, float]:
    """Exact match and F1 with the best of the references."""
    own = _tokens(answer)
    known = [tokens for tokens in map(_tokens, references) if tokens] or [[]]
    return max(float(own == tokens) for tokens in known), max(_f1(own, tokens) for tokens in known)


def _f1(own: list[str], reference: list[str]) -> float:
    if not own or not reference:
        return float(own == reference)
    shared = sum((Counter(own) & Counter(reference)).values())
    return 2 * shared / (len(own) + len(reference))


def _tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
