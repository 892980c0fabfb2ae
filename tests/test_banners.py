"""What a run says of itself at its beginning and its end; for programs, as values."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import banners
from harness.console import Terminal
from harness.run import Result
from harness.session import Session
from harness.specs import spec
from harness.tracking.tracker import Tracker


def session(*overrides: str, quiet: bool = False, **accelerator: Any) -> Session:
    known = {"device": torch.device("cpu"), "mixed_precision": "no", "num_processes": 1} | accelerator
    chosen = spec.load("lora", [*overrides, "output=/runs"])
    nothing: Any = None
    return Session(
        chosen, nothing, SimpleNamespace(**known), None, [], Path("/runs"), Terminal(quiet=quiet)
    )  # fmt: skip


def test_a_rehearsal_does_not_tell_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    banners.say_begin(session("tracking.experiment=smoke", "train.max_steps=2"), "lora-s1-3f9a")
    told = capsys.readouterr().out
    assert "lora, rehearsed: two steps on a few rows (--smoke)" in told and "max_steps" not in told


def test_the_beginning_says_what_on_what_where_and_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    banners.say_begin(session("train.epochs=3", mixed_precision="bf16", num_processes=2), "lora-s1-3f9a")
    blank, title, *lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert (blank, title) == ("", "lora-s1-3f9a")
    assert told["experiment"] == "lora train.epochs=3"
    assert told["device"] == f"CPU with {torch.get_num_threads()} threads, bf16, 2 processes"
    assert told["folder"] == "/runs/runs/lora-s1-3f9a"
    assert told["MLflow"].startswith("mlflow ui --backend-store-uri")
    assert told["Ctrl-C"].endswith("--num_processes 2 launch.py --resume lora-s1-3f9a output=/runs")


@pytest.mark.parametrize(
    ("typed", "by_accelerate", "told"),
    [
        (["python", "launch.py"], False, "python launch.py --resume"),
        (["python", "/a b/launch.py"], False, "python '/a b/launch.py' --resume"),
        (["/venv/bin/python", "../launch.py"], True, "accelerate launch ../launch.py --resume"),
        (["/venv/bin/python", "notebook.py"], False, "/venv/bin/python launch.py --resume"),
    ],
)
def test_a_run_goes_on_as_it_was_launched(
    typed: list[str], by_accelerate: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if by_accelerate:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", typed[1:])
    assert session().resume_command("lora-s1-3f9a") == f"{told} lora-s1-3f9a output=/runs"


def test_many_settings_are_counted_and_a_server_is_told_by_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    many = [f"latency.{key}={value}" for key, value in (("runs", 17), ("measure", "false"), ("lengths", "[8]"))]
    many += [
        f"train.{key}" for key in ("epochs=1", "batch_size=3", "max_steps=5", "warmup_steps=0", "weight_decay=0.3")
    ]
    many += [
        f"data.{key}" for key in ("limit=9", "max_test_overlap=0.5", "split_seed=77", "test=0.3", "validation=0.3")
    ]
    banners.say_begin(session(*many, "tracking.uri=https://user:secret@server/x"), "lora-s1-3f9a")
    told = capsys.readouterr().out
    assert "and 1 more settings" in told and "secret" not in told and "@server/x" in told


def test_a_quiet_run_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    banners.say_begin(session(quiet=True), "lora-s1-3f9a")
    assert capsys.readouterr().out == ""


class Server(Tracker):
    @property
    def run_id(self) -> str:
        return "0123"

    @property
    def url(self) -> str:
        return "https://server/#/experiments/1/runs/0123"


SCORES = {"test/f1_macro": 0.75, "best/epoch": 3.0, "time/total_s": 61.0, "memory/peak_gib": 1.25}


def test_the_end_says_the_score_the_page_and_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    banners.say_result(
        Terminal(), "lora-s1-3f9a", Path("/runs/x"), Server(), SCORES, ("test/f1_macro", 0.75), [], [], "UNSIGNED."
    )
    assert capsys.readouterr().out.splitlines() == [
        "",
        "score   test/f1_macro 0.7500, checkpoint of epoch 3; 61 s, 1.25 GiB",
        "run     lora-s1-3f9a, MLflow id 0123",
        "page    https://server/#/experiments/1/runs/0123",
        "folder  /runs/x",
        "signed  UNSIGNED.  Check it: harness verify /runs/x",
    ]


def results(*scores: dict[str, float], parent: tuple[str, str | None] | None = None) -> list[Result]:
    return [
        Result(f"lora-s{seed}-3f9a", seed, Path(f"/runs/runs/lora-s{seed}-3f9a"), f"id{seed}", one, parent)
        for seed, one in enumerate(scores)
    ]


def test_one_run_for_programs() -> None:
    told = banners.as_values(results({"test/f1_macro": 0.5, "worst": math.inf}))
    assert told == {
        "name": "lora-s0-3f9a", "id": "id0", "folder": "/runs/runs/lora-s0-3f9a", "seeds": [0],
        "scores": {"test/f1_macro": 0.5, "worst": None},
    }  # fmt: skip
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_replicates_for_programs() -> None:
    told = banners.as_values(results({"a": 1.0}, {"a": 3.0}, parent=("lora-x2-3f9a", "parent")))
    assert [told[key] for key in ("name", "id", "folder", "seeds")] == [
        "lora-x2-3f9a", "parent", "/runs/runs/lora-x2-3f9a", [0, 1],
    ]  # fmt: skip
    assert told["scores"] == {"a": 2.0, "a_sd": pytest.approx(math.sqrt(2))}
    assert [one["scores"] for one in told["runs"]] == [{"a": 1.0}, {"a": 3.0}]


def test_the_score_in_one_line() -> None:
    metric = "validation/accuracy"
    told = banners.headline(results({"test/f1_macro": 0.5, "test/accuracy": 0.75}), metric)
    assert told == "lora-s0-3f9a  test/f1_macro 0.5000"
    assert banners.headline(results({"test/accuracy": 0.75}), metric) == "lora-s0-3f9a  test/accuracy 0.7500"
    unopened = {"validation/accuracy": 0.25, "best/validation_accuracy": 0.25}
    assert banners.headline(results(unopened), metric) == "lora-s0-3f9a  validation/accuracy 0.2500"
    both = results({"test/f1_macro": 0.5}, {"test/f1_macro": 0.7}, parent=("lora-x2-3f9a", None))
    assert banners.headline(both, metric) == "lora-x2-3f9a  test/f1_macro 0.6000 ± 0.1414, n = 2"
