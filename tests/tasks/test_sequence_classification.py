"""Sequence classification on hand-made tokenizers and tiny models: counts, padding, weights, loss, head."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.utils.class_weight import compute_class_weight
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from harness.data.dataset import Example, Split, Splits
from harness.errors import DataError, ModelError
from harness.models.model import Model
from harness.tasks.sequence_classification import SequenceClassification

LABELS = ["bad", "fair", "good"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL.values(), *(f"w{i}" for i in range(20)), "extra"])}
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


def tokenizer(**changed: Any) -> PreTrainedTokenizerFast:
    """One token per word, framed as BERT frames texts and pairs."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = [(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=inputs, **(SPECIAL | changed))


def checkpoint(folder: Path, labels: int = 3, family: str = "bert", kind: Any = None, **changed: Any) -> str:
    """A random tiny model and its tokenizer, as a folder."""
    torch.manual_seed(labels)
    sizes = {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 24} if family == "distilbert" else SIZES
    config = AutoConfig.for_model(family, vocab_size=len(VOCABULARY), num_labels=labels, **sizes)
    (kind or AutoModelForSequenceClassification).from_config(config).save_pretrained(folder)
    tokenizer(**changed).save_pretrained(folder)
    return str(folder)


def words(count: int, offset: int = 0) -> str:
    return " ".join(f"w{(i + offset) % 20}" for i in range(count))


def split(name: str, lengths: list[int], pairs: list[int] | None = None) -> Split:
    """Texts of so many words; labels in turn, the first one twice as often."""
    examples = [
        Example(f"{name}-{i}", words(length, i), words(pairs[i], i) if pairs else None, max(0, i % 4 - 1))
        for i, length in enumerate(lengths)
    ]
    return Split(name, examples, "sha256:none")


def splits(lengths: list[int], pairs: list[int] | None = None) -> Splits:
    train, validation, test = (split(name, lengths, pairs) for name in ("train", "validation", "test"))
    return Splits(train, validation, test, labels=LABELS, source="made by hand", report={})


def prepared(folder: Path | Model, data: Splits, **settings: Any) -> tuple[SequenceClassification, nn.Module]:
    """The task with this data, and a model of its own."""
    model = folder if isinstance(folder, Model) else Model(name=str(folder), revision=None)
    task = SequenceClassification(**settings)
    task.load_data(data, model)
    return task, task.load_model(model).eval()


def case(folder: Path, own: Model | None = None) -> tuple[SequenceClassification, nn.Module]:
    """What tests/tasks/test_contract.py holds to the contract."""
    return prepared(own or Path(checkpoint(folder)), splits(LENGTHS), label_smoothing=0.1, class_weights="balanced")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT classifier of three labels."""
    return Path(checkpoint(tmp_path_factory.mktemp("bert")))


LENGTHS = [3, 9, 1, 6, 14, 2, 7, 6, 4, 12, 5, 8]


# ----------------------------------------------------------------------------------------------------------------- data


def test_truncated_rows_are_counted(bert: Path) -> None:
    """Ten tokens hold eight words beside [CLS] and [SEP]: eight fit, nine do not."""
    task = SequenceClassification(max_length=10)
    report = task.load_data(splits([8, 9, 30, 1]), Model(name=str(bert), revision=None))
    assert report["train"] == report["test"] == {"tokens": 10 + 10 + 10 + 3, "longest": 10, "truncated": 2}


def test_truncated_pairs_are_counted(bert: Path) -> None:
    """Three tokens frame a pair, so that seven words fit, however they are divided."""
    task = SequenceClassification(max_length=10)
    report = task.load_data(splits([4, 4, 1, 7], [3, 4, 6, 1]), Model(name=str(bert), revision=None))
    assert report["train"] == {"tokens": 40, "longest": 10, "truncated": 2}
    (batch,) = task.batches(nn.Module(), 4, torch.Generator())
    assert (batch.per_token["input_ids"] == VOCABULARY["[SEP]"]).sum(1).tolist() == [2, 2, 2, 2]


def test_a_text_without_tokens_is_refused(bert: Path) -> None:
    folder = bert.parent / "bare"
    words_only = tokenizer()
    words_only.backend_tokenizer.post_processor = processors.Sequence([])  # no frame around a text
    words_only.save_pretrained(folder)
    data = splits([2, 3])
    test = dataclasses.replace(data.test, examples=[*data.test.examples, Example("empty", "\u2003", None, 1)])
    with pytest.raises(DataError, match=r"data.text: row empty of test has no tokens"):
        SequenceClassification().load_data(dataclasses.replace(data, test=test), Model(name=str(folder), revision=None))


def test_batches_are_padded_to_their_own_longest(bert: Path) -> None:
    task, model = prepared(bert, splits(LENGTHS))
    batches = list(task.batches(model, 5, torch.Generator().manual_seed(3)))
    assert [len(batch) for batch in batches] == [5, 5, 2] and task.num_batches(5) == 3
    for batch in batches:
        ids, mask = batch.per_token["input_ids"], batch.per_token["attention_mask"]
        assert ids.shape == mask.shape == (len(batch), max(batch.lengths))
        assert mask.tolist() == [[1] * n + [0] * (ids.shape[1] - n) for n in batch.lengths]
        assert bool((ids[mask == 0] == VOCABULARY["[PAD]"]).all()) and bool((ids[mask == 1] > 0).all())
    assert sorted(int(n) - 2 for batch in batches for n in batch.lengths) == sorted(LENGTHS)
    again = list(task.batches(model, 5, torch.Generator().manual_seed(3)))
    other = list(task.batches(model, 5, torch.Generator().manual_seed(4)))
    assert all(torch.equal(a.lengths, b.lengths) for a, b in zip(batches, again, strict=True))
    assert not all(torch.equal(a.lengths, b.lengths) for a, b in zip(batches, other, strict=True))


def test_the_texts_of_a_pair_are_told_apart(bert: Path) -> None:
    task, model = prepared(bert, splits([2, 3, 1, 1], [1, 4, 2, 2]))
    (batch,) = task.batches(model, 4, torch.Generator().manual_seed(0))
    row = batch.lengths.tolist().index(2 + 1 + 3)
    assert batch.per_token["token_type_ids"][row].tolist()[:6] == [0, 0, 0, 0, 1, 1]
    found = task.predict(model, "train", range(4), 1000)
    assert found.rows[1] == {"id": "train-1", "text": words(3, 1), "pair": words(4, 1)}


def test_inputs_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    """The tokenizer gives token types; DistilBERT knows none."""
    task, model = prepared(Path(checkpoint(tmp_path, family="distilbert")), splits(LENGTHS))
    assert np.isfinite(task.predict(model, "test", range(12), 100).scores).all()
    assert task.example(2, 5).keys() == {"input_ids", "attention_mask"}


def test_a_tokenizer_without_pad_token(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, pad_token=None)
    message = r"task.sequence_classification.pad_token: the tokenizer of .* has no pad token"
    with pytest.raises(ModelError, match=message) as raised:
        SequenceClassification().load_data(splits(LENGTHS), Model(name=folder, revision=None))
    with pytest.raises(ModelError, match=message + ", and no token 'nothing' to take its place"):
        SequenceClassification(pad_token="nothing").load_data(splits(LENGTHS), Model(name=folder, revision=None))
    named = re.fullmatch(r"name an existing token to pad with, such as (\S+)", raised.value.fix)
    assert named is not None
    task, model = prepared(tmp_path, splits([1, 5]), pad_token=named[1])
    assert model.config.pad_token_id == VOCABULARY[named[1]]  # type: ignore[union-attr]
    (batch,) = task.batches(model, 2, torch.Generator())
    assert batch.per_token["input_ids"][batch.per_token["attention_mask"] == 0].tolist() == [VOCABULARY[named[1]]] * 4


def test_tokenizer_and_labels_are_saved(bert: Path, tmp_path: Path) -> None:
    task, model = prepared(bert, splits(LENGTHS))
    task.save(model, tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["id2label"].values()) == splits(LENGTHS).labels
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert saved("w1 w2", "w3")["input_ids"] == tokenizer()("w1 w2", "w3")["input_ids"]


# ----------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_torch(bert: Path, class_weights: str, smoothing: float) -> None:
    settings = {"class_weights": class_weights, "label_smoothing": smoothing}
    task, model = prepared(bert, splits(LENGTHS), **settings)
    batch = next(task.batches(model, 8, torch.Generator().manual_seed(1)))
    labels = np.array([example.label for example in splits(LENGTHS).train.examples])
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weight = torch.tensor(weights, dtype=torch.float32) if class_weights == "balanced" else None
    reference = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
    with torch.no_grad():
        expected = reference(model(**batch.per_token).logits, batch.per_example["labels"])
        units = task.count(batch)
        whole = task.loss(model, batch, units)
        shares = sum(task.loss(model, batch.take(rows), units) for rows in ([0, 5, 2], [7], [1, 3, 4, 6]))
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(shares, expected)


def test_balanced_weights_are_those_of_scikit_learn(bert: Path) -> None:
    task, _ = prepared(bert, splits(LENGTHS), class_weights="balanced")
    labels = np.array([example.label for example in splits(LENGTHS).train.examples])
    assert np.bincount(labels).tolist() == [6, 3, 3]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert task._weights is not None
    assert task._weights.tolist() == pytest.approx(expected, rel=1e-12)


# -------------------------------------------------------------------------------------------------------------- predict


def test_predictions_come_in_order_and_do_not_depend_on_their_company(bert: Path) -> None:
    data = splits(LENGTHS)
    task, model = prepared(bert, data)
    model.double()
    rows = range(2, 11)
    together = task.predict(model.train(), "validation", rows, budget=40)
    assert not model.training, "dropout is off"
    alone = [task.predict(model, "validation", range(i, i + 1), budget=1).scores[0] for i in rows]
    np.testing.assert_allclose(together.scores, alone, atol=1e-6)
    encode = tokenizer()
    for i, row in enumerate(rows):
        example = data.validation.examples[row]
        inputs = encode(example.text, return_tensors="pt")
        np.testing.assert_allclose(together.scores[i], model(**inputs).logits[0].detach(), atol=1e-6)
        assert together.labels[i] == example.label
        assert together.rows[i] == {"id": example.id, "text": example.text}
    assert together.label_names == LABELS and together.scores.shape == (9, 3)
    assert task.predict(model, "test", range(0), 10).scores.shape == (0, 3)


def test_an_example_for_latency_is_framed_as_texts_are(bert: Path) -> None:
    task, model = prepared(bert, splits(LENGTHS))
    inputs = task.example(3, 7)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == dict.fromkeys(inputs, (3, 7))
    ids = inputs["input_ids"]
    assert set(ids[:, 0].tolist()) == {VOCABULARY["[CLS]"]} and set(ids[:, -1].tolist()) == {VOCABULARY["[SEP]"]}
    assert not set(ids[:, 1:-1].flatten().tolist()) & {VOCABULARY[token] for token in SPECIAL.values()}
    assert bool((inputs["attention_mask"] == 1).all())
    assert model(**inputs).logits.shape == (3, 3)
    assert task.example(1, 1)["input_ids"].shape == (1, 1)


# ---------------------------------------------------------------------------------------------------------------- model


def test_a_checkpoint_of_the_same_labels_keeps_its_head(bert: Path) -> None:
    task, model = prepared(bert, splits(LENGTHS))
    saved = load_file(bert / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert task.head(model) == {"classifier.weight", "classifier.bias"}
    assert model.config.id2label == dict(enumerate(LABELS))  # type: ignore[union-attr]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_another_number_of_labels_gets_a_new_head(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path, labels=5))
    task, model = prepared(folder, splits(LENGTHS))
    saved = load_file(folder / "model.safetensors")
    state = model.state_dict()
    assert state["classifier.weight"].shape == (3, 16) and saved["classifier.weight"].shape == (5, 16)
    assert all(torch.equal(state[name], saved[name]) for name in state if not name.startswith("classifier"))
    assert task.head(model) == {"classifier.weight", "classifier.bias"}


def test_what_the_checkpoint_lacks_belongs_to_the_head(tmp_path: Path) -> None:
    """A masked language model of BERT has no pooler: it stands inside the base, and is new all the same."""
    task, model = prepared(Path(checkpoint(tmp_path, kind=AutoModelForMaskedLM)), splits(LENGTHS))
    outside = {name for name, _ in model.named_parameters() if not name.startswith("bert.")}
    assert outside == {"classifier.weight", "classifier.bias"}
    assert task.head(model) == outside | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_weights_that_are_not_those_of_the_config(bert: Path, tmp_path: Path) -> None:
    message = r"model.name: the weights of .* do not fit\n.*not in its weights: bert\."
    for name, change in (("wider", {"intermediate_size": 32}), ("other", {})):
        folder = Path(checkpoint(tmp_path / name))
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        if not change:
            renamed = {f"x.{key}": tensor for key, tensor in load_file(folder / "model.safetensors").items()}
            save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            prepared(folder, splits(LENGTHS))


def test_a_text_longer_than_the_model_reads(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path))
    message = r"task.sequence_classification.max_length: a text has 600 tokens, .* reads 512\n.*set it to 512"
    with pytest.raises(ModelError, match=message):
        prepared(folder, splits([700, 2]), max_length=600)
    _, model = prepared(folder, splits([700, 2]), max_length=512)
    assert isinstance(model, nn.Module)


def test_folders_that_cannot_be_loaded(bert: Path, tmp_path: Path) -> None:
    tokens_only, torn = tmp_path / "tokens", tmp_path / "torn"
    tokenizer().save_pretrained(tokens_only)
    checkpoint(torn)
    (torn / "model.safetensors").write_bytes(b"half a down")
    with pytest.raises(
        ModelError, match=r"model.name: the tokenizer of .* cannot be loaded\n  why: .+\n  fix: see that"
    ):
        SequenceClassification().load_data(splits(LENGTHS), Model(name=str(tmp_path), revision=None))
    for folder in (tokens_only, torn):
        with pytest.raises(
            ModelError, match=r"model.name: the model of .* cannot be loaded\n  why: .+\n  fix: see that"
        ):
            prepared(folder, splits(LENGTHS))
    with pytest.raises(ModelError, match=r"there is no folder"):
        SequenceClassification().load_data(splits(LENGTHS), Model(name=str(tmp_path / "nowhere"), revision=None))
