"""What `launch.py` refuses, before training and with nothing written; and what happens when a run breaks."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.launching import SMOKE, main
from harness.evaluate import Evaluator
from harness.optim import build_schedule

ROWS = [("good", "positive"), ("bad", "negative"), ("fine thing", "positive"), ("awful thing", "negative")]
QUICK = [*SMOKE, "latency.measure=false", "metrics={f1: {}, accuracy: {}}"]


def csv_of(folder: Path, rows: list[tuple[str, str]], name: str = "reviews.csv", header: str = "review,stars") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n")
    return path


def many(labels: list[str], size: int = 40) -> list[tuple[str, str]]:
    return [(f"text number {i} is {labels[i % len(labels)]}", labels[i % len(labels)]) for i in range(size)]


def own(path: Path) -> list[str]:
    return [f"data.name={path}", "data.text=review", "data.label=stars"]


def not_utf8(folder: Path) -> list[str]:
    path = csv_of(folder, many(["a", "b"]))
    path.write_bytes(path.read_bytes() + "caf\xe9,a\n".encode("latin-1"))
    return own(path)


def unknown_label(folder: Path) -> list[str]:
    for split, labels in (("train", ["a", "b"]), ("validation", ["a", "b"]), ("test", ["a", "c", "b"])):
        csv_of(folder, many(labels), f"{split}.csv")
    return own(folder)


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "missing column": (lambda d: [*own(csv_of(d, many(["a", "b"]))), "data.text=revew"], "no column is called 'revew'"),
    "one class": (lambda d: own(csv_of(d, many(["a"]))), "label"),
    "empty": (lambda d: own(csv_of(d, [])), "train has no rows"),
    "not UTF-8": (not_utf8, "data.encoding=latin-1"),
    "unknown label in test": (unknown_label, "'c'"),
    "no such file": (lambda d: own(d / "absent.csv"), "absent.csv"),
    "unreachable data": (lambda d: ["data.name=someone/reviews"], "someone/reviews"),
    "unreachable model": (lambda d: ["model.name=someone/model"], "someone/model"),
    "no such folder": (lambda d: [f"model.name={d / 'absent'}"], "absent"),
    "not a model": (lambda d: [f"model.name={d}"], "model.name"),
    "target that matches nothing": (lambda d: ["methods.lora.target_modules=[quary]"], "did you mean 'query'"),
    "mixout beside dropout": (lambda d: ["methods.mixout.layers=encoder"], "methods.lora.dropout: mixout on a LoRA"),
    "an attack never": (lambda d: ["methods.awp={start: 0.5, stop: 0.5}"], "methods.awp.start: 0.5 is not below stop"),
    "an attack without effect": (lambda d: ["methods.awp={rule: sam, gamma: 0.1}"], "methods.awp.gamma: has no effect"),
    "warm-up without end": (lambda d: ["train.max_steps=null", "train.warmup_steps=500"], "its rate is never reached"),
    "rank too high": (lambda d: ["methods.lora.rank=1000"], "methods.lora.rank: rank 1000 is larger than"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "seeds"), [*((case, "seeds=[0]") for case in BAD), ("target that matches nothing", "seeds=[0,1]")]
)
def test_bad_input_is_one_clear_error_and_nothing_is_written(
    case: str, seeds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[case]
    (tmp_path / "data").mkdir()
    output = tmp_path / "runs"
    arguments = ["exp=lora", *QUICK, f"output={output}", seeds, *make(tmp_path / "data")]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("error: ")
    assert "Traceback" not in told
    assert not output.exists() or not list(output.iterdir())


def test_a_folder_that_cannot_be_written_ends_with_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["exp=lora", *QUICK, f"output={tmp_path / 'file'}"]) == 5
    assert "output: cannot write into" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exp=lora", "--plam"], "no option --plam"),
        (["train.epochs=2"], "name exactly one experiment"),
        (["exp=lora", "exp=full_finetune"], "name exactly one experiment"),
        (["exp=lora", "sweep=lora_rnk"], "sweep=lora_rnk: no search space is called 'lora_rnk'"),
        (["exp=lora", "sweep=lora_rank", "--resume", "x"], "--resume: does not go with sweep="),
        (["exp=lora", "provenance.require_signature=true"], "provenance.require_signature: there is no signing key"),
    ],
)
def test_usage(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main([*arguments, f"output={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_plan_shows_everything_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs"
    assert main(["exp=lora_adapter", "--plan", "--json", f"output={output}"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["trainable"] == 446_211
    assert plan["parameters"]["trainable_by_family"]["lora"] == 6 * 4 * 8 * (384 + 384)
    assert plan["parameters"]["trainable_by_family"]["bottleneck_adapter"] == 6 * (2 * 64 * 384 + 64 + 384)
    assert plan["steps"]["per_epoch"] == -(-plan["data"]["splits"]["train"]["rows"] // 32)
    assert sum(plan["data"]["splits"]["test"]["labels"].values()) == plan["data"]["splits"]["test"]["rows"]
    assert not output.exists()
    assert main(["exp=lora_adapter", "--plan", f"output={output}"]) == 0
    assert "nothing was trained or written" in capsys.readouterr().out


def run_status(output: Path) -> str:
    import sqlite3

    with sqlite3.connect(output / "mlflow.db") as database:
        ((status,),) = database.execute("select status from runs").fetchall()
    return str(status)


@pytest.mark.filterwarnings("ignore:.*noload.*")  # SQLAlchemy, at MLflow's mapper configuration
def test_a_loss_that_is_not_finite_ends_the_run_as_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import losses

    monkeypatch.setattr(losses, "cross_entropy_sum", lambda logits, *_: logits.sum() * float("nan"))
    assert main(["exp=lora", *QUICK, f"output={tmp_path}"]) == 1
    assert "the loss is nan" in capsys.readouterr().err
    assert run_status(tmp_path) == "FAILED"


@pytest.mark.filterwarnings("ignore:.*noload.*")  # SQLAlchemy, at MLflow's mapper configuration
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_is_recorded_as_killed(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_soon(*arguments: object) -> object:
        os.kill(os.getpid(), number)
        return build_schedule(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("harness.train.build_schedule", stop_soon)
    assert main(["exp=lora", *QUICK, f"output={tmp_path}"]) == code
    assert run_status(tmp_path) == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("final", ["weights", "scores"])
def test_a_run_may_leave_the_test_split_unread(
    final: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict, asked = Evaluator.predict, set[str]()

    def watched(self: Evaluator, model: Any, task: Any, split: str) -> Any:
        asked.add(split)
        return predict(self, model, task, split)

    monkeypatch.setattr(Evaluator, "predict", watched)
    assert main(["exp=lora", *SMOKE, f"evaluation.final={final}", f"output={tmp_path}"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert asked == {"validation"}
    assert not (folder / "test").exists()
    assert (folder / "weights").exists() == (final == "weights")
    end = json.loads(base64.b64decode(json.loads((folder / "end.envelope.json").read_text())["payload"]))
    assert "validation/f1_macro" in end["predicate"]["metrics"]
    assert "score   best validation/f1_macro 0." in capsys.readouterr().out
