"""`accelerate launch launch.py exp=lora_adapter` as a person runs it, on real weights and reviews, shortened."""

from __future__ import annotations

import base64
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from harness.data import dataset
from harness.data.dataset import Data
from harness.data.labelling import Classes
from harness.predictions import Classified
from harness.storage import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]  # SQLAlchemy, asked by MLflow

SHORT = [
    "train.epochs=2", "train.batch_size=16", "data.limit=240", "latency.batch_sizes=[1,2]", "latency.lengths=[8,16]",
    "latency.runs=10",
]  # fmt: skip
PYTHON = Path(sys.executable)
KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()


def environment(tmp: Path, **more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HARNESS_S", "MLFLOW_TRACKING"))}
    return {**inherited, "XDG_CONFIG_HOME": str(tmp / "config"), "HF_HUB_OFFLINE": "1", **more}


def launch(tmp: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(PYTHON.parent / "accelerate"), "launch", "--num_processes", "1", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "launch.py", f"output={tmp / 'mlruns'}", *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=PROJECT, env=environment(tmp, **more), capture_output=True, text=True, timeout=280, check=False
    )


def harness(tmp: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [str(PYTHON.parent / "harness"), *arguments]
    return subprocess.run(
        command, env=environment(tmp, **more), capture_output=True, text=True, timeout=120, check=False
    )


class Run:
    """A finished run and what it printed."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.output = tmp, tmp / "mlruns"
        self.done = launch(tmp, "exp=lora_adapter", "seeds=[1]", *SHORT, HARNESS_SIGNING_KEY=KEY)
        assert self.done.returncode == 0, self.done.stderr
        (self.folder,) = (self.output / "runs").iterdir()
        self.database = self.output / "mlflow.db"

    def query(self, sql: str, *values: Any) -> list[Any]:
        with sqlite3.connect(self.database) as database:
            return database.execute(sql, values).fetchall()

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.query("select key, value from latest_metrics"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


def test_the_terminal_ends_with_score_run_folder_and_the_ui_command(finished: Run) -> None:
    text = finished.done.stdout
    for piece in (
        f"test/f1_macro {finished.metrics['test/f1_macro']:.4f}", finished.folder.name, str(finished.folder),
        finished.query("select run_uuid from runs")[0][0], "Signed with key",
        f"mlflow ui --backend-store-uri sqlite:///{finished.database}",
        "majority class", "TF-IDF", "VADER", "one human rater", "of full fine-tuning", "truncated",
    ):  # fmt: skip
        assert piece in text, piece
    assert "Traceback" not in finished.done.stderr


def test_mlflow_has_params_curves_datasets_and_artifacts(finished: Run) -> None:
    params = dict(finished.query("select key, value from params"))
    assert params["methods.lora.rank"] == "8"
    assert params["methods.bottleneck_adapter.size"] == "64"
    assert params["seed"] == "1"
    steps = [row[0] for row in finished.query("select step from metrics where key = 'train/loss' order by step")]
    assert steps == list(range(1, 31))
    validated = finished.query("select step from metrics where key = 'validation/f1_macro' order by step")
    assert [row[0] for row in validated] == [15, 30]
    tags = dict(finished.query("select key, value from tags"))
    assert tags["mlflow.runName"] == finished.folder.name
    assert tags["methods"] == "lora+bottleneck_adapter"
    assert "macro-F1" in tags["mlflow.note.content"]
    assert finished.query("select status from runs") == [("FINISHED",)]
    assert finished.query("select count(*) from datasets") == [(3,)]
    artifacts = {path.relative_to(finished.output / "artifacts").parts[3:] for path in
                 (finished.output / "artifacts").rglob("*") if path.is_file()}  # fmt: skip
    local = {path.relative_to(finished.folder).parts for path in finished.folder.rglob("*") if path.is_file()}
    assert local == artifacts
    assert {
        ("test", "confusion_matrix.html"),
        ("test", "confusion_matrix.png"),
        ("spec.yaml",),
        ("model_card.md",),
    } <= local


def test_the_scores_are_those_of_the_predictions_on_the_test_documents(finished: Run) -> None:
    """Recomputed with scikit-learn from the per-example file, whose rows are the test split."""
    import csv

    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    with (finished.folder / "test" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    spec = yaml.safe_load((finished.folder / "spec.yaml").read_text())["data"]
    splits = dataset.load(Data(**spec), Classes())
    assert [row["id"] for row in rows] == [example.id for example in splits.test.examples]
    assert [row["label"] for row in rows] == [splits.labels[example.label] for example in splits.test.examples]
    true, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    assert finished.metrics["test/f1_macro"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert finished.metrics["test/accuracy"] == pytest.approx(accuracy_score(true, predicted))
    matrix = json.loads((finished.folder / "test" / "confusion_matrix.json").read_text())
    assert matrix["counts"] == confusion_matrix(true, predicted, labels=splits.labels).tolist()


def test_the_saved_weights_give_the_predictions_again(finished: Run) -> None:
    """Rebuilt from spec.yaml and trained.safetensors alone."""
    from harness import assembly, checkpoint
    from harness.specs import spec

    chosen = spec.load("lora_adapter", ["seeds=[7]", *SHORT])
    loaded = assembly.load(chosen)
    model = assembly.assemble(chosen, loaded, 7)
    checkpoint.restore(model.model, checkpoint.load(finished.folder / "weights"))
    found = loaded.task.predict(model.model, "test", range(20), 512)
    import csv

    with (finished.folder / "test" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:20]
    columns = [key for key in rows[0] if key.startswith("probability_")]
    kept = np.array([[float(row[column]) for column in columns] for row in rows])
    assert isinstance(found, Classified)
    assert np.abs(found.probabilities - kept).max() < 1e-4


def test_the_lora_part_loads_in_peft(finished: Run) -> None:
    import safetensors.torch

    content = safetensors.torch.load_file(finished.folder / "weights" / "lora" / "adapter_model.safetensors")
    trained = safetensors.torch.load_file(finished.folder / "weights" / "trained.safetensors")
    pairs = {name: trained[name.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a")
                           .replace("lora_B.weight", "lora_b")] for name in content}  # fmt: skip
    assert len(content) == 2 * 24 + 2
    assert all((content[name] == pairs[name]).all() for name in content)


def test_verify_names_what_was_edited(finished: Run) -> None:
    verify = ["verify", "--output", str(finished.output)]
    run_id = finished.query("select run_uuid from runs")[0][0]
    for name in (finished.folder.name, run_id, str(finished.folder)):
        intact = harness(finished.tmp, *verify, name, HARNESS_SIGNING_KEY=KEY)
        assert intact.returncode == 0, intact.stdout + intact.stderr
    assert harness(finished.tmp, *verify, run_id).returncode == 3  # no key

    before = finished.metrics["test/f1_macro"]
    for table in ("metrics", "latest_metrics"):
        with sqlite3.connect(finished.database) as database:
            database.execute(f"update {table} set value = 0.99 where key = 'test/f1_macro'")
    edited = harness(finished.tmp, *verify, run_id, HARNESS_SIGNING_KEY=KEY)
    assert edited.returncode == 1
    assert re.search(r"test/f1_macro: changed in MLflow: signed .*found 0\.99", edited.stdout)
    for table in ("metrics", "latest_metrics"):
        with sqlite3.connect(finished.database) as database:
            database.execute(f"update {table} set value = ? where key = 'test/f1_macro'", (before,))

    card = finished.folder / "model_card.md"
    text = card.read_text()
    card.write_text(text + "much better than it was\n")
    tampered = harness(finished.tmp, *verify, finished.folder.name, HARNESS_SIGNING_KEY=KEY)
    assert tampered.returncode == 1
    assert "model_card.md" in tampered.stdout
    card.write_text(text)


def test_replicates_are_children_of_a_parent_with_means_and_spreads(tmp_path: Path) -> None:
    short = ["--smoke", "seeds=[0,1]", "latency.measure=false", "tracking.tensorboard=true"]
    short += ["~metrics.f1", "early_stopping.metric=validation/accuracy"]
    done = launch(tmp_path, "exp=bottleneck_adapter", *short)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as database:
        runs = dict(database.execute("select name, run_uuid from runs").fetchall())
        (parent,) = (name for name in runs if "-x2-" in name)
        children = database.execute(
            "select count(*) from tags where key = 'mlflow.parentRunId' and value = ?", (runs[parent],)
        )
        assert children.fetchone() == (2,)
        values = database.execute("select run_uuid, value from latest_metrics where key = 'test/accuracy'").fetchall()
        by_run = dict(values)
        spread = database.execute("select value from latest_metrics where key = 'test/accuracy_sd'").fetchone()[0]
    singles = [by_run[runs[name]] for name in runs if name != parent]
    assert by_run[runs[parent]] == pytest.approx(np.mean(singles))
    assert spread == pytest.approx(np.std(singles, ddof=1))
    assert list((tmp_path / "mlruns" / "tensorboard").rglob("events*"))
    assert "UNSIGNED" in done.stdout
    assert "mean ± sd, n = 2" in done.stdout
