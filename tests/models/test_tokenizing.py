"""Tokenizers that are trained on the data: every text can be written in them, and they are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import notes
from harness.errors import ModelError
from harness.models import tokenizing
from harness.models.model import Architecture, Model

TEXTS = ["the screen was good", "the battery was bad", "the screen and the battery", "good"] * 3


def model(vocabulary: int = 300) -> Model:
    return Model(
        name="builtin:transformer", revision=None, architecture=Architecture(vocabulary=vocabulary, max_length=9)
    )


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "cache_folder", lambda: tmp_path_factory.getbasetemp() / "tokenizing")
        yield


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    tokenizer = tokenizing.load(model(), lambda: TEXTS)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text or "[" in text
    assert tokenizer.unk_token_id not in ids or "[UNK]" in text


def test_frequent_words_are_tokens_and_texts_are_framed() -> None:
    tokenizer = tokenizing.load(model(), lambda: TEXTS)
    assert "Ġscreen" in tokenizer.get_vocab()
    assert len(tokenizer) <= 300
    framed = tokenizer.convert_ids_to_tokens(tokenizer("good", "bad")["input_ids"])
    assert framed[0] == "[CLS]"
    assert framed.count("[SEP]") == 2
    assert (tokenizer.pad_token_id, tokenizer.mask_token, tokenizer.model_max_length) == (0, "[MASK]", 9)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("[CLS]", "[SEP]")


def test_it_is_trained_once_and_anew_for_other_texts_or_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    train = tokenizing._train

    def counted(texts: Iterable[str], size: int) -> Any:
        trained.append(size)
        return train(texts, size)

    monkeypatch.setattr(tokenizing, "_train", counted)
    some = [f"{text} {'x' * i}" for i, text in enumerate(TEXTS)]
    first, again = (tokenizing.load(model(), lambda: some) for _ in range(2))
    assert first.get_vocab() == again.get_vocab()
    assert trained == [300]
    tokenizing.load(model(310), lambda: some)
    tokenizing.load(model(), lambda: some[:-1])
    tokenizing.load(model(), lambda: ["".join(some)])
    assert trained == [300, 310, 300, 300]


def test_a_process_that_was_slower_takes_what_is_there(tmp_path: Path) -> None:
    made = tokenizing._train(TEXTS, 300)
    for _ in range(2):
        tokenizing._keep(made, tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_without_texts_there_is_none() -> None:
    with pytest.raises(ModelError, match=r"(?s)model\.tokenizer: builtin:transformer has no tokenizer.*fix: name one"):
        tokenizing.load(model())


@pytest.mark.parametrize("name", ["builtin:nothing", "./nowhere", "some/model"])
def test_one_that_is_not_there_is_told_with_the_setting_that_names_it(name: str) -> None:
    with pytest.raises(ModelError, match=r"^model\.tokenizer: "):
        tokenizing.load(model().model_copy(update={"tokenizer": name}))
    with pytest.raises(ModelError, match=r"^model\.name: "):
        tokenizing.load(Model(name=name, revision=None))


@pytest.mark.parametrize(("asked", "told"), [(16, "so many"), (9000, "no more pairs"), (280, "")])
def test_a_vocabulary_of_another_size_is_said(
    asked: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "_told", set())
    size = len(tokenizing.load(model(asked), lambda: TEXTS))
    said = capsys.readouterr().err
    assert (f"a vocabulary of {size:,} tokens, not of {asked:,}: " in said) == bool(told)
    assert told in said


def test_one_that_is_named_is_taken(tmp_path: Path) -> None:
    tokenizing.load(model(), lambda: TEXTS).save_pretrained(tmp_path)
    named = model().model_copy(update={"tokenizer": str(tmp_path)})
    assert tokenizing.load(named).get_vocab() == tokenizing.load(model(), lambda: TEXTS).get_vocab()
