"""A whole run of instruction tuning on a tiny model: its folder, its table in MLflow, its answers to new prompts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import registry
from harness.cli.commands import app
from harness.cli.launching import SMOKE, main
from harness.results import report
from tests.stores import QUIET, client
from tests.tasks.test_instruction_tuning import checkpoint, source

pytestmark = QUIET


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("output")
    given = source(output)
    words = ["exp=lora_causal_lm", *SMOKE, f"data.name={given.name}", f"model.name={checkpoint(output).name}"]
    words += [
        "data.max_test_overlap=1.0",
        "data.limit=null",
        "latency.measure=false",
        "evaluation.baselines=true",
        f"output={output}",
    ]
    assert main([*words, "task.instruction_tuning.max_new_tokens=5"]) == 0
    (found,) = (output / "runs").iterdir()
    return found


def test_the_card_has_its_score_among_its_yardsticks(folder: Path) -> None:
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    for name in (
        "prompt copied",
        "most similar training prompt",
        "the model before tuning",
        f"{folder.name} (this run)",
    ):
        assert f"| {name} |" in card
    assert "| split | rows | digest |" in card, "there are no labels to count"
    assert "| `task.instruction_tuning.packing` | false |" in card
    assert "a folder beside it holds one method" in card
    assert json.loads((folder / "data.json").read_text())["tokens"]["train"]["template"] == "chat"


def test_the_texts_are_a_table_in_mlflow(folder: Path) -> None:
    store = client(folder.parent.parent)
    (run,) = store.search_runs([one.experiment_id for one in store.search_experiments()])
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "test/samples.json", "type": "table"}]
    assert "test/samples.json" in [file.path for file in store.list_artifacts(run.info.run_id, "test")]
    table = json.loads((folder / "test" / "samples.json").read_text(encoding="utf-8"))
    assert table["columns"] == ["id", "prompt", "reference", "generated", "exact", "nll", "tokens"]


def test_new_prompts_are_completed_as_those_of_the_test_split_were(folder: Path, tmp_path: Path) -> None:
    with (folder / "test" / "samples.csv").open(newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    with (tmp_path / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["ask"], *([row["prompt"]] for row in reversed(expected))])
    place = ["predict", "--run", folder.name, "--output", str(folder.parent.parent)]
    asked = ["--file", str(tmp_path / "prompts.csv"), "--column", "ask", "--out", str(tmp_path / "out.jsonl")]
    assert CliRunner().invoke(app, [*place, *asked]).exit_code == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["generated"] for row in reversed(found)] == [row["generated"] for row in expected]
    typed = CliRunner().invoke(app, [*place, "2 red"])
    assert typed.exit_code == 0
    assert typed.stdout.startswith("2 red\n  generated: ")


def test_a_score_that_a_yardstick_cannot_have_is_a_dash() -> None:
    rows = report.ladder_rows([{"name": "a", "rouge_l": 0.5}, {"name": "b", "rouge_l": 0.1, "perplexity": 2.0}],
                              ["rouge_l", "perplexity"])  # fmt: skip
    assert rows == [["b", "0.100", "2.000"], ["a", "0.500", "–"]]


def test_a_key_that_two_kinds_of_predictions_have_is_given_by_the_metric_that_reads_them() -> None:
    assert registry.producer("exact_match", "Completed") == "completion_match"
    assert registry.producer("perplexity", "Completed") == registry.producer("perplexity", "Likelihood") == "perplexity"
    with pytest.raises(Exception, match="no metric gives 'rouge_l'"):
        registry.producer("rouge_l", "Classified")
