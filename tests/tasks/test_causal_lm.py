"""The causal language model: which tokens are targets of what, yardsticks on the same ones, what it writes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harness import registry
from harness.data.dataset import Example
from harness.errors import DataError, ModelError, SpecError
from harness.losses import IGNORE
from harness.models.model import Architecture, Model
from harness.predictions import Continued
from harness.tasks.causal_lm import CausalLM
from tests.tasks.language_models import SPECIAL, VOCABULARY, checkpoint, splits, text

BOS, EOS = VOCABULARY["[BOS]"], VOCABULARY["[EOS]"]
LENGTHS = [3, 20, 1, 6, 14, 2, 27, 6, 4, 12, 5, 8]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def prepared(folder: Path | Model, lengths: list[int] = LENGTHS, **settings: Any) -> tuple[CausalLM, nn.Module]:
    model = folder if isinstance(folder, Model) else Model(name=str(folder), revision=None)
    task = CausalLM(**{"chunk_length": 8, "paragraph_tokens": 5, "prompt_tokens": 3, **settings})
    task.load_data(splits(lengths), model)
    return task, task.load_model(model).eval()


def case(folder: Path, own: Model | None = None) -> tuple[CausalLM, nn.Module]:
    """What tests/tasks/test_contract.py holds to the contract."""
    return prepared(own or Path(checkpoint(folder, "gpt2")), overlap=0.25)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(checkpoint(tmp_path_factory.mktemp("gpt"), "gpt2"))


def document(length: int, offset: int) -> list[int]:
    return [BOS, *(VOCABULARY[word] for word in text(length, offset).split()), EOS]


def targets(task: CausalLM, split: str) -> list[tuple[int, int]]:
    """Each input token whose next one is a target, with that one."""
    batch = task.batch(split, list(range(task.num_rows(split))))
    ids, labels = batch.per_token["input_ids"], batch.per_token["labels"]
    kept = labels != IGNORE
    return sorted(zip(ids[kept].tolist(), labels[kept].tolist(), strict=True))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_each_token_but_the_first_of_a_document_is_predicted_once(gpt: Path, overlap: float) -> None:
    task, _ = prepared(gpt, overlap=overlap)
    documents = [document(length, i + 7) for i, length in enumerate(LENGTHS)]
    assert targets(task, "validation") == sorted(pair for ids in documents for pair in pairwise(ids))


def test_training_predicts_all_that_a_chunk_holds(gpt: Path) -> None:
    task, _ = prepared(gpt, [14], overlap=0.5)  # 16 tokens, 15 of them targets: chunks begin at 0, 4, 8
    batch = task.batch("train", [0, 1, 2])
    assert batch.lengths.tolist() == [8, 8, 7]
    assert (batch.per_token["labels"] != IGNORE).sum(1).tolist() == [8, 8, 7]
    ids = torch.tensor(document(14, 0))
    assert batch.per_token["input_ids"][1].tolist() == ids[4:12].tolist()
    assert batch.per_token["labels"][1].tolist() == ids[5:13].tolist()


def test_chunks_run_over_the_ends_of_documents_only_where_that_is_said(gpt: Path) -> None:
    apart, _ = prepared(gpt)
    assert all(
        BOS not in ids[1:]
        for ids in apart.batch("train", [*range(apart.num_rows("train"))]).per_token["input_ids"].tolist()
    )
    together, _ = prepared(gpt, across_documents=True)
    ids = [token for i, length in enumerate(LENGTHS) for token in document(length, i + 7)]
    assert targets(together, "validation") == sorted(pairwise(ids))
    assert len(together._paragraphs(prepared(gpt)[1], "validation", range(together.num_rows("validation")))) == 5


def test_likelihoods_are_those_of_the_model_itself(gpt: Path) -> None:
    """Against transformers' own loss, document by document."""
    task, model = prepared(gpt, [5, 6], chunk_length=32)
    found = task.predict(model, "test", range(2), 10**6)
    for row in range(2):
        ids = torch.tensor([document(5 + row, row + 14)])
        with torch.inference_mode():
            mean = float(model(input_ids=ids, labels=ids).loss)
        assert found.nll[row] / found.targets[row] == pytest.approx(mean, rel=1e-5)
        assert found.targets[row] == ids.shape[1] - 1


def test_yardsticks_are_judged_on_the_targets_of_the_model(gpt: Path) -> None:
    """The unigram model by hand: each of the target tokens once."""
    task, _ = prepared(gpt, overlap=0.5)
    counts = np.ones(len(VOCABULARY))
    for i, length in enumerate(LENGTHS):
        np.add.at(counts, document(length, i)[1:], 1)
    wanted = [token for i, length in enumerate(LENGTHS) for token in document(length, i + 14)[1:]]
    nll = float(-np.log(counts[wanted] / counts.sum()).mean())
    known = task.yardsticks(splits(LENGTHS), None, None)  # type: ignore[arg-type]
    assert known["unigram"]() == pytest.approx({"perplexity": np.exp(nll), "nll": nll})
    assert np.isfinite(known["trigram Kneser-Ney"]()["nll"])
    anew = type(task)(**task.model_dump()).yardsticks(splits(LENGTHS), None, Model(name=str(gpt), revision=None))  # type: ignore[arg-type]
    assert anew["unigram"]() == known["unigram"](), "`harness baselines` asks before anything is read"


def test_what_it_writes_is_the_same_each_time_and_holds_no_special_tokens(gpt: Path) -> None:
    task, model = prepared(gpt)
    rows = range(task.num_rows("validation"))
    first, again = (task.predict(model, "validation", rows, 10**6).paragraphs for _ in range(2))
    assert first == again
    assert len(first) == 5
    assert all(len(paragraph.tokens) == 5 for paragraph in first)
    assert not {VOCABULARY[token] for token in SPECIAL.values()} & {t for p in first for t in p.tokens}
    parts = [task.predict(model, "validation", range(*ends), 10**6) for ends in ((0, 4), (4, rows.stop))]
    assert [p.tokens for p in parts[0].joined(parts[1:]).paragraphs] == [p.tokens for p in first]
    of = next(i for i, paragraph in enumerate(first) if len(paragraph.reference.split()) == 5)
    number = int(first[of].id.removeprefix("validation-"))
    words = text(LENGTHS[number], number + 7).split()
    assert first[of].prompt.split() == words[:2], "the token of the begin is the third"
    assert first[of].reference.split() == words[2:7]


def test_a_judge_tells_what_the_text_is_worth_after_the_prompt(gpt: Path) -> None:
    task, model = prepared(gpt, judge=str(gpt))
    paragraphs = task.predict(model, "test", range(task.num_rows("test")), 10**6).paragraphs
    one = paragraphs[0]
    ids = torch.tensor([[VOCABULARY[word] for word in f"{one.prompt}{one.text}".split()]])
    with torch.inference_mode():
        nats = -model(input_ids=ids).logits[0, :-1].double().log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
    assert one.judged == pytest.approx(float(nats[-5:].mean()), rel=1e-5)
    assert one.judged_reference is not None
    unjudged = task.predict(model, "validation", range(task.num_rows("validation")), 10**6).paragraphs
    assert {paragraph.judged for paragraph in unjudged} == {None}


def test_a_judge_is_found_wanting_before_anything_is_read(gpt: Path, tmp_path: Path) -> None:
    """It is asked at the end of a run only: too late to hear that there is none."""
    bert, lacking = checkpoint(tmp_path / "bert", "bert"), checkpoint(tmp_path / "lacking", "gpt2")
    file = Path(lacking) / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.wpe.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    for judge, message in (
        ("./nowhere", "there is no folder"),
        ("builtin:nobody", "no built-in model is called 'nobody'"),
        (bert, r".* sees the tokens that it is to predict\n  fix: .*builtin:smollm2"),
        (lacking, r".* is no causal language model\n  why: without weights: transformer\.wpe\.weight"),
    ):
        with pytest.raises(ModelError, match=rf"^task\.causal_lm\.judge: {message}"):
            CausalLM(judge=judge).load_data(splits(LENGTHS), Model(name=str(gpt), revision=None))


def test_that_nobody_judges_is_said(
    gpt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import notes

    monkeypatch.setattr(notes, "_told", set())
    task, model = prepared(gpt)
    task.predict(model, "test", range(task.num_rows("test")), 10**6)
    assert (
        "nobody judges how coherent the paragraphs are: name a stronger model as task.causal_lm.judge"
        in capsys.readouterr().err
    )


def test_texts_of_any_length_get_one_answer_each(gpt: Path) -> None:
    task, model = prepared(gpt)
    examples = [Example(str(i), text(length, i), None, None) for i, length in enumerate([40, 1, 9])]
    task.load_inputs(examples, [], Model(name=str(gpt), revision=None))
    assert task.num_rows("inputs") == 3
    found = task.predict(model, "inputs", range(3), 10**6)
    assert [answer["tokens"] for answer in found.answers()] == [41, 2, 10]
    assert list(found.answers()[0]) == task.answer_columns([])
    part = task.predict(model, "inputs", range(1, 3), 10**6)
    np.testing.assert_allclose(part.nll, found.nll[1:], rtol=1e-6)
    with pytest.raises(DataError, match=r"^task\.causal_lm: nothing of row 1 is left to be predicted"):
        task.load_inputs([*examples[:1], Example("1", "\u200b", None, None)], [], Model(name=str(gpt), revision=None))


def test_an_own_model(tmp_path: Path) -> None:
    sizes = Architecture(layers=1, d_model=16, heads=2, ffn=24, vocabulary=300, max_length=32)
    own = Model(name="builtin:transformer", revision=None, architecture=sizes)
    task = CausalLM(chunk_length=16, paragraph_tokens=4)
    facts = task.load_data(splits(LENGTHS), own)
    model = task.load_model(own).eval()
    assert task.head(model) == set()
    found = task.predict(model, "test", range(task.num_rows("test")), 512)
    assert isinstance(found, Continued)
    assert found.targets.sum() == facts["test"]["tokens"] - len(LENGTHS)
    perplexity = registry.build("metric", "perplexity", {}).compute(found)["perplexity"]
    assert perplexity == pytest.approx(len(task._tokenizer), rel=0.1), "random weights: nearly uniform"


def test_mistakes_are_told(gpt: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^task\.causal_lm\.chunk_length: a chunk has 70 tokens, .* reads 64\n.*set it to 64"
    ):
        prepared(gpt, [100], chunk_length=70)
    bare = Path(checkpoint(tmp_path / "bare", "gpt2", eos_token=None, bos_token=None, cls_token=None, sep_token=None))
    with pytest.raises(ModelError, match=r"the tokenizer has no bos_token or cls_token or eos_token"):
        prepared(bare)
    with pytest.raises(SpecError, match=r"^task\.causal_lm\.language: no language is called 'englsh'\n.*'english'"):
        prepared(gpt, language="englsh")
    with pytest.raises(
        DataError, match=r"(validation|train) has no tokens\n.*lines dropped \(script\)\n.*script=any among"
    ):
        prepared(gpt, script="cyrillic")
