"""Yardsticks on the same test examples: what a score has to beat, and what people reach.

Majority class; TF-IDF with logistic regression; mean-pooled embeddings of the frozen pretrained model with logistic
regression; and where the data carry the ratings of single people, VADER's own classifier (Hutto & Gilbert 2014) and
one rater against the mean of the others. All but the last two are fitted on the training split. A yardstick depends on
data and model only, not on where it is asked: threads, the order of batches and the kernels change embeddings by 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.catalogue import hub
from harness.data.dataset import Data, Example, Splits
from harness.errors import Interrupted
from harness.models.model import Model
from harness.predictions import Classified
from harness.registry import build

Labels = NDArray[np.int64]
MAX_LENGTH = 128
"""Tokens of a text that the frozen model reads."""


Yardsticks = Mapping[str, Callable[[], dict[str, float]]]


def of_classes(splits: Splits, data: Data, model: Model) -> Yardsticks:
    """Those that the data allow: f1_macro and accuracy on the whole test split."""
    test, labels = splits.test.examples, splits.labels
    truth = _labels(test)
    known: dict[str, Callable[[], dict[str, float]]] = {
        "majority class": lambda: score(truth, _majority(splits), labels),
        "TF-IDF + logistic regression": lambda: score(truth, _tfidf(splits), labels),
    }
    if not model.is_own:  # random weights are no yardstick
        known[f"frozen {model.name} + logistic regression"] = lambda: score(truth, _frozen(splits, model), labels)
    if len(labels) == 3 and len(data.cuts) == 2 and all(example.ratings for example in test):
        known["VADER"] = lambda: score(truth, _vader(test), labels)
        known["one human rater"] = lambda: _one_rater(test, data.cuts, labels)
    return known


def measure(known: Yardsticks, notice: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """One row per yardstick: name and scores.

    One that fails is left out with a notice: a yardstick must not cost a finished run.
    """
    rows = []
    for name, measured in known.items():
        try:
            rows.append({"name": name, **measured()})
        except Interrupted:
            raise
        except Exception as error:
            notice(
                f"NOTE no baseline '{name}' here: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
    return rows


def score(truth: Labels, predicted: Labels, labels: list[str]) -> dict[str, float]:
    """f1_macro and accuracy of predicted labels. [N], [N]"""
    predictions = Classified(truth, np.eye(len(labels))[predicted], labels, [])
    f1 = build("metric", "f1", {}).compute(predictions)["f1_macro"]
    return {"f1_macro": f1, "accuracy": float((predicted == truth).mean())}


def _labels(examples: Sequence[Example]) -> Labels:
    return np.array([example.label for example in examples], dtype=np.int64)


def _text(example: Example) -> str:
    return example.text if example.pair is None else f"{example.text} {example.pair}"


def _majority(splits: Splits) -> Labels:
    most = int(np.bincount(_labels(splits.train.examples)).argmax())
    return np.full(len(splits.test.examples), most, dtype=np.int64)


def _logistic(train: Any, splits: Splits, test: Any) -> Labels:
    """Fitted until only rounding is left: if a solver stops early, rounding decides how far it came. [N, D], [M, D]"""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced", solver="newton-cg", tol=1e-10, max_iter=2000)
    model.fit(train.astype(np.float64), _labels(splits.train.examples))
    return np.asarray(model.predict(test.astype(np.float64)), dtype=np.int64)


def _tfidf(splits: Splits) -> Labels:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    train = vectors.fit_transform([_text(e) for e in splits.train.examples])
    return _logistic(train, splits, vectors.transform([_text(e) for e in splits.test.examples]))


def _frozen(splits: Splits, checkpoint: Model) -> Labels:
    import torch
    from transformers import AutoModel, AutoTokenizer

    revision = checkpoint.revision
    source = hub.resolve(checkpoint.name, revision)
    with hub.quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model = AutoModel.from_pretrained(source, revision=revision, dtype=torch.float32).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def embed(examples: Sequence[Example]) -> NDArray[np.float32]:
        """Mean over the real tokens. [N, D]"""
        vectors = np.zeros((len(examples), model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(examples)), key=lambda i: len(_text(examples[i])))
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            texts = [examples[i].text for i in rows]
            pairs = [examples[i].pair for i in rows] if examples[0].pair is not None else None
            inputs = tokenizer(texts, pairs, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
            inputs = inputs.to(device)
            with torch.inference_mode():
                hidden = model(**inputs).last_hidden_state  # [B, T, D]
            mask = inputs["attention_mask"][..., None]
            vectors[rows] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
        return vectors

    return _logistic(embed(splits.train.examples), splits, embed(splits.test.examples))


def _vader(examples: Sequence[Example]) -> Labels:
    """Its published thresholds: compound below -0.05 negative, above 0.05 positive."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    compounds = np.array([analyzer.polarity_scores(example.text)["compound"] for example in examples])
    return np.where(compounds <= -0.05, 0, np.where(compounds >= 0.05, 2, 1)).astype(np.int64)


def _one_rater(examples: Sequence[Example], cuts: list[float], labels: list[str]) -> dict[str, float]:
    """The mean score of single raters, each against the class of the mean of all others."""
    count = min(len(example.ratings) for example in examples)
    scores = []
    for rater in range(count):
        own = np.array([example.ratings[rater] for example in examples], dtype=np.float64)
        others = np.array([np.mean(np.delete(example.ratings, rater)) for example in examples])
        scores.append(score(_cut(others, cuts), _cut(own, cuts), labels))
    return {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}


def _cut(ratings: NDArray[np.float64], cuts: list[float]) -> Labels:
    """Below the first cut negative, above the second positive, as `data.cuts` has it."""
    return np.where(ratings < cuts[0], 0, np.where(ratings > cuts[1], 2, 1)).astype(np.int64)
