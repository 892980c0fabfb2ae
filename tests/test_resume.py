"""A run that is stopped goes on as if nothing had happened: the same weights, predictions and curves, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import faults
from harness.cli.launching import SMOKE, main
from harness.signing import chain, ledger
from harness.storage import RunLock
from tests.stores import QUIET
from tests.tiny import WORDS

pytestmark = [pytest.mark.slow, QUIET]

STEPS = [
    *SMOKE, "train.max_steps=6", "evaluation.every=2 steps", "checkpoint.every=2 steps", "latency.measure=false",
    "early_stopping.patience=null", "train.learning_rate=1e-3", "tracking.experiment=resume",
]  # fmt: skip
SHORT = [*STEPS, "metrics={f1: {}, predictions: {}}"]
EXPERIMENT = "exp=lora_mixout_awp"
"""Dropout, masks per step, attacks in some steps: whatever is random or depends on the step."""
OWN = [
    "model={name: builtin:transformer, architecture: {layers: 2, d_model: 16, heads: 2, ffn: 24, vocabulary: 300}}",
    "methods={lora: {rank: 2, dropout: 0.0}, mixout: {layers: encoder}, awp: {rule: sam, start: 0.0, every: 2}}",
    "precision=no",  # of one process all runs have the same
]
"""The same in a small model with a tokenizer of its own."""
OTHERS = {
    "token_classification": ["exp=ner"],
    "question_answering": ["exp=qa"],
    "causal_lm": ["exp=pretrain_clm", "task.causal_lm={chunk_length: 16, paragraphs: 2, paragraph_tokens: 4}"],
    "masked_lm": ["exp=pretrain_mlm", "task.masked_lm={chunk_length: 16}"],
}


def outcome(output: Path, seed: int = 42) -> dict[str, Any]:
    """Digests of weights and of what was made of the test split, and every point of every curve in MLflow."""
    (folder,) = (output / "runs").glob(f"*-s{seed}-*")
    made = [path for path in sorted((folder / "test").iterdir()) if path.suffix in (".csv", ".conll", ".json")]
    digests = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "weights/trained.safetensors", *made)
    }
    return digests | {"curves": curves(output, folder.name)}


def curves(output: Path, name: str) -> list[tuple[str, int, float]]:
    query = "select key, step, value from metrics join runs using (run_uuid) where name = ? order by 1, 2, 3"
    with closing(sqlite3.connect(output / "mlflow.db")) as database:
        rows = database.execute(query, (name,)).fetchall()
    return [row for row in rows if row[0].startswith(("train/", "validation/")) and "per_second" not in row[0]]


def status(output: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(output / "mlflow.db")) as database:
        return database.execute("select status from runs order by start_time").fetchall()


def start(output: Path, *more: str) -> int:
    return main([EXPERIMENT, *SHORT, f"output={output}", *more])


def resume(output: Path, *more: str) -> int:
    (name,) = [path.name for path in (output / "runs").iterdir() if (path / "spec.yaml").exists()]
    return main(["--resume", name, f"output={output}", *more])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("whole")
    assert start(output) == 0
    found = outcome(output)
    assert len([row for row in found["curves"] if row[0] == "train/loss"]) == 6
    assert "test/predictions.csv" in found
    return found


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("step.end:term@step=1", 143),
        ("step.end:int@step=3", 130),
        ("gradient.forward:usr1@step=4", 75),
        ("gradient.forward:term@step=6", 143),
    ],
)
def test_a_run_that_was_asked_to_stop_goes_on(
    fault: str, code: int, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """F11, F12, F13: in the middle of an epoch, at its end, in the last step."""
    monkeypatch.setenv(faults.VARIABLE, fault)
    assert start(tmp_path) == code
    assert status(tmp_path) == [("KILLED",)]
    (told,) = re.findall(r"resume  \S+ launch\.py (.*)", capsys.readouterr().out)
    assert len(list((tmp_path / "runs").glob("*/checkpoints/step-*"))) >= 1
    monkeypatch.delenv(faults.VARIABLE)
    assert main(told.split()) == 0
    assert outcome(tmp_path) == uninterrupted
    assert status(tmp_path) == [("FINISHED",)]
    assert not (tmp_path / "locks").exists() or not list((tmp_path / "locks").iterdir())


@pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS)
def test_a_run_of_any_task_goes_on(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the middle of an epoch: the order of rows, masks of tokens, methods and a tokenizer of its own."""
    lines = [" ".join(f"{WORDS[(i * k) % 8]} {k}" for k in range(1, 9 + i % 7)) for i in range(60)]
    (tmp_path / "own.txt").write_text("\n\n".join(lines))
    is_text = "pretrain" in words[0]
    texts = [f"data={{name: {tmp_path / 'own.txt'}, label: null, validation: 0.2, test: 0.2}}"] if is_text else []
    arguments = [*words, *OWN, *texts, *STEPS, "train.batch_size=4"]
    assert main([*arguments, f"output={tmp_path / 'whole'}"]) == 0
    monkeypatch.setenv(faults.VARIABLE, "step.end:term@step=3")
    assert main([*arguments, f"output={tmp_path / 'broken'}"]) == 143
    monkeypatch.delenv(faults.VARIABLE)
    assert resume(tmp_path / "broken") == 0
    found = outcome(tmp_path / "whole")
    assert outcome(tmp_path / "broken") == found
    assert len([row for row in found["curves"] if row[0] == "train/loss"]) == 6


@pytest.mark.parametrize(
    "fault", ["step.end:error@step=1", "gradient.backward:error@step=4", "report:error", "report.sealed:error"]
)
def test_a_run_that_broke_goes_on(
    fault: str, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, between two, after training is over, and after the seal."""
    monkeypatch.setenv(faults.VARIABLE, fault)
    with pytest.raises(RuntimeError, match="fault point"):
        start(tmp_path)
    assert status(tmp_path) == [("FAILED",)]
    monkeypatch.delenv(faults.VARIABLE)
    assert resume(tmp_path) == 0
    assert outcome(tmp_path) == uninterrupted
    assert status(tmp_path) == [("FINISHED",)]
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "checkpoints").exists()
    assert [check.name for check in chain.verify(folder, []).checks if check.ok is False] == []
    kinds = [entry.kind for entry in (ledger.check(tmp_path) or ledger.Ledger()).entries]
    assert kinds == ["start", "end"]


def test_the_newest_checkpoint_is_corrupt(
    uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F13, F19."""
    monkeypatch.setenv(faults.VARIABLE, "step.end:int@step=4")
    assert start(tmp_path) == 130
    newest = max((tmp_path / "runs").glob("*/checkpoints/step-*"))
    (newest / "optimizer.safetensors").write_bytes(b"")
    monkeypatch.delenv(faults.VARIABLE)
    assert resume(tmp_path) == 0
    told = capsys.readouterr().out
    assert f"NOTE checkpoint {newest.name} cannot be used" in told
    assert outcome(tmp_path) == uninterrupted
    (folder,) = (tmp_path / "runs").iterdir()
    assert main(["--resume", folder.name, f"output={tmp_path}"]) == 2  # finished


def test_the_size_that_fits_is_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F10: 12 rows of a step in micro-batches, halved once, saved, resumed."""
    monkeypatch.setenv(faults.VARIABLE, "gradient.backward:oom@step=1,step.end:term@step=3")
    assert start(tmp_path) == 143
    monkeypatch.delenv(faults.VARIABLE)
    assert resume(tmp_path) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    sizes = [value for key, _, value in curves(tmp_path, folder.name) if key == "train/micro_batch_tokens"]
    assert len(sizes) == 6
    assert len(set(sizes)) == 1
    assert sizes[0] < 4096
    scores = json.loads(json.dumps(verified_scores(folder)))
    assert scores["oom/events"] == 1
    assert scores["oom/seconds_lost"] > 0


def verified_scores(folder: Path) -> dict[str, float]:
    from harness.signing import provenance

    envelope = provenance.open_envelope(folder / "end.envelope.json", [])
    assert envelope.predicate is not None
    metrics: dict[str, float] = envelope.predicate["metrics"]
    return metrics


def test_a_fault_of_the_machine_is_computed_again(
    uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F31, policy rollback: a NaN that does not come back costs the steps since the checkpoint, and nothing else."""
    monkeypatch.setenv(faults.VARIABLE, "gradient.result:nan@step=4")
    assert start(tmp_path, "train.nonfinite=rollback") == 0
    assert "computing again from the checkpoint of step 2" in capsys.readouterr().out
    assert outcome(tmp_path) == uninterrupted


def test_replicates_go_on_with_the_one_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, "seeds=[0,1]", "train.max_steps=2") == 0
    monkeypatch.setenv(faults.VARIABLE, "report:int")  # in the first one
    assert start(broken, "seeds=[0,1]", "train.max_steps=2") == 130
    (group,) = (broken / "runs").glob("*-x2-*")
    monkeypatch.setenv(faults.VARIABLE, "step.end:term@step=1")  # the second one
    assert main(["--resume", group.name, f"output={broken}"]) == 143
    monkeypatch.delenv(faults.VARIABLE)
    assert main(["--resume", group.name, f"output={broken}"]) == 0
    for seed in (0, 1):
        assert outcome(broken, seed) == outcome(whole, seed)
    assert sorted(status(broken)) == [("FINISHED",)] * 3
    summary = (group / "replicates.md").read_text()
    assert all(f"-s{seed}-" in summary for seed in (0, 1))


def test_three_saves_that_fail_in_a_row_end_the_run_and_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """F15."""
    monkeypatch.setenv(faults.VARIABLE, "checkpoint.after_model:enospc")
    assert start(tmp_path / "once") == 0
    assert "training goes on (1 of 3 failures)" in capsys.readouterr().out
    points = ("after_model", "after_optimizer", "after_envelope")
    monkeypatch.setenv(faults.VARIABLE, ",".join(f"checkpoint.{point}:enospc" for point in points))
    assert start(tmp_path / "thrice") == 5
    assert "3 checkpoints in a row could not be saved\n  why: cannot save" in capsys.readouterr().err
    assert status(tmp_path / "thrice") == [("FAILED",)]


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was stopped after its first step."""
    monkeypatch.setenv(faults.VARIABLE, "step.end:int@step=1")
    assert start(tmp_path) == 130
    monkeypatch.delenv(faults.VARIABLE)
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def test_what_cannot_be_resumed_is_told_before_anything_is_loaded(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, output = stopped.name, stopped.parent.parent
    place = f"output={output}"
    capsys.readouterr()
    for arguments, message in (
        (["--resume"], "--resume: which run?"),
        (["--resume", name[:-1] + "x", place], f"did you mean '{name}'"),
        (["--resume", "../runs", place], "no run is called 'runs'"),
        (["--resume", name, place, "train.epochs=9"], "train.epochs=9: a run keeps the settings it began with"),
        (["--resume", name, place, "exp=lora"], "is a run of lora_mixout_awp"),
        (["--resume", name, place, "--smoke"], "--smoke: does not go with --resume"),
    ):
        assert main(arguments) != 0
        assert message in capsys.readouterr().err
    lock = RunLock(output, name)
    lock.acquire()
    try:
        assert main(["--resume", name, place]) == 2  # F22
        told = capsys.readouterr().err
        assert f"another process works on {name}\n  why: pid {os.getpid()}, host " in told
    finally:
        lock.release()


def test_a_run_whose_beginning_was_edited_does_not_go_on(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = yaml.safe_load((stopped / "spec.yaml").read_text())
    spec["train"]["learning_rate"] = 0.5
    (stopped / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    assert main(["--resume", str(stopped)]) == 5
    assert "spec.yaml was edited since the run began" in capsys.readouterr().err


def test_changed_data_are_refused_and_changed_code_is_told(
    stopped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F23 for versions: told, because a run that is stuck on one version helps nobody."""
    from harness import fingerprint

    monkeypatch.setattr(fingerprint, "code_state", lambda: {"treeSha256": "0" * 64})
    monkeypatch.setenv(faults.VARIABLE, "report:int")
    assert main(["--resume", str(stopped)]) == 130
    assert "NOTE since the run began: code.treeSha256 was " in capsys.readouterr().out
    statement = fingerprint.Statement.__init__

    def other_data(self: Any, spec: Any, seed: int, name: str, loaded: Any, *rest: Any) -> None:
        statement(self, spec, seed, name, loaded, *rest)
        self._common["data"] = []

    monkeypatch.setattr(fingerprint.Statement, "__init__", other_data)
    assert main(["--resume", str(stopped)]) == 2
    assert "data is not what the run began with" in capsys.readouterr().err
