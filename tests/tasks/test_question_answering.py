"""Question answering on hand-made tokenizers and tiny models: windows, targets, loss, answers, files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForQuestionAnswering
from typer.testing import CliRunner

from harness import registry
from harness.cli.commands import app
from harness.cli.launching import SMOKE, main
from harness.data.dataset import Example, Split, Splits
from harness.errors import DataError, ModelError, SpecError
from harness.extraction import spans
from harness.extraction.answers import NO_ANSWER
from harness.models.model import Architecture, Model
from harness.tasks.question_answering import QuestionAnswering
from tests.stores import QUIET
from tests.tasks.test_sequence_classification import checkpoint, tokenizer, words

LENGTHS = [3, 9, 1, 26, 14, 2, 7, 40, 4, 12, 5, 8]
BOTH = ["answerable", "unanswerable"]


def split(name: str, lengths: list[int], *, every: int = 10**9) -> Split:
    """Contexts of so many words; the answer is one or two of them, and every so many questions have none."""
    examples = []
    for i, length in enumerate(lengths):
        context = words(length, i)
        own = context.split()
        first = (7 * i) % length
        text = " ".join(own[first : first + 1 + i % 2])
        answers = (text, len(" ".join(own[:first])) + (first > 0)), (own[0], 0)
        examples.append(
            Example(f"{name}-{i}", words(2 + i % 3, i + 3), context, (NO_ANSWER,) if i % every else answers)
        )
    return Split(name, examples, "sha256:none")


def splits(lengths: list[int], labels: list[str] | None = None) -> Splits:
    train, validation, test = (
        split(name, lengths, every=3 if labels else 1) for name in ("train", "validation", "test")
    )
    return Splits(train, validation, test, labels=labels or [], source="made by hand", report={})


def of(examples: list[Example]) -> Splits:
    """The same rows in every split."""
    train, validation, test = (Split(name, examples, "") for name in ("train", "validation", "test"))
    return Splits(train, validation, test, labels=[], source="made by hand", report={})


def model_of(folder: Path, family: str = "bert") -> Model:
    return Model(name=checkpoint(folder, family=family, kind=AutoModelForQuestionAnswering), revision=None)


def prepared(model: Model, data: Splits, **settings: Any) -> tuple[QuestionAnswering, nn.Module]:
    task = QuestionAnswering(**({"max_length": 18, "stride": 4} | settings))
    task.load_data(data, model)
    return task, task.load_model(model).eval()


def case(folder: Path, own: Model | None = None) -> tuple[QuestionAnswering, nn.Module]:
    """What tests/tasks/test_contract.py holds to the contract."""
    return prepared(own or model_of(folder), splits(LENGTHS, BOTH), **({"max_length": 40} if own else {}))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_of(tmp_path_factory.mktemp("bert"))


def test_a_long_context_is_several_training_rows_and_one_prediction(bert: Model) -> None:
    task, model = prepared(bert, splits(LENGTHS))
    (batch,) = task.batches(model, 1000, torch.Generator())
    assert len(batch) > len(LENGTHS) == task.num_rows("train")
    assert task.count(batch) == {"windows": len(batch)}
    found = task.predict(model, "test", range(len(LENGTHS)), 64)
    assert len(found.texts) == len(found.rows) == len(LENGTHS)
    for text, start, row in zip(found.texts, found.starts, found.rows, strict=True):
        assert text and row["context"][start : start + len(text)] == text
    assert found.references[1] == [text for text, _ in split("test", LENGTHS, every=1).examples[1].label]


def test_the_facts_count_windows_and_answers_that_stand_whole_in_none(bert: Model) -> None:
    """Eighteen tokens hold thirteen of a context beside two of a question: an answer of sixteen words fits nowhere."""
    data = splits([30, 5])
    long = Example("long", "w1 w2", words(30), ((words(30)[: len(words(16))], 0),))
    data = Splits(
        Split("train", [long, *data.train.examples], ""), data.validation, data.test, labels=[], source="", report={}
    )
    task = QuestionAnswering(max_length=18, stride=4)
    facts = task.load_data(data, bert)
    assert facts["train"]["truncated"] == 1 and facts["test"]["truncated"] == 0
    assert facts["test"]["windows"] == 3 + 1 and facts["test"]["longest"] == 18
    (batch,) = task.batches(task.load_model(bert), 1000, torch.Generator())
    assert facts["train"]["tokens"] == int(batch.lengths.sum())


def test_the_loss_is_that_of_transformers_on_windows_of_one_length(bert: Model) -> None:
    """Which takes padding for tokens that could be the answer: here is none."""
    task, model = prepared(bert, splits([13, 13, 13]), max_length=40)
    examples = [Example(str(i), words(2, i), words(13, i), ((words(13, i)[:2], 0),)) for i in range(6)]
    task.load_data(of(examples), bert)
    (batch,) = task.batches(model, 6, torch.Generator().manual_seed(0))
    assert len(set(batch.lengths.tolist())) == 1
    positions = {"start_positions": batch.per_example["start"], "end_positions": batch.per_example["end"]}
    expected = model(**batch.per_token, **positions).loss
    assert (batch.per_example["start"] > 0).all()
    torch.testing.assert_close(task.loss(model, batch, task.count(batch)), expected)


def test_windows_without_the_answer_point_to_the_first_token(bert: Model) -> None:
    task, model = prepared(bert, splits([40], None))
    (batch,) = task.batches(model, 100, torch.Generator())
    start, end = batch.per_example["start"], batch.per_example["end"]
    assert 0 < int((start > 0).sum()) < len(batch)
    assert ((start == 0) == (end == 0)).all()
    assert (batch.per_token["input_ids"][:, 0] == tokenizer().cls_token_id).all()


def test_answers_are_learnt(bert: Model) -> None:
    """The answer is the word that stands twice in the question."""
    examples = []
    for i in range(24):
        context = words(8, i)
        word = context.split()[i % 8]
        examples.append(Example(str(i), f"{word} {word}", context, ((word, context.index(word)),)))
    torch.manual_seed(0)
    task, model = prepared(bert, of(examples))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for seed in range(40):
        for batch in task.batches(model, 8, torch.Generator().manual_seed(seed)):
            optimizer.zero_grad()
            task.loss(model, batch, task.count(batch)).backward()
            optimizer.step()
    found = task.predict(model.eval(), "test", range(24), 200)
    right = [text == of[0] for text, of in zip(found.texts, found.references, strict=True)]
    assert np.mean(right) > 0.9
    assert found.confidence.mean() > 0.5


def test_no_answer_is_said_only_where_it_was_learnt(bert: Model) -> None:
    for labels, threshold in (([], -1e6), (BOTH, -1e6), (BOTH, 1e6)):
        task, model = prepared(bert, splits([9, 5], labels), null_threshold=threshold)
        found = task.predict(model, "test", range(2), 100)
        assert found.texts == ["", ""] if labels and threshold < 0 else all(found.texts)
        assert found.starts == [-1, -1] if labels and threshold < 0 else min(found.starts) >= 0


def test_new_questions_are_answered_with_what_is_known_of_training(bert: Model) -> None:
    _, model = prepared(bert, splits([9, 5], BOTH))
    inputs = [Example("1", "w1 w2", words(50), (NO_ANSWER,)), Example("2", "w3", words(3), (NO_ANSWER,))]
    again = QuestionAnswering(max_length=18, stride=4, null_threshold=1e6)
    facts = again.load_inputs(inputs, BOTH, bert)
    assert "truncated" not in facts and facts["windows"] > 2
    again.load_model(bert)
    answers = again.predict(model, "inputs", range(2), 100).answers()
    assert [list(one) for one in answers] == [again.answer_columns(BOTH)] * 2
    assert all(one["answer"] for one in answers)
    assert all(words(50)[one["start"] :].startswith(one["answer"]) for one in answers[:1])


def test_a_question_that_leaves_no_room_is_refused(bert: Model) -> None:
    long = Example("train-7", words(12), words(3), (("w0", 0),))
    with pytest.raises(
        DataError, match=r"max_length: the question of row train-7 of train has 12 tokens\n.*3 are left"
    ):
        QuestionAnswering(max_length=18, stride=4).load_data(of([long]), bert)
    with pytest.raises(SpecError, match=r"^task\.question_answering: stride 18 leaves nothing new for a window of 18 "):
        registry.build("task", "question_answering", {"max_length": 18, "stride": 18})
    with pytest.raises(ValueError, match="stride 18 leaves nothing new"):
        QuestionAnswering(max_length=18, stride=18)


def test_a_model_that_reads_less_is_refused(tmp_path: Path, bert: Model) -> None:
    task = QuestionAnswering(max_length=600, stride=4)
    task.load_data(splits([590]), bert)
    with pytest.raises(ModelError, match=r"a window has 59\d tokens, .* reads 512"):
        task.load_model(bert)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_the_head_is_new_and_the_rest_is_not(tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForSequenceClassification

    name = checkpoint(tmp_path, family=family, kind=AutoModelForSequenceClassification)
    task, model = prepared(Model(name=name, revision=None), splits(LENGTHS))
    assert {n.rpartition(".")[0] for n in task.head(model)} == {"qa_outputs"}
    task.save(model, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_an_own_model_answers_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    own = Model(name="builtin:transformer", revision=None, architecture=Architecture(layers=1, d_model=16, heads=2))
    task, model = prepared(own, splits(LENGTHS), max_length=60)
    (batch,) = task.batches(model, 1000, torch.Generator())
    task.loss(model, batch, task.count(batch)).backward()
    found = task.predict(model, "test", range(3), 100)
    assert all(text in row["context"] for text, row in zip(found.texts, found.rows, strict=True))


def test_predictions_are_those_of_every_span_by_enumeration(bert: Model) -> None:
    """One text at a time, without the batch, the mask and the search."""
    task, model = prepared(bert, splits(LENGTHS), max_answer_length=3)
    found = task.predict(model, "test", range(len(LENGTHS)), 10**6)
    for row, example in enumerate(split("test", LENGTHS, every=1).examples):
        best = (-np.inf, 0, 0)
        for window in spans.windows(tokenizer(), [(example.text, example.pair or "")], 18, 4):
            inputs = {name: torch.from_numpy(values)[None].long() for name, values in window.inputs.items()}
            with torch.inference_mode():
                output = model(**inputs)
            for a in range(len(window.offsets)):
                for b in range(a, min(a + 3, len(window.offsets))):
                    score = float(output.start_logits[0, window.first + a] + output.end_logits[0, window.first + b])
                    best = max(best, (score, int(window.offsets[a, 0]), int(window.offsets[b, 1])))
        assert found.scores[row, 0] == pytest.approx(best[0], abs=1e-5)
        assert found.texts[row] == (example.pair or "")[best[1] : best[2]]


@QUIET
def test_a_run_with_lora_from_a_file_to_answers(tmp_path: Path) -> None:
    """SQuAD 2.0's layout in; what people see of it, and of new questions, out."""
    (tmp_path / "model").mkdir()
    model = model_of(tmp_path / "model")
    articles = []
    for number in range(12):
        context = words(24 + number, number)
        known = {
            "id": f"{number}a",
            "question": words(2, number),
            "answers": [{"text": context[:2], "answer_start": 0}],
        }
        unknown = {"id": f"{number}b", "question": words(3), "is_impossible": True, "answers": []}
        articles.append({"title": str(number), "paragraphs": [{"context": context, "qas": [known, unknown]}]})
    (tmp_path / "all.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    own = [f"model.name={model.name}", f"data.name={tmp_path / 'all.json'}", f"output={tmp_path / 'runs'}"]
    sizes = ["task.question_answering.max_length=18", "task.question_answering.stride=4", "latency.measure=false"]
    assert main(["exp=qa_lora", *SMOKE, *own, *sizes, "evaluation.baselines=true"]) == 0
    (folder,) = (tmp_path / "runs" / "runs").iterdir()
    with (folder / "test" / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["references"] for row in rows} == {"", *(row["context"][:2] for row in rows if row["references"])}
    (tmp_path / "new.jsonl").write_text(json.dumps({"question": "w1 w2", "context": words(30), "note": "x"}) + "\n")
    place = ["predict", "--run", folder.name, "--output", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, [*place, "--file", str(tmp_path / "new.jsonl")])
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert list(row) == ["question", "context", "note", "answer", "confidence", "start"]
    assert words(30)[int(row["start"]) :].startswith(row["answer"]) if row["answer"] else row["start"] == "-1"
    typed = CliRunner().invoke(app, [*place, "w1 w2", words(30)])
    assert typed.stdout.startswith(f"{row['answer'] or '(no answer)':12}  confidence {float(row['confidence']):.3f}")
    assert typed.stdout.strip().endswith(f"start {row['start']}  w1 w2 | {words(30)}")
