"""What every metric must hold to: the suite runs over each file of `harness/metrics`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import registry
from harness.metric import Metric
from harness.predictions import Classified
from tests.metrics.samples import LABELS, certain_predictions, random_predictions, reordered

NAMES = [name for name in registry.names("metric") if registry.predictions_of("metric", name) == "Classified"]
"""Those of classifiers; metrics that read other predictions have their cases in their own tests."""
LABEL_LISTS = {
    "three": LABELS,
    "two": ["no", "yes"],
    "one": ["only"],
    "odd characters": ["a/b", "a:b", "", "macro", "é", "$x", "<b>"],
    "fifty": [f"intent {i}" for i in range(50)],
}
METRIC_NAME = re.compile(r"[\w.\- ]{1,240}")
"""What MLflow allows, less `/` and `:`, with room for the split."""


def cases() -> Iterator[tuple[str, Classified]]:
    """Predictions with each list of labels, one of them a single example."""
    for name, labels in LABEL_LISTS.items():
        yield name, random_predictions(33, labels)
    yield "one example", random_predictions(1, LABELS)
    yield "extreme logits", certain_predictions([0, 1], [1, 1], LABELS)


CASES = dict(cases())


def build(name: str) -> Metric[Any]:
    """The metric with its default settings."""
    metric = registry.build("metric", name, {})
    assert isinstance(metric, Metric)
    return metric


def test_the_folder_is_the_registry() -> None:
    here = Path(__file__).parent
    assert {"accuracy", "f1", "calibration", "confusion_matrix", "classification_report", "predictions"} <= set(NAMES)
    assert [name for name in NAMES if not (here / f"test_{name}.py").exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_settings_read_from_source_are_those_of_the_class(name: str) -> None:
    source, imported = registry.settings_class("metric", name), registry.plugin("metric", name)
    assert set(source.model_fields) == set(imported.model_fields)
    for key, field in imported.model_fields.items():
        other = source.model_fields[key]
        assert (other.annotation, other.default, other.metadata) == (field.annotation, field.default, field.metadata)
    assert source().model_dump() == imported().model_dump()


@pytest.mark.parametrize("name", NAMES)
def test_produces_is_a_literal_in_the_source(name: str) -> None:
    """Specs that monitor a metric are checked without importing it."""
    plugin = registry.plugin("metric", name)
    tree = ast.parse(Path(sys.modules[plugin.__module__].__file__ or "").read_text(encoding="utf-8"))
    literals = [
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "produces"
        and node.value
    ]
    assert literals == ([plugin.produces] if "produces" in vars(plugin) else [])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values(name: str, case: str) -> None:
    metric = build(name)
    values = metric.compute(CASES[case])
    assert set(metric.produces) <= set(values)
    assert [key for key in values if not METRIC_NAME.fullmatch(key)] == []
    assert all(type(value) is float for value in values.values())
    assert all(np.isfinite(value) for value in values.values())


@pytest.mark.parametrize("name", NAMES)
def test_labels_add_the_same_number_of_keys_each(name: str) -> None:
    """No two labels share a key."""
    extra = len(build(name).compute(CASES["three"])) - len(build(name).produces)
    for case, labels in LABEL_LISTS.items():
        found = len(build(name).compute(CASES[case])) - len(build(name).produces)
        assert found * len(LABELS) == extra * len(labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_examples_does_not_matter(name: str) -> None:
    predictions = random_predictions(200, LABELS)
    assert build(name).compute(reordered(predictions)) == pytest.approx(build(name).compute(predictions), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_write_stays_in_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working, folder = tmp_path / "working", tmp_path / "folder"
    working.mkdir()
    folder.mkdir()
    monkeypatch.chdir(working)
    (folder / "other.txt").write_text("stays")
    metric = build(name)
    metric.write(random_predictions(12, LABELS), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "working"]
    assert list(working.iterdir()) == []
    assert (folder / "other.txt").read_text() == "stays"
    written = {path for path in folder.iterdir() if path.name != "other.txt"}
    assert all(path.is_file() and path.stat().st_size > 0 for path in written)
    assert bool(written) == (type(metric).write is not Metric.write)
    for page in folder.glob("*.html"):
        assert not re.search(r"<script[^>]+src", page.read_text(encoding="utf-8"))


def test_metrics_need_no_torch_and_import_fast(tmp_path: Path) -> None:
    """Arrays in, numbers out: libraries that draw are loaded when something is drawn, torch never."""
    code = f"""
import sys
from pathlib import Path
from harness import registry
from tests.metrics.samples import random_predictions
metrics = [registry.build("metric", name, {{}}) for name in {NAMES}]
assert not {{"sklearn", "plotly", "matplotlib"}} & set(sys.modules), "heavy at import"
predictions = random_predictions(8, ["a", "b"])
for metric in metrics:
    metric.compute(predictions)
    metric.write(predictions, Path({str(tmp_path)!r}))
assert not {{"torch", "transformers"}} & set(sys.modules), "torch"
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
