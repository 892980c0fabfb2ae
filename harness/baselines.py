"""Yardsticks on the same test examples: what a score has to beat, and what people reach.

Majority class; TF-IDF with logistic regression; mean-pooled embeddings of the frozen pretrained model with logistic
regression; and where the data carry the ratings of single people, VADER's own classifier (Hutto & Gilbert 2014) and
one rater against the mean of the others. All but the last two are fitted on the training split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import hub
from harness.data import Data, Example, Splits
from harness.metric import Predictions
from harness.registry import build

Labels = NDArray[np.int64]


def measure(splits: Splits, data: Data, checkpoint: str, max_length: int = 128) -> list[dict[str, Any]]:
    """One row per baseline that the data allow: name, f1_macro, accuracy; on the whole test split."""
    is_rated = all(example.ratings for example in splits.test.examples)
    found: dict[str, Callable[[], Labels]] = {
        "majority class": lambda: _majority(splits),
        "TF-IDF + logistic regression": lambda: _tfidf(splits),
        f"frozen {checkpoint} + logistic regression": lambda: _frozen(splits, checkpoint, max_length),
    }
    if is_rated and len(data.cuts) == 2:
        found["VADER"] = lambda: _vader(splits.test.examples)
        found["one human rater"] = lambda: _rater(splits.test.examples, data.cuts)
    return [{"name": name, **_score(splits, predict())} for name, predict in found.items()]


def _score(splits: Splits, predicted: Labels) -> dict[str, float]:
    truth = _labels(splits.test.examples)
    predictions = Predictions(truth, np.eye(len(splits.labels))[predicted], splits.labels, [])
    f1 = build("metric", "f1", {}).compute(predictions)["f1_macro"]
    return {"f1_macro": f1, "accuracy": float((predicted == truth).mean())}


def _labels(examples: list[Example]) -> Labels:
    return np.array([example.label for example in examples], dtype=np.int64)


def _text(example: Example) -> str:
    return example.text if example.pair is None else f"{example.text} {example.pair}"


def _majority(splits: Splits) -> Labels:
    most = int(np.bincount(_labels(splits.train.examples)).argmax())
    return np.full(len(splits.test.examples), most, dtype=np.int64)


def _logistic(train: Any, splits: Splits, test: Any) -> Labels:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=2000, class_weight="balanced").fit(train, _labels(splits.train.examples))
    return np.asarray(model.predict(test), dtype=np.int64)


def _tfidf(splits: Splits) -> Labels:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    train = vectors.fit_transform([_text(e) for e in splits.train.examples])
    return _logistic(train, splits, vectors.transform([_text(e) for e in splits.test.examples]))


def _frozen(splits: Splits, checkpoint: str, max_length: int) -> Labels:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = hub.resolve(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def embed(examples: list[Example]) -> NDArray[np.float32]:
        """Mean over the real tokens. [N, D]"""
        vectors = np.zeros((len(examples), model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(examples)), key=lambda i: len(_text(examples[i])))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            texts = [examples[i].text for i in rows]
            pairs = [examples[i].pair for i in rows] if examples[0].pair is not None else None
            inputs = tokenizer(texts, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**inputs).last_hidden_state  # [B, T, D]
            mask = inputs["attention_mask"][..., None]
            vectors[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return vectors

    return _logistic(embed(splits.train.examples), splits, embed(splits.test.examples))


def _vader(examples: list[Example]) -> Labels:
    """Its published thresholds: compound below -0.05 negative, above 0.05 positive."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    compounds = np.array([analyzer.polarity_scores(example.text)["compound"] for example in examples])
    return np.where(compounds <= -0.05, 0, np.where(compounds >= 0.05, 2, 1)).astype(np.int64)


def _rater(examples: list[Example], cuts: list[float]) -> Labels:
    """The first rater of each example, cut as the mean is; raters differ from example to example."""
    first = np.array([example.ratings[0] for example in examples], dtype=np.float64)
    return np.where(first < cuts[0], 0, np.where(first > cuts[1], 2, 1)).astype(np.int64)
