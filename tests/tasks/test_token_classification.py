"""Token classification on hand-made tokenizers and tiny models: first tokens, windows, words without tokens, loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedTokenizerFast

from harness import notes
from harness.data.dataset import Example, Split, Splits
from harness.errors import DataError, ModelError
from harness.losses import IGNORE
from harness.models import pretrained
from harness.models.model import Architecture, Model
from harness.predictions import Tagged
from harness.tasks.token_classification import TokenClassification

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
PIECES = [*SPECIAL.values(), *"abcde", *(f"##{letter}" for letter in "abcde")]
VOCABULARY = {piece: i for i, piece in enumerate(PIECES)}
NOTHING = "\u200b"
"""A word that the tokenizer leaves nothing of."""
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, framed as BERT frames texts."""
    pieces: Any = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]", max_input_chars_per_word=200))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")]
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_input_names=inputs, **SPECIAL)


def checkpoint(folder: Path) -> Model:
    """A random tiny model and its tokenizer, as a folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=len(PIECES), num_labels=len(LABELS), **SIZES)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Model(name=str(folder), revision=None)


def sentence(draw: np.random.Generator, number: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    words = tuple("".join(draw.choice(list("abcde"), size=draw.integers(1, 5))) for _ in range(number))
    return words, tuple(int(tag) for tag in draw.integers(len(LABELS), size=number))


def split(name: str, labels: list[Any]) -> Split:
    return Split(name, [Example(f"{name}-{i}", " ".join(of[0]), None, of) for i, of in enumerate(labels)], "")


def splits(train: list[int], validation: list[int]) -> Splits:
    draw = np.random.default_rng(0)
    sides = {name: split(name, [sentence(draw, n) for n in lengths]) for name, lengths in
             (("train", train), ("validation", validation), ("test", validation))}  # fmt: skip
    return Splits(**sides, labels=LABELS, source="made by hand", report={})


SHORT, LONG = [3, 9, 1, 6, 4, 2, 7, 6, 4, 8, 5, 8], [3, 40, 1, 6, 90, 2]


def prepared(model: Model, data: Splits, **settings: Any) -> tuple[TokenClassification, nn.Module]:
    task = TokenClassification(**settings)
    task.load_data(data, model)
    torch.manual_seed(1)
    return task, task.load_model(model).eval()


def case(folder: Path, own: Model | None = None) -> tuple[TokenClassification, nn.Module]:
    """What tests/tasks/test_contract.py holds to the contract; the long sentences of validation are read in windows."""
    return prepared(own or checkpoint(folder), splits(SHORT, LONG), label_smoothing=0.1, max_length=48, overlap=10)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return checkpoint(tmp_path_factory.mktemp("bert"))


# -------------------------------------------------------------------------------------------------------------- tokens


def test_tags_stand_at_first_tokens(bert: Model) -> None:
    data = dataclasses.replace(splits([2, 2], [2]), train=split("train", [(("abc", "d", "ea"), (1, 2, 0))]))
    task, model = prepared(bert, data)
    (batch,) = task.batches(model, 4, torch.Generator())
    assert tokenizer().convert_ids_to_tokens(batch.per_token["input_ids"][0].tolist()) == [
        "[CLS]", "a", "##b", "##c", "d", "e", "##a", "[SEP]",
    ]  # fmt: skip
    assert batch.per_token["labels"][0].tolist() == [IGNORE, 1, IGNORE, IGNORE, 2, 0, IGNORE, IGNORE]
    assert task.count(batch) == {"words": 3}


def test_padding_is_not_learnt(bert: Model) -> None:
    task, model = prepared(bert, splits(SHORT, SHORT))
    for batch in task.batches(model, 5, torch.Generator().manual_seed(0)):
        assert bool((batch.per_token["labels"][batch.per_token["attention_mask"] == 0] == IGNORE).all())
        assert "labels" not in batch.per_example


@pytest.mark.parametrize(("length", "overlap"), [(12, 0), (12, 4), (24, 10), (500, 100)])
def test_every_word_is_learnt_once_whatever_the_windows(bert: Model, length: int, overlap: int) -> None:
    data = splits(LONG, SHORT)
    task, model = prepared(bert, data, max_length=length, overlap=overlap)
    found: list[int] = []
    for batch in task.batches(model, 2, torch.Generator().manual_seed(3)):
        labels = batch.per_token["labels"]
        assert int(batch.lengths.max()) <= length
        found += labels[labels != IGNORE].tolist()
    tags = [tag for example in data.train.examples for tag in example.label[1]]
    assert sorted(found) == sorted(tags)
    report = task.load_data(data, bert)
    sizes = [sum(map(len, example.label[0])) for example in data.train.examples]
    assert report["train"]["in_windows"] == sum(size + 2 > length for size in sizes)
    assert report["train"]["truncated"] == report["train"]["words_without_tokens"] == 0


@pytest.mark.parametrize(("length", "overlap"), [(12, 4), (24, 10), (500, 100)])
def test_a_word_is_predicted_in_the_window_that_it_belongs_to(bert: Model, length: int, overlap: int) -> None:
    """Against the model run by hand on every window; test_windows.py holds the choice to its definition."""
    data = splits(SHORT, LONG)
    task, model = prepared(bert, data, max_length=length, overlap=overlap)
    found = task.predict(model, "test", range(len(LONG)), 10**6)
    at, letters = 0, tokenizer()
    for example, windows in zip(data.test.examples, task._windows["test"], strict=True):
        words = example.label[0]
        assert sorted(word for window in windows for word, _ in window.places) == list(range(len(words)))
        for window in windows:
            ids = window.row["input_ids"]
            with torch.inference_mode():
                logits = model(**{name: torch.tensor([values]) for name, values in window.row.items()}).logits[0]
            for word, place in window.places:
                own = letters.convert_ids_to_tokens(ids[place : place + len(words[word])])
                assert "".join(own).replace("##", "") == words[word]
                np.testing.assert_allclose(found.scores[at + word], logits[place].numpy(), atol=1e-5)
        at += len(words)
    assert at == len(found.scores)


def test_windows_change_nothing_where_a_sentence_fits(bert: Model) -> None:
    scores = []
    for length in (64, 256):
        task, model = prepared(bert, splits(SHORT, SHORT), max_length=length, overlap=10)
        scores.append(task.predict(model, "test", range(len(SHORT)), 200).scores)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_words_without_tokens_are_predicted_outside_and_told(
    bert: Model, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "_told", set())
    label = ("a", NOTHING, "b", NOTHING), (1, 2, 0, 3)
    data = dataclasses.replace(splits(SHORT, SHORT), test=split("test", [label, ((NOTHING,), (1,))]))
    task, model = prepared(bert, data)
    assert task.load_data(data, bert)["test"]["words_without_tokens"] == 3
    assert "3 words of test are nothing to the tokenizer: they are predicted O" in capfd.readouterr().err
    found = task.predict(model, "test", range(2), 100)
    assert found.scores.shape == (5, len(LABELS)) and np.isfinite(found.scores).all()
    assert found.predicted[[1, 3, 4]].tolist() == [0, 0, 0] and found.tags.tolist() == [1, 2, 0, 3, 1]


def test_a_batch_without_any_word_has_the_loss_zero(bert: Model) -> None:
    data = dataclasses.replace(splits(SHORT, SHORT), train=split("train", [((NOTHING,), (1,))]))
    task, model = prepared(bert, data)
    (batch,) = task.batches(model, 1, torch.Generator())
    assert float(task.loss(model, batch, task.count(batch)).detach()) == 0


def test_a_word_longer_than_a_window_is_cut_and_counted(bert: Model) -> None:
    label = ("ab", "c" * 40, "de"), (1, 2, 3)
    data = dataclasses.replace(splits(SHORT, SHORT), test=split("test", [label]))
    task = TokenClassification(max_length=16, overlap=4)
    report = task.load_data(data, bert)["test"]
    assert (report["truncated"], report["in_windows"], report["words_without_tokens"]) == (1, 1, 0)
    found = task.predict(task.load_model(bert), "test", range(1), 100)
    assert found.scores.shape == (3, len(LABELS))


# ---------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_torch(bert: Model, smoothing: float) -> None:
    task, model = prepared(bert, splits(LONG, SHORT), label_smoothing=smoothing, max_length=24, overlap=10)
    batch = next(task.batches(model, 4, torch.Generator().manual_seed(1)))
    inputs = {name: x for name, x in batch.per_token.items() if name != "labels"}
    with torch.no_grad():
        logits, labels = model(**inputs).logits, batch.per_token["labels"]
        expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(task.loss(model, batch, task.count(batch)), expected)


# --------------------------------------------------------------------------------------------------------------- model


def test_the_head_is_new_and_names_its_tags(bert: Model, tmp_path: Path) -> None:
    task, model = prepared(bert, dataclasses.replace(splits(SHORT, SHORT), labels=[*LABELS, "B-ORG", "I-ORG"]))
    assert task.head(model) == {"classifier.weight", "classifier.bias"}
    task.save(model, tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["id2label"].values())[-1] == "I-ORG"
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path)("ab")["input_ids"] == tokenizer()("ab")["input_ids"]


def test_an_own_model_with_a_tokenizer_of_its_own() -> None:
    sizes = Architecture(layers=1, d_model=16, heads=2, ffn=16, vocabulary=300, max_length=64)
    own = Model(name="builtin:transformer", revision=None, architecture=sizes)
    data = splits(SHORT, LONG)
    task, model = prepared(own, data, max_length=48, overlap=10)
    found = task.predict(model, "test", range(len(LONG)), 100)
    assert found.scores.shape == (sum(LONG), len(LABELS))
    assert task.load_data(data, own)["test"]["words_without_tokens"] == 0


def test_byte_level_tokens_are_those_of_a_text_with_spaces(tmp_path: Path) -> None:
    """Words in the middle of a text are other tokens than words at its start."""
    checkpoint(tmp_path)
    pieces: Any = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "Ġa": 2, "[PAD]": 3}, [("Ġ", "a")]))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.post_processor = processors.ByteLevel(trim_offsets=False)
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]").save_pretrained(tmp_path)
    data = dataclasses.replace(splits([2], [2]), train=split("train", [(("a", "a", "aa"), (1, 2, 3))]))
    task = TokenClassification()
    task.load_data(data, Model(name=str(tmp_path), revision=None))
    (batch,) = task.batches(nn.Module(), 1, torch.Generator())
    assert batch.per_token["input_ids"].tolist() == [[0, 2, 2, 0]]
    assert batch.per_token["labels"].tolist() == [[1, 2, 3, IGNORE]]


def test_settings_that_cannot_be(bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = splits(LONG, LONG)
    message = r"overlap: windows of 30 tokens cannot share 15 .*\n  fix: set it to 14 or less"
    with pytest.raises(DataError, match=message):
        TokenClassification(max_length=32, overlap=15).load_data(data, bert)
    task = TokenClassification(max_length=600, overlap=10)
    long = dataclasses.replace(data, test=split("test", [sentence(np.random.default_rng(0), 400)]))
    task.load_data(long, bert)
    message = r"max_length: a text has 59. tokens, .* reads 512\n.*set it to 512; longer sentences"
    with pytest.raises(ModelError, match=message):
        task.load_model(bert)
    slow = tokenizer()
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    monkeypatch.setattr("harness.models.tokenizing.load", lambda *_: slow)
    with pytest.raises(ModelError, match=r"does not say which tokens are of which word"):
        TokenClassification().load_data(data, bert)


# ------------------------------------------------------------------------------------------------------------- answers


def answered(text: str, words: tuple[str, ...], tags: list[int]) -> dict[str, Any]:
    """A word is the surer the later it stands."""
    right = 0.6 + 0.1 * np.arange(len(words))[:, None] / max(1, len(words))
    scores = np.log(np.where(np.eye(len(LABELS))[np.array(tags, dtype=int)] > 0, right, 0.01))
    rows = [{"id": "1", "text": text}]
    (found,) = Tagged(np.zeros(len(words), dtype=np.int64), scores, LABELS, [words], rows).answers()
    return found


def test_answers_name_entities_with_their_place_and_how_sure() -> None:
    text = "Anna  Berg lives in Oslo."
    found = answered(text, ("Anna", "Berg", "lives", "in", "Oslo", "."), [1, 2, 0, 0, 4, 0])
    assert found["predicted"] == "Anna  Berg [PER]; Oslo [LOC]"
    named = [(text[one["start"] : one["end"]], one["type"]) for one in found["entities"]]
    assert named == [("Anna  Berg", "PER"), ("Oslo", "LOC")]
    first = 0.6 / 0.64
    assert found["entities"][0]["confidence"] == pytest.approx(first) == found["confidence"]
    assert found["entities"][1]["confidence"] > first


def test_texts_without_words_or_entities_are_answered() -> None:
    assert answered("a b", ("a", "b"), [0, 0])["entities"] == []
    assert answered("", (), [])["predicted"] == ""


def test_inputs_are_tokenised_for_a_trained_model(bert: Model) -> None:
    task = TokenClassification()
    label = ("ab", "c"), (0, 0)
    facts = task.load_inputs([Example("1", "ab c", None, label)], LABELS, bert)
    found = task.predict(task.load_model(bert), "inputs", range(1), 100)
    assert facts["longest"] == 5 and found.words == [("ab", "c")]
    assert set(found.answers()[0]) == set(task.answer_columns(LABELS))


def test_rows_are_given_to_the_model_by_the_names_it_knows(bert: Model) -> None:
    task, model = prepared(bert, splits(SHORT, SHORT))
    assert task.example(2, 5).keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert pretrained.readable(model, {"input_ids": [1], "odd": [2]}) == {"input_ids": [1]}


class Prompted(nn.Module):
    """A model whose logits begin with those of three tokens of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> Any:
        out = self.model(**inputs)
        out.logits = torch.cat([torch.full_like(out.logits[:, :1], 9.0).expand(-1, 3, -1), out.logits], dim=1)
        return out


def test_tokens_that_a_method_puts_before_a_sentence_are_no_words(bert: Model) -> None:
    task, model = prepared(bert, splits(SHORT, SHORT))
    batch = next(task.batches(model, 4, torch.Generator().manual_seed(1)))
    prompted = Prompted(model)
    torch.testing.assert_close(*(task.loss(of, batch, {"words": 3.0}) for of in (prompted, model)))
    found, plain = (task.predict(of, "test", range(4), 100).scores for of in (prompted, model))
    np.testing.assert_allclose(found, plain)
