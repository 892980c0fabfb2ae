"""What a tuned model has to beat on the same test pairs: not being tuned, copying, and looking up.

An untuned model shows what tuning adds; the prompt itself what a metric gives to words that the answer shares with the
question; the completion of the most similar training prompt (TF-IDF, cosine) what memory alone reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.data.dataset import Example, Splits
from harness.predictions import Completed
from harness.registry import build, producer


def of_completions(
    splits: Splits, written: Callable[[Example], str], untuned: Callable[[], Completed]
) -> Mapping[str, Callable[[], dict[str, float]]]:
    """rouge_l and exact_match on the test split, and the perplexity of the model.

    Args:
        splits: the pairs.
        written: the prompt of an example as one text.
        untuned: the completions of the model before it is trained.
    """
    test = splits.test.examples

    def copied() -> dict[str, float]:
        return score([written(example) for example in test], test)

    def looked_up() -> dict[str, float]:
        return score(_nearest(splits, written), test)

    def before() -> dict[str, float]:
        predictions = untuned()
        values = [build("metric", producer(key, "Completed"), {}).compute(predictions)[key] for key in _KEYS]
        return dict(zip(_KEYS, values, strict=True))

    return {"prompt copied": copied, "most similar training prompt": looked_up, "the model before tuning": before}


_KEYS = ("rouge_l", "exact_match", "perplexity")


def score(texts: list[str], examples: Sequence[Example]) -> dict[str, float]:
    """rouge_l and exact_match of texts; nothing is known of their likelihood. [N], [N]"""
    none = np.zeros(len(texts), dtype=np.int64)
    references = [str(example.label) for example in examples]
    predictions = Completed(none.astype(np.float64), none, none, [], [*texts], references)
    return {
        key: build("metric", producer(key, "Completed"), {}).compute(predictions)[key]
        for key in ("rouge_l", "exact_match")
    }


def _nearest(splits: Splits, written: Callable[[Example], str]) -> list[str]:
    """For each test prompt the completion of the training prompt with the highest cosine; of equals the first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    train = vectors.fit_transform([written(example) for example in splits.train.examples])
    test = vectors.transform([written(example) for example in splits.test.examples])
    similar = (test @ train.T).toarray()  # [N test, N train]: rows have length one
    return [str(splits.train.examples[int(best)].label) for best in similar.argmax(axis=1)]
