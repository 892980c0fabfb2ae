"""Instruction tuning: what is read and learnt, truncation, templates, generation, packing, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from harness import losses, notes
from harness.data import dataset
from harness.data.dataset import Data, Example
from harness.data.labelling import Completions
from harness.errors import DataError, ModelError
from harness.language import packing
from harness.models import padding_free
from harness.models.model import Model
from harness.task import Task
from harness.tasks.instruction_tuning import InstructionTuning
from tests.toys import OWN

CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WORDS = ["red", "green", "blue", "lamp", "river", "stone", "paper", "garden"]


def pairs(number: int = 40) -> list[tuple[str, str]]:
    """Prompts of different lengths, each with its words in reverse as the completion."""
    prompts = [f"{i} " + " ".join(WORDS[(i * k) % 8] for k in range(1, 2 + i % 7)) for i in range(number)]
    return [(prompt, " ".join(reversed(prompt.split()))) for prompt in prompts]


def source(folder: Path) -> Data:
    rows = [f'"{prompt}","{completion}"' for prompt, completion in pairs()]
    (folder / "pairs.csv").write_text("\n".join(["prompt,completion", *rows]) + "\n")
    return Data(name=str(folder / "pairs.csv"), text="prompt", label="completion", max_test_overlap=1.0)


def checkpoint(folder: Path, *, chat: bool = True, family: str = "llama", **sizes: Any) -> Model:
    """A random two-layer Llama whose heads share keys and values, and a tokenizer trained on the pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    kernel = Tokenizer(models.BPE())
    kernel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    kernel.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|eos|>", "<|start|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    kernel.train_from_iterator([text for pair in pairs() for text in pair], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=kernel, eos_token="<|eos|>", additional_special_tokens=["<|start|>", "<|end|>"]
    )
    tokenizer.chat_template = CHAT if chat else None
    place = folder / f"model-{family}-{chat}"
    tokenizer.save_pretrained(place)
    given: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
    given |= {"intermediate_size": 24}
    given |= {"num_key_value_heads": 2} if family == "llama" else {}
    given |= {"initializer_range": 0.5, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0, **sizes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **given)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return Model(name=str(place), revision=None)


def loaded(folder: Path, model: Model | None = None, **settings: Any) -> tuple[InstructionTuning, nn.Module]:
    folder.mkdir(exist_ok=True)
    task, model = InstructionTuning(**settings), model or checkpoint(folder)
    task.load_data(dataset.load(source(folder), Completions()), model)
    return task, task.load_model(model)


def case(folder: Path) -> tuple[Task, nn.Module]:
    task, model = loaded(folder, max_new_tokens=6, validation_rows=4)
    return task, model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[InstructionTuning, Any]:
    return cast("tuple[InstructionTuning, Any]", case(tmp_path_factory.mktemp("made")))


def everything(task: InstructionTuning, model: nn.Module, size: int = 8) -> Any:
    return next(iter(task.batches(model, size, torch.Generator().manual_seed(0))))


def test_a_pair_is_written_as_the_chat_template_has_it(made: Any) -> None:
    task, _ = made
    tokenizer = task._writer.tokenizer
    for row, example in zip(task._rows["test"], task._splits["test"].examples, strict=True):
        asked = [{"role": "user", "content": example.text}]
        messages = [*asked, {"role": "assistant", "content": example.label}]
        assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        assert tokenizer.decode(row.ids[row.start :]) == f"{example.label}<|end|>"


def test_only_the_completion_and_its_end_are_learnt_each_by_the_token_before(made: Any) -> None:
    task, model = made
    batch = everything(task, model)
    ids, labels = batch.per_token["input_ids"], batch.per_token["labels"]
    for row in range(len(batch)):
        places = (labels[row] != losses.IGNORE).nonzero().flatten().tolist()
        assert places == list(range(places[0], int(batch.lengths[row]) - 1)), "up to the last but one"
        assert labels[row, places].tolist() == ids[row, places[0] + 1 : batch.lengths[row]].tolist()
        learnt = task._writer.tokenizer.decode(labels[row, places])
        whole = task._writer.tokenizer.decode(ids[row, : batch.lengths[row]])
        assert whole.endswith(f"<|start|>assistant\n{learnt}")
        assert learnt.endswith("<|end|>")
    assert task.count(batch) == {"tokens": float((labels != losses.IGNORE).sum())}


def test_the_loss_is_the_mean_nll_of_the_completions_tokens_by_definition(made: Any) -> None:
    task, model = made
    batch = everything(task, model)
    total, number = 0.0, 0
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.per_token["input_ids"][row, :length]
        shares = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        start = int((batch.per_token["labels"][row] != losses.IGNORE).nonzero()[0]) + 1
        total -= sum(float(shares[t - 1, ids[t]].detach()) for t in range(start, length))
        number += length - start
    assert float(task.loss(model, batch, task.count(batch)).detach()) == pytest.approx(total / number, rel=1e-5)


def test_predictions_are_nll_hits_and_completions(made: Any) -> None:
    task, model = made
    found = task.predict(model, "test", range(task.num_rows("test")), 64)
    for i, row in enumerate(task._rows["test"]):
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.start - 1 : -1]
        truth = torch.tensor(row.ids[row.start :])
        assert found.nll[i] == pytest.approx(float(F.cross_entropy(logits, truth, reduction="sum").detach()), rel=1e-5)
        assert found.targets[i] == len(truth)
        assert found.hits[i] == int((logits.argmax(-1) == truth).sum())
        ids = row.ids[: row.start]
        for _ in range(task.max_new_tokens):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in (0, task._writer.end):
                break
            ids = [*ids, token]
        assert found.generated[i] == task._writer.text(ids[row.start :])
        assert found.references[i] == task._splits["test"].examples[i].label


def test_of_validation_a_few_rows_are_generated_whoever_asks(made: Any) -> None:
    task, model = made
    number = task.num_rows("validation")
    whole = task.predict(model, "validation", range(number), 64)
    asked = [i for i, text in enumerate(whole.generated) if text is not None]
    assert 1 < len(asked) <= task.validation_rows < number
    parts = [task.predict(model, "validation", range(*ends), 64) for ends in ((0, 3), (3, number))]
    assert parts[0].joined(parts[1:]).generated == whole.generated
    assert None not in task.predict(model, "test", range(task.num_rows("test")), 64).generated


def test_a_long_pair_loses_its_end_and_is_counted(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    splits = dataset.load(source(tmp_path), Completions())
    whole, short = InstructionTuning(), InstructionTuning(max_length=28)
    facts = whole.load_data(splits, model)
    assert (facts["train"]["truncated"], facts["train"]["template"]) == (0, "chat")
    facts = short.load_data(splits, model)
    for name in ("train", "validation", "test"):
        lengths = [len(row.ids) for row in whole._rows[name]]
        assert facts[name]["truncated"] == sum(length > 28 for length in lengths)
        assert facts[name]["longest"] == min(28, max(lengths))
        assert facts[name]["targets"] == sum(len(row.ids) - row.start for row in short._rows[name])
        assert all(len(row.ids) > row.start for row in short._rows[name])
    assert facts["train"]["truncated"] > 0
    with pytest.raises(DataError, match=r"row \d+ of \w+: the prompt has \d+ tokens, which leaves nothing of 12 for"):
        InstructionTuning(max_length=12).load_data(splits, model)


def test_without_a_chat_template_the_plain_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes._told.clear()
    model = checkpoint(tmp_path, chat=False)
    task = InstructionTuning()
    facts = task.load_data(dataset.load(source(tmp_path), Completions()), model)
    assert "has no chat template: prompts are written as '### Instruction:" in capsys.readouterr().err
    row, example = task._rows["train"][0], task._splits["train"].examples[0]
    expected = f"### Instruction:\n{example.text}\n\n### Response:\n{example.label}<|eos|>"
    assert task._writer.tokenizer.decode(row.ids) == expected
    assert facts["train"]["template"] == "plain"
    with pytest.raises(ModelError, match="has no chat template"):
        InstructionTuning(template="chat").load_data(dataset.load(source(tmp_path), Completions()), model)


def test_two_columns_are_one_prompt(made: Any) -> None:
    from harness.language.completions import joined

    assert joined("do", "this") == "do\n\nthis"
    assert joined("do", None) == "do"


def test_an_instruction_may_do_without_an_input(tmp_path: Path) -> None:
    """As in Alpaca's rows; one without an instruction is incomplete."""
    rows = [{"instruction": f"do {i}", "input": ["", None, " ", "it"][i % 4], "output": f"done {i}"} for i in range(40)]
    (tmp_path / "alpaca.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = Data(name=str(tmp_path / "alpaca.jsonl"), text=["instruction", "input"], label="output")
    splits = dataset.load(given, Completions())
    examples = [*splits.train.examples, *splits.validation.examples, *splits.test.examples]
    assert len(examples) == 40
    assert {example.pair for example in examples if int(example.text.split()[1]) % 4 == 3} == {"it"}
    assert {example.pair for example in examples if int(example.text.split()[1]) % 4 != 3} == {None}
    (tmp_path / "alpaca.jsonl").write_text("\n".join(json.dumps({**row, "instruction": ""}) for row in rows))
    with pytest.raises(DataError, match="blank: 40 × instruction"):
        dataset.load(given, Completions())


def test_blank_completions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,completion\n" + "a,b\n" * 5 + "c,\n")
    given = Data(name=str(tmp_path / "pairs.csv"), text="prompt", label="completion")
    with pytest.raises(DataError, match=r"pairs\.csv:7: 1 of 6 rows are incomplete\n  why: blank: 1 × completion"):
        dataset.load(given, Completions())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_losses_and_predictions_are_the_same(tmp_path: Path, family: str) -> None:
    sizes: dict[str, Any] = {} if family == "llama" else {"n_embd": 16, "n_head": 2, "n_layer": 2, "resid_pdrop": 0.0,
                                          "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
    model = checkpoint(tmp_path, family=family, **sizes)
    (one, plain), (other, packed) = loaded(tmp_path, model), loaded(tmp_path, model, packing=True, max_length=100)
    batch = everything(one, plain, 12)
    assert packing.pack(batch, 100, torch.float32).labels.shape[0] < 12
    losses_ = [float(t.loss(m, batch, t.count(batch)).detach()) for t, m in ((one, plain), (other, packed))]
    assert losses_[1] == pytest.approx(losses_[0], rel=1e-5)
    found = [t.predict(m, "test", range(t.num_rows("test")), 400) for t, m in ((one, plain), (other, packed))]
    np.testing.assert_allclose(found[1].nll, found[0].nll, rtol=1e-5)
    assert found[1].generated == found[0].generated


def test_packing_is_refused_where_it_is_not_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "why_not", lambda model, batch: "it does not")
    with pytest.raises(ModelError, match=r"task\.instruction_tuning\.packing: packing cannot be used: it does not"):
        loaded(tmp_path, packing=True)


def test_without_padding_the_losses_are_the_same(made: Any) -> None:
    task, model = made
    batch = everything(task, model)
    expected = float(task.loss(model, batch, task.count(batch)).detach())
    padding_free.attach(model, "always")
    with padding_free.running(model):
        found = float(task.loss(model, batch, task.count(batch)).detach())
    assert model._padding_free.is_proven is True
    padding_free.attach(model, "never")
    assert found == pytest.approx(expected, rel=1e-5)


def test_prompts_alone_are_completed(made: Any) -> None:
    task, model = made
    own = InstructionTuning(max_new_tokens=6)
    examples = [Example(str(i), e.text, None, "") for i, e in enumerate(task._splits["test"].examples)]
    name = model.config._name_or_path
    facts = own.load_inputs(examples, [], Model(name=name, revision=None))
    assert facts["targets"] == 0
    own._known = task._known
    found = own.predict(model, "inputs", range(len(examples)), 64)
    assert found.answers() == [{"generated": text} for text in task.predict(
        model, "test", range(len(examples)), 64).generated]  # fmt: skip
    assert own.answer_columns([]) == ["generated"]


def test_yardsticks_have_scores_on_the_same_rows(tmp_path: Path) -> None:
    model, splits = checkpoint(tmp_path), dataset.load(source(tmp_path), Completions())
    task = InstructionTuning(max_new_tokens=6)  # as `harness baselines` makes it: it has read nothing yet
    scores = {name: measured() for name, measured in task.yardsticks(splits, source(tmp_path), model).items()}
    assert list(scores) == ["prompt copied", "most similar training prompt", "the model before tuning"]
    assert scores["prompt copied"]["exact_match"] == pytest.approx(
        np.mean([e.text == e.label for e in splits.test.examples])
    )
    assert set(scores["the model before tuning"]) == set(task.headline)
    assert all(0 <= score["rouge_l"] <= 1 for score in scores.values())


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the tokenizer of 'builtin:minilm' has no token that ends a text"):
        loaded(tmp_path, Model(name="builtin:minilm", revision=None))
    with pytest.raises(ModelError, match=r"^model\.name: 'builtin:transformer' has random weights: .*\n.*smollm2"):
        loaded(tmp_path, OWN)
    headless = checkpoint(tmp_path, tie_word_embeddings=False)
    AutoModel.from_pretrained(headless.name).save_pretrained(headless.name)
    with pytest.raises(ModelError, match=r"is no causal language model\n  why: without weights: lm_head.weight"):
        loaded(tmp_path, headless)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    place = Path(checkpoint(tmp_path).name)
    config = AutoConfig.for_model("bert", vocab_size=400, initializer_range=0.5, max_position_embeddings=300, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "both")
    for path in place.glob("*token*"):
        shutil.copy(path, tmp_path / "both")
    with pytest.raises(ModelError, match="sees the tokens that it is to predict"):
        loaded(tmp_path, Model(name=str(tmp_path / "both"), revision=None), template="plain")


def test_what_is_too_long_for_the_model_is_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, max_position_embeddings=64)
    with pytest.raises(ModelError, match=r"max_length: texts with \d+ tokens are read and written, .* reads 64"):
        loaded(tmp_path, model, max_new_tokens=60)


def test_what_is_saved_reads_the_same(made: Any, tmp_path: Path) -> None:
    task, model = made
    task.save(model, tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHAT
    assert AutoConfig.from_pretrained(tmp_path).num_key_value_heads == 2
