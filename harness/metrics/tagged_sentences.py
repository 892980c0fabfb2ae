"""Every sentence with its true and its predicted tags, so that people and `conlleval` can read where a model errs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.metric import Metric
from harness.predictions import Tagged
from harness.storage import write_text


class TaggedSentences(Metric[Tagged]):
    """No numbers, one file: predictions.conll, in the order of the split."""

    def write(self, predictions: Tagged, folder: Path) -> None:
        """predictions.conll: word, probability, true and predicted tag, separated by tabs; a blank line after each."""
        sure = iter(np.exp(predictions.log_probabilities().max(axis=1)).tolist())
        both = (predictions.by_sentence(tags) for tags in (predictions.tags, predictions.predicted))
        sentences = (
            "".join(f"{word}\t{next(sure):.4f}\t{true}\t{guess}\n" for word, true, guess in zip(*of, strict=True))
            for of in zip(predictions.words, *both, strict=True)
        )
        write_text(folder / "predictions.conll", "\n".join(sentences))
