"""What is used instead of what was meant is said, once. Notes of runs that have a terminal: tests of what says them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from accelerate import DistributedType

from harness import assembly, notes
from harness.machine import processes
from harness.models import tokenizing
from harness.models.model import Model
from harness.specs import spec
from harness.sweeps import crew, space


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    texts: set[str] = set()
    monkeypatch.setattr(notes, "_told", texts)
    return texts


def test_a_note_is_said_once_on_stderr_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    notes.note("that instead of this")
    monkeypatch.setenv("RANK", "0")
    for _ in range(2):
        notes.note("that instead of this")
    notes.note("something else")
    said = capsys.readouterr()
    assert said.out == "" and said.err == "NOTE that instead of this\nNOTE something else\n"


@pytest.mark.parametrize(("backend", "count"), [("INDUCTOR", 1), ("NO", 0), ("", 0), (None, 0)])
def test_a_compiler_that_the_launcher_was_given(
    backend: str | None, count: int, told: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO, gradient_accumulation_steps=1)
    monkeypatch.setattr(processes, "Accelerator", lambda **_: plain)
    for name in ("ACCELERATE_DYNAMO_BACKEND", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if backend is not None:
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
    processes.build_accelerator("no")
    assert len(told) == count


@pytest.mark.parametrize(("gpus", "count"), [(["0", "1"], 1), (["0", "1", "2"], 0), ([], 0)])
def test_workers_that_share_gpus(
    gpus: list[str], count: int, told: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_gpus", lambda: gpus)
    monkeypatch.setattr(crew._Processes, "_start", lambda *_: SimpleNamespace())
    crew._Processes(space.load("lora_rank", ["workers=3"]), [], tmp_path)
    assert told == ({"3 workers share 2 GPUs, and their memory"} if count else set())


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_slow_tokenizer(is_fast: bool, told: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = SimpleNamespace(is_fast=is_fast)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: of)
    assert tokenizing.load(Model(name=str(tmp_path), revision=None)) is of
    assert len(told) == (not is_fast)


@pytest.mark.parametrize(
    ("steps", "said"), [(90, "train.max_steps=90 is never reached: train.epochs=5 ends at step 35"), (35, "")]
)
def test_a_limit_of_steps_beyond_the_last_epoch(
    steps: int, said: str, told: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SimpleNamespace(task=SimpleNamespace(num_batches=lambda size: 7))
    monkeypatch.setattr(assembly, "_read", lambda spec: read)
    assembly.load(spec.load("lora", [f"train.max_steps={steps}"]))
    assert told == ({said} if said else set())


@pytest.mark.parametrize(
    ("name", "overrides", "gone"),
    [
        ("lora", ["~methods.lora"], "methods.lora"),
        ("lora_adapter", ["methods={awp: {}}"], "methods.lora and methods.bottleneck_adapter"),
        ("lora_adapter", ["~methods.lora"], None),
        ("lora", ["methods.lora={}"], None),
        ("full_finetune", ["methods={}"], None),
    ],
)
def test_an_experiment_without_the_methods_of_its_file(
    name: str, overrides: list[str], gone: str | None, told: set[str]
) -> None:
    spec.load(name, overrides)
    assert [text.split(": ")[0] for text in told] == ([f"exp={name} is without {gone}"] if gone else [])
