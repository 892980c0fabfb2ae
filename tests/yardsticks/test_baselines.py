from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from harness.data import dataset
from harness.data.dataset import Data, Splits
from harness.data.labelling import Classes
from harness.errors import Interrupted
from harness.models.model import Model
from harness.yardsticks import baselines

MINILM = Model(name="builtin:minilm", revision=None)


@pytest.fixture(scope="module")
def reviews() -> Splits:
    return dataset.load(Data(name="builtin:product_reviews", text="text", label="label"), Classes())


def test_vader_and_raters_reach_what_is_known_of_them(reviews: Splits) -> None:
    """All 3,708 sentences: VADER 0.563, one human rater against the other nineteen 0.815 (accuracy 0.60 and 0.85)."""
    everything = [*reviews.train.examples, *reviews.validation.examples, *reviews.test.examples]
    truth = baselines._labels(everything)
    vader = baselines.score(truth, baselines._vader(everything), reviews.labels)
    assert vader["f1_macro"] == pytest.approx(0.563, abs=0.002)
    assert vader["accuracy"] == pytest.approx(0.60, abs=0.01)
    rater = baselines._one_rater(everything, [-0.5, 0.5], reviews.labels)
    assert rater["f1_macro"] == pytest.approx(0.815, abs=0.002)
    assert rater["accuracy"] == pytest.approx(0.85, abs=0.01)


def test_scores_are_those_of_scikit_learn(reviews: Splits) -> None:
    truth = baselines._labels(reviews.test.examples)
    for predicted in (baselines._majority(reviews), baselines._tfidf(reviews)):
        ours = baselines.score(truth, predicted, reviews.labels)
        assert ours["f1_macro"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert set(np.unique(baselines._majority(reviews))) == {reviews.labels.index("positive")}


def test_a_single_cut_leaves_out_what_needs_three_classes() -> None:
    two = Data(name="builtin:product_reviews", text="text", label="label", cuts=[0.0], limit=40, max_test_overlap=1.0)
    names = [row["name"] for row in baselines.measure(baselines.of_classes(dataset.load(two, Classes()), two, MINILM))]
    assert names == ["majority class", "TF-IDF + logistic regression", "frozen builtin:minilm + logistic regression"]


def test_a_baseline_that_cannot_be_had_is_left_out_and_said(reviews: Splits) -> None:
    """Texts without a repeated word leave TF-IDF nothing to count."""

    def unrepeated(split: dataset.Split) -> dataset.Split:
        examples = [
            dataclasses.replace(e, text=f"{split.name}{i}", ratings=()) for i, e in enumerate(split.examples[:40])
        ]
        return dataclasses.replace(split, examples=examples)

    other = dataclasses.replace(reviews, train=unrepeated(reviews.train), test=unrepeated(reviews.test))
    notices: list[str] = []
    settings = Data(name="builtin:product_reviews", text="text", label="label")
    rows = baselines.measure(baselines.of_classes(other, settings, MINILM), notices.append)
    assert [row["name"] for row in rows] == ["majority class", "frozen builtin:minilm + logistic regression"]
    assert len(notices) == 1
    assert "no baseline 'TF-IDF + logistic regression' here" in notices[0]


def test_a_signal_ends_them(reviews: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted(143)

    monkeypatch.setattr(baselines, "_tfidf", stopped)
    given = Data(name="builtin:product_reviews", text="text", label="label")
    with pytest.raises(Interrupted):
        baselines.measure(baselines.of_classes(reviews, given, MINILM))


def test_a_checkpoint_with_a_head_is_read_without_a_table_of_what_it_lacks(
    reviews: Splits, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    (checkpoint,) = (word.removeprefix("model.name=") for word in tiny if word.startswith("model.name="))
    train, test = (dataclasses.replace(s, examples=s.examples[:40]) for s in (reviews.train, reviews.test))
    few = dataclasses.replace(reviews, train=train, test=test)
    assert len(baselines._frozen(few, Model(name=checkpoint, revision=None))) == 40
    assert "".join(capfd.readouterr()) == ""


def test_a_yardstick_is_the_same_under_other_threads_and_batches(reviews: Splits, tiny: list[str]) -> None:
    (checkpoint,) = (word.removeprefix("model.name=") for word in tiny if word.startswith("model.name="))
    usual = baselines._frozen(reviews, Model(name=checkpoint, revision=None))
    turned = dataclasses.replace(reviews.train, examples=reviews.train.examples[::-1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        other = baselines._frozen(dataclasses.replace(reviews, train=turned), Model(name=checkpoint, revision=None))
    finally:
        torch.set_num_threads(threads)
    assert (usual == other).all()
