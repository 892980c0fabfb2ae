from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.compare.comparison import Comparison, compare
from harness.compare.rendering import to_markdown, write_page
from harness.errors import SpecError
from tests.compare.runs import finished


def one(output: Path, *asked: str, **more: Any) -> Comparison:
    (made,), _ = compare(asked, output, **more)
    return made


def table(comparison: Comparison, title: str) -> dict[str, dict[str, str]]:
    """Rows of one table by their first cell."""
    found = next(table for table in comparison.tables() if table.title.startswith(title))
    return {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}


def test_means_spreads_differences_and_costs(tmp_path: Path) -> None:
    for seed, full, lora in ((0, 0.7, 0.6), (1, 0.8, 0.9)):
        finished(tmp_path, "full_finetune", seed, full)
        finished(tmp_path, "lora", seed, lora)
    finished(tmp_path, "lora", 2, 0.9)
    made = one(tmp_path)
    assert [system.name for system in made.systems] == ["lora", "full_finetune"]
    scores = table(made, "Scores on 7 test rows")
    assert (scores["full_finetune"]["n"], scores["full_finetune"]["f1_macro"]) == ("2", "0.750 ± 0.071")
    assert (scores["lora"]["n"], scores["lora"]["f1_macro"]) == ("3", "0.800 ± 0.173")
    assert scores["lora"]["accuracy"] == "0.900 ± 0.000"
    difference = table(made, "Differences in f1_macro from full_finetune")["lora"]
    assert (difference["n"], difference["difference"], difference["verdict"]) == ("2", "+0.000", "tie")
    costs = table(made, "What it costs")["lora"]
    assert (costs["trainable"], costs["of full"], costs["peak GiB"], costs["train s"]) == (
        "1,234",
        "50.00%",
        "2.50",
        "11",
    )


def test_what_cannot_be_judged_has_neither_interval_nor_p(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path, "full_finetune", seed, 0.75)
        finished(tmp_path, "lora", seed, 0.5)
    row = table(one(tmp_path), "Differences in f1_macro")["lora"]
    assert (row["95 % seeds"], row["p (Holm)"], row["sign flips"], row["verdict"]) == ("", "", "0.500", "no spread")
    write_page([one(tmp_path)], [], tmp_path / "page.html")  # warnings are errors


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    finished(tmp_path, "full_finetune", 0, 0.5, train__epochs=2)
    finished(tmp_path, "lora", 0, 0.6, train__epochs=2, methods__lora__rank=4)
    made = one(tmp_path, "full_finetune", "lora")
    settings = table(made, "Settings that differ")
    assert set(settings) == {"methods.lora", "train.learning_rate"}
    assert settings["methods.lora"] == {"": "methods.lora", "lora": "rank=4", "full_finetune": "-"}
    assert "All of them with train.epochs=2." in made.sentences()
    finished(tmp_path, "lora", 0, 0.6, train__epochs=2, methods__lora__rank=2)
    both = table(one(tmp_path, "lora"), "Settings that differ")
    assert set(both) == {"methods.lora.rank"} and both["methods.lora.rank"]["lora rank=2"] == "2"


def test_many_systems_stand_below_each_other(tmp_path: Path) -> None:
    for name in ("full_finetune", "lora", "awp", "mixout", "ia3"):
        finished(tmp_path, name, 0, 0.5)
    settings = table(one(tmp_path), "Settings that differ")
    assert set(settings) == {"full_finetune", "lora", "awp", "mixout", "ia3"}
    assert settings["lora"]["methods.lora"] == "defaults" and settings["awp"]["methods.lora"] == "-"


def test_latency_of_the_shape_that_all_measured(tmp_path: Path) -> None:
    of_full = {"latency/unmerged_b1_t8_p50_ms": 5.0, "latency/unmerged_b1_t8_p95_ms": 6.0}
    of_lora = {"latency/unmerged_b1_t8_p50_ms": 7.0, "latency/unmerged_b1_t8_p95_ms": 8.0,
               "latency/merged_b1_t8_p50_ms": 5.5, "latency/merged_b1_t8_p95_ms": 6.5,
               "latency/unmerged_b1_t16_p50_ms": 9.0, "latency/unmerged_b1_t16_p95_ms": 9.0}  # fmt: skip
    finished(tmp_path, "full_finetune", 0, 0.5, scores=of_full)
    finished(tmp_path, "lora", 0, 0.5, scores=of_lora)
    costs = table(one(tmp_path), "What it costs")
    column = "p50 / p95 ms, batch 1, 8 tokens"
    assert (costs["full_finetune"][column], costs["full_finetune"]["merged"]) == ("5.0 / 6.0", "")
    assert (costs["lora"][column], costs["lora"]["merged"]) == ("7.0 / 8.0", "5.5 / 6.5")


def test_the_reference_is_full_fine_tuning_unless_another_one_is_named(tmp_path: Path) -> None:
    finished(tmp_path, "awp", 0, 0.9)
    finished(tmp_path, "lora", 0, 0.7)
    assert one(tmp_path, "lora", "awp").reference.name == "lora"
    finished(tmp_path, "full_finetune", 0, 0.5, train__epochs=2)
    assert one(tmp_path).reference.label == "full_finetune train.epochs=2"
    assert one(tmp_path, against="awp").reference.name == "awp"
    (run,) = (entry.run for entry in one(tmp_path, "awp").reference.entries.values())
    assert one(tmp_path, against=run).reference.name == "awp"
    with pytest.raises(SpecError, match="did you mean 'awp'"):
        one(tmp_path, against="apw")
    with pytest.raises(SpecError, match="did you mean 'accuracy'"):
        one(tmp_path, metric="acuracy")
    finished(tmp_path, "mixout", 0, 0.5, scores={"test/nll": 0.4})
    (made,), notes = compare([], tmp_path, metric="nll")
    assert [system.name for system in made.systems] == ["mixout"]
    assert notes[0].startswith("left out, without the score test/nll: ")


def test_a_reference_that_was_run_with_several_settings(tmp_path: Path) -> None:
    finished(tmp_path, "awp", 0, 0.9)
    finished(tmp_path, "lora", 0, 0.7, train__epochs=2)
    assert one(tmp_path, against="lora").reference.label == "lora train.epochs=2", "the only one"
    finished(tmp_path, "lora", 0, 0.7, train__epochs=3)
    with pytest.raises(SpecError, match=r'lora is several .*\n.*name one of "lora epochs=2", "lora epochs=3"'):
        one(tmp_path, against="lora")
    for named in ("lora epochs=3", "lora train.epochs=3"):
        assert one(tmp_path, against=named).reference.label == "lora train.epochs=3"
    finished(tmp_path, "lora", 0, 0.7)
    assert one(tmp_path, against="lora").reference.label == "lora", "that of the experiment's file"


def test_one_run_alone_is_told_without_differences(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.7)
    (told,) = one(tmp_path).sentences()
    assert told.startswith("One seed: NOTHING can be concluded") and "differences" not in told


def test_less_of_a_loss_is_better(tmp_path: Path) -> None:
    for seed, (full, lora) in enumerate([(0.50, 0.40), (0.52, 0.41), (0.51, 0.42), (0.49, 0.39), (0.50, 0.41)]):
        finished(tmp_path, "full_finetune", seed, 0.5, scores={"test/nll": full})
        finished(tmp_path, "lora", seed, 0.5, scores={"test/nll": lora})
    made = one(tmp_path, metric="nll")
    assert [system.name for system in made.systems] == ["lora", "full_finetune"]
    assert made.sentences()[0].endswith("(n = 5 seeds): lora is better.")


def test_scores_on_different_test_rows_are_never_compared(tmp_path: Path) -> None:
    finished(tmp_path, "full_finetune", 0, 0.5, test="a")
    finished(tmp_path, "lora", 0, 0.7, test="b")
    made, notes = compare([], tmp_path)
    assert [(len(one.systems), one.pairs) for one in made] == [(1, []), (1, [])]
    assert notes == ["the runs were judged on different test splits: scores are compared within each only"]


def test_scores_of_different_tasks_are_never_compared(tmp_path: Path) -> None:
    """Both have a perplexity, of the same texts: of all tokens, and of hidden ones."""
    for name in ("pretrain_clm", "pretrain_mlm"):
        finished(tmp_path, name, 0, 0.0, is_judged=False, scores={"test/perplexity": 9.0}, tokens=50)
    made, notes = compare([], tmp_path)
    assert [(len(one.systems), one.pairs) for one in made] == [(1, []), (1, [])]
    assert notes == ["the runs were judged on different tasks or test splits: scores are compared within each only"]


def test_scores_per_token_are_compared_where_the_tokens_are_the_same(tmp_path: Path) -> None:
    for rate, tokens in ((1e-3, 60), (2e-3, 50), (3e-3, 50)):
        scores = {"test/perplexity": 9.0, "test/rouge_l": 0.5}
        finished(tmp_path, "pretrain_clm", 0, 0.5, scores=scores, tokens=tokens, train__learning_rate=rate)
    made, notes = compare([], tmp_path, metric="perplexity")
    assert [len(one.systems) for one in made] == [1, 2]
    assert notes == [
        "the same test split is cut into other tokens: scores per token, such as perplexity, are another scale, and "
        "compared within each only"
    ]
    (made_of_text,), notes = compare([], tmp_path, metric="rouge_l")
    assert len(made_of_text.systems) == 3 and notes == [], "what is counted over words does not depend on them"


def test_one_seed_concludes_nothing_and_ties_are_groups(tmp_path: Path) -> None:
    for name in ("full_finetune", "lora", "awp"):
        finished(tmp_path, name, 0, 0.5 + len(name) / 100)
    told = " ".join(one(tmp_path).sentences())
    assert "NOTHING can be concluded" in told and told.count("nothing can be concluded about the method") == 2
    for name in ("full_finetune", "lora", "awp"):
        finished(tmp_path, name, 1, 0.5 - len(name) / 100)
    made = one(tmp_path)
    told = " ".join(made.sentences())
    assert "NOTHING" not in told and f"From best to worst, = is a tie: {' = '.join(made.groups[0])} (" in told
    assert {*made.groups[0]} == {"full_finetune", "lora", "awp"}


def test_the_command_speaks_to_people_and_programs(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path, "full_finetune", seed, 0.5, predicted=[0, 1, 1, 1])
        finished(tmp_path, "lora", seed, (0.7, 0.8)[seed], predicted=[0, 1, 0, seed])
    page = tmp_path / "page.html"

    def run(*more: str) -> str:
        done = CliRunner().invoke(app, ["compare", "lora", "full_finetune", "--output", str(tmp_path), *more])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "lora - full_finetune" in run("--html", str(page))
    markdown = run("--md")
    assert "### What it costs" in markdown and "| full_finetune | 2 | 0.500 ± 0.000 |" in markdown
    assert markdown.strip() == to_markdown(*compare(["lora", "full_finetune"], tmp_path)).strip()
    rows = list(csv.DictReader(io.StringIO(run("--csv"))))
    assert [(row["system"], row["seed"], row["test/f1_macro"]) for row in rows] == [
        ("lora", "0", "0.7"), ("lora", "1", "0.8"), ("full_finetune", "0", "0.5"), ("full_finetune", "1", "0.5"),
    ]  # fmt: skip
    told = json.loads(run("--json"))
    (pair,) = told["comparisons"][0]["pairs"]
    assert (pair["seeds"], pair["mean"], pair["items"]) == ([0, 1], pytest.approx(0.25), [None, None])
    html = page.read_text()
    assert "<h2>What it costs</h2>" in html
    refused = CliRunner().invoke(app, ["compare", "--md", "--csv"])
    assert isinstance(refused.exception, SpecError)
