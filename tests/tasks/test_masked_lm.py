"""The masked language model: what is hidden when, in training and when it is judged; a batch without targets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import ModelError
from harness.losses import IGNORE
from harness.models.model import Model
from harness.tasks.masked_lm import MaskedLM
from tests.tasks.language_models import SPECIAL, VOCABULARY, checkpoint, splits, text

CLS, SEP, MASK = (VOCABULARY[token] for token in ("[CLS]", "[SEP]", "[MASK]"))
LENGTHS = [3, 20, 9, 6, 14, 12, 27, 6, 14, 12, 15, 8]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def prepared(folder: Path | Model, lengths: list[int] = LENGTHS, **settings: Any) -> tuple[MaskedLM, nn.Module]:
    model = folder if isinstance(folder, Model) else Model(name=str(folder), revision=None)
    task = MaskedLM(**{"chunk_length": 10, **settings})
    task.load_data(splits(lengths), model)
    return task, task.load_model(model).eval()


def case(folder: Path, own: Model | None = None) -> tuple[MaskedLM, nn.Module]:
    """What tests/tasks/test_contract.py holds to the contract."""
    return prepared(own or Path(checkpoint(folder, "bert")), overlap=0.25, share=0.5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(checkpoint(tmp_path_factory.mktemp("bert"), "bert"))


def epoch(task: MaskedLM, seed: int, size: int = 4) -> dict[tuple[int, ...], tuple[list[int], list[int]]]:
    """What is read and what is to be said of each chunk, by the chunk as it is."""
    found = {}
    for batch in task.batches(nn.Module(), size, torch.Generator().manual_seed(seed)):
        for ids, labels, length in zip(
            batch.per_token["input_ids"].tolist(),
            batch.per_token["labels"].tolist(),
            batch.lengths.tolist(),
            strict=True,
        ):
            whole = tuple(said if said != IGNORE else read for read, said in zip(ids, labels, strict=True))[:length]
            assert set(labels[length:]) <= {IGNORE}
            found[whole] = ids[:length], labels[:length]
    return found


@pytest.mark.parametrize("masking", ["dynamic", "static"])
def test_chunks_are_framed_and_their_frame_is_never_hidden(bert: Path, masking: str) -> None:
    task, _ = prepared(bert, masking=masking, share=0.9)
    chunks = epoch(task, 0)
    assert len(chunks) == task.num_rows("train") == sum(math.ceil(length / 8) for length in LENGTHS)
    assert all(whole[0] == CLS and whole[-1] == SEP and len(whole) <= 10 for whole in chunks)
    assert all(labels[0] == labels[-1] == IGNORE for _, labels in chunks.values())
    assert sorted(token for whole in chunks for token in whole[1:-1]) == sorted(
        VOCABULARY[word] for i, length in enumerate(LENGTHS) for word in text(length, i).split()
    )


def test_dynamic_masking_is_drawn_anew_in_each_epoch_whatever_the_batches(bert: Path) -> None:
    task, _ = prepared(bert, share=0.5)
    assert epoch(task, 1) == epoch(task, 1)
    assert epoch(task, 1) == epoch(task, 1, size=3), "the cut into batches does not matter"
    assert epoch(task, 1) != epoch(task, 2)


def test_static_masking_is_that_of_the_definition(bert: Path) -> None:
    """A hidden chunk is mask tokens between its frame, all of them targets; any other is itself, without targets."""
    task, _ = prepared(bert, masking="static", share=0.5)
    chunks = epoch(task, 1)
    assert chunks == epoch(task, 2), "the same in every epoch"
    hidden = [whole for whole, (ids, _) in chunks.items() if MASK in ids]
    assert 0 < len(hidden) < len(chunks)
    for whole, (ids, labels) in chunks.items():
        if whole in hidden:
            assert ids == [CLS, *[MASK] * (len(whole) - 2), SEP]
            assert labels == [IGNORE, *whole[1:-1], IGNORE]
        else:
            assert ids == list(whole)
            assert set(labels) == {IGNORE}
    assert epoch(prepared(bert, masking="static", share=0.5, mask_seed=1)[0], 1) != chunks


def test_it_is_judged_alike_however_it_is_trained_and_on_each_token_once_at_most(bert: Path) -> None:
    (dynamic, model), (static, _) = prepared(bert, [200] * 4), prepared(bert, [200] * 4, masking="static")
    rows = range(dynamic.num_rows("test"))
    one, other = (task.predict(model, "test", rows, 10**6) for task in (dynamic, static))
    np.testing.assert_array_equal(one.nll, other.nll)
    assert 0.1 < one.targets.sum() / 800 < 0.2
    half, _ = prepared(bert, [200], overlap=0.5)
    read = [half._row("test", row, None)[1] for row in range(half.num_rows("test"))]
    assert all((labels[1:5] == IGNORE).all() for labels in read[1:]), "the overlap was judged before"


def test_yardsticks_are_judged_on_the_hidden_tokens(bert: Path) -> None:
    task, model = prepared(bert)
    counts = np.ones(len(VOCABULARY))
    for i, length in enumerate(LENGTHS):
        np.add.at(counts, [VOCABULARY[word] for word in text(length, i).split()], 1)
    labels = task.batch("test", [*range(task.num_rows("test"))]).per_token["labels"]
    hidden = labels[labels != IGNORE].numpy()
    nll = float(-np.log(counts[hidden] / counts.sum()).mean())
    known = task.yardsticks(splits(LENGTHS), None, None)  # type: ignore[arg-type]
    assert known["unigram"]() == pytest.approx({"perplexity": np.exp(nll), "nll": nll})
    assert task.predict(model, "test", range(task.num_rows("test")), 100).targets.sum() == len(hidden)
    assert np.isfinite(known["trigram Kneser-Ney from the two tokens before"]()["nll"])
    anew = type(task)(**task.model_dump()).yardsticks(splits(LENGTHS), None, Model(name=str(bert), revision=None))  # type: ignore[arg-type]
    assert anew["unigram"]() == known["unigram"](), "`harness baselines` asks before anything is read"


def test_a_batch_without_targets_teaches_nothing(bert: Path) -> None:
    task, model = prepared(bert, masking="static", share=1e-9)
    batch = next(task.batches(model, 4, torch.Generator()))
    assert task.count(batch) == {"tokens": 0.0}
    loss = task.loss(model, batch, task.count(batch))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path / "bare", "bert", mask_token=None))
    with pytest.raises(ModelError, match=r"^model\.name: the tokenizer has no mask_token\n.*such as BERT"):
        prepared(folder)


def test_random_tokens_are_never_special(bert: Path) -> None:
    task, _ = prepared(bert, [400] * 3, share=0.9)
    special = {VOCABULARY[token] for token in SPECIAL.values()} - {CLS, SEP, MASK}
    assert not special & {token for ids, _ in epoch(task, 0).values() for token in ids}
