from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from harness.compare import drawing, rendering
from harness.compare.comparison import Comparison, compare
from harness.compare.runs import Predictions
from tests.compare.runs import finished


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    of = {"full_finetune": ([0, 1, 1, 1], [0, 1, 0, 0]), "lora": ([0, 1, 0, 1], [1, 1, 0, 1])}
    measured = {"latency/model_b1_t8_p50_ms": 5.0, "latency/model_b1_t8_p95_ms": 6.0}
    for name, both in of.items():
        for seed, predicted in enumerate(both):
            f1 = float(f1_score([0, 1, 0, 1], predicted, average="macro"))
            curve = [0.1 + seed, 0.2, None, 0.4] if name == "lora" else [0.3] * 2
            effort = {"best/step": 30.0 + 10 * seed, "train/steps": 50.0, "time/train_s": 100.0}
            finished(tmp_path, name, seed, f1, predicted=predicted, scores=measured | effort, curve=curve)
    (made,), _ = compare([], tmp_path)
    return made


def test_f1_of_each_label_and_the_mean_matrix_are_those_of_scikit_learn(comparison: Comparison) -> None:
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(3, size=(2, 50))
    one = Predictions(labels, predicted, ["a", "b", "c", "never"])
    expected = f1_score(labels, predicted, labels=[0, 1, 2, 3], average=None, zero_division=0)
    assert drawing.f1_by_label(one) == pytest.approx(expected.tolist())
    system = next(one for one in comparison.systems if one.name == "lora")
    by_seed = [confusion_matrix([0, 1, 0, 1], of, normalize="true") for of in ([0, 1, 0, 1], [1, 1, 0, 1])]
    assert drawing.confusion(system) == pytest.approx(100 * np.mean(by_seed, axis=0))


def test_every_picture_shows_what_was_measured(comparison: Comparison) -> None:
    made = {draw.__name__: draw(comparison) for draw in drawing.PICTURES}
    assert all(made.values())
    (pair,) = comparison.pairs
    assert list(made["differences"].data[-1].x) == [pair.mean]
    assert [x for x in made["differences"].data[0].x if x is not None] == list(pair.interval)
    assert {trace.x[0] for trace in made["score_against_latency"].data} == {5.0}
    assert {trace.x[0] for trace in made["score_against_parameters"].data} == {1234.0}
    assert {trace.x[0] for trace in made["score_against_convergence"].data} == {70.0}, "60 and 80 seconds"
    matrix = made["matrices"].data[0].z
    assert np.asarray(matrix) == pytest.approx(drawing.confusion(comparison.systems[0]))
    curves = {trace.name: trace for trace in made["learning_curves"].data if trace.name}
    assert list(curves["lora"].x) == [10, 20, 40]
    assert list(curves["lora"].y) == pytest.approx([0.6, 0.2, 0.4])
    assert list(curves["full_finetune"].y) == [0.3, 0.3]
    points = made["calibration"].data[1]
    assert list(points.x) == [0.75] and sum(points.customdata) == 8


def test_pictures_without_anything_to_show_are_left_out(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.5)
    (made,), _ = compare([], tmp_path)
    shown = [draw.__name__ for draw in drawing.PICTURES if draw(made) is not None]
    assert shown == ["score_against_parameters"]
    assert drawing.disagreements(made)[1] == []


def test_texts_on_which_the_systems_differ_most_come_first(comparison: Comparison) -> None:
    """How often each was right, of two seeds: lora 1 2 2 2, full fine-tuning 2 2 1 1."""
    columns, rows = drawing.disagreements(comparison)
    assert [row[:3] for row in rows] == [["0", "text 0", "bad"], ["2", "text 2", "bad"], ["3", "text 3", "good"]]
    assert columns[:3] == ["", "text", "true label"]
    assert dict(zip(columns[3:], rows[0][3:], strict=True)) == {"lora": "1/2", "full_finetune": "2/2"}


def test_the_page_holds_plotly_once_and_needs_no_network(comparison: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    rendering.write_page([comparison], ["a note with <b>"], file)
    page = file.read_text(encoding="utf-8")
    assert page.count("plotly.js v") == 1 and page.count('class="plotly-graph-div"') == len(drawing.PICTURES)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    assert "a note with &lt;b&gt;" in page and "Where they differ most" in page
    assert json.dumps("text 0")[1:-1] in page
