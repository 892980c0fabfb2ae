"""`harness selftest`: what holds passes, and each check fails when what it checks is broken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn
from typer.testing import CliRunner

from harness import batch, faults, gradients, seeding
from harness.checks import selftest
from harness.checks.findings import Finding, judged, largest, report
from harness.checks.proofs import CHECKS
from harness.checks.rehearsal import NUM_STEPS, ROWS, Rehearsal
from harness.checks.selftest import two_processes
from harness.cli.commands import app
from harness.cli.launching import SMOKE, main
from harness.console import Terminal
from harness.data import dataset
from harness.data.labelling import Classes
from harness.errors import SpecError, TrainingError
from harness.methods import awp, lora
from harness.methods.mixout import Mixout
from harness.models import surgery
from harness.signing import provenance
from harness.specs import spec, yaml_source
from harness.tracking.tracker import MemoryTracker
from harness.train import Training
from tests.stores import QUIET


def rehearsal(tiny: list[str], name: str, *more: str) -> Rehearsal:
    chosen = spec.load(name, [*tiny, *more])
    return Rehearsal(chosen, dataset.load(chosen.data, Classes()), Accelerator(cpu=True), 1)


def examined(tiny: list[str], check: str, name: str = "lora", *more: str) -> list[Finding]:
    return selftest.examine(rehearsal(tiny, name, *more), {check: CHECKS[check]}, lambda finding: None)


RESUME, CUT, MEMORY, START, MERGE = CHECKS
EVERYTHING = (
    "full_finetune",
    "methods.lora={rank: 2, target_modules: all}",
    "methods.mixout={p: 0.5}",
    "methods.awp={}",
)


# What holds


def test_a_trial_is_a_few_short_texts_with_every_label(tiny: list[str]) -> None:
    small = rehearsal(tiny, "awp", "methods.awp={start_epoch: 4, every: 3}")
    rows = small.loaded.splits.train.examples
    assert len(rows) == ROWS
    assert {example.label for example in rows} == {0, 1}
    assert len({len(example.text) for example in rows}) > 4
    assert small.spec.train.total_steps(small.task.num_batches(small.spec.train.batch_size)) == NUM_STEPS
    method: Any = small.methods["awp"]
    assert all(method.is_active(step) for step in range(4))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        ["lora"],
        EVERYTHING,
        ["full_finetune", "methods.mixout={p: 0.5, layers: all}", "methods.awp={rule: box}"],
        ["full_finetune", "methods.bottleneck_adapter={size: 4}", "methods.awp={rule: sam}"],
    ],
    ids=["lora", "lora mixout awp", "mixout box", "adapter sam"],
)
def test_what_holds_passes(name: list[str], tiny: list[str]) -> None:
    found = selftest.examine(rehearsal(tiny, *name), CHECKS, lambda finding: None)
    assert {finding.check for finding in found} >= CHECKS.keys()
    for finding in found:
        assert finding.ok or finding.detail.startswith("does not apply"), finding.line


def test_a_step_at_strength_zero_is_examined_for_every_method_that_has_one(tiny: list[str]) -> None:
    checks = {finding.check: finding for finding in examined(tiny, START, *EVERYTHING)}
    assert checks.keys() == {START, "mixout at zero = off", "awp at zero = off"}
    assert all(finding.difference == 0 for finding in checks.values())


@pytest.mark.parametrize(
    ("check", "overrides", "why"),
    [
        (START, [], "full fine-tuning has no methods"),
        (MERGE, [], "no method of this spec can be merged"),
        (START, ["methods.bottleneck_adapter={init: he}"], "(bottleneck_adapter does not promise it)"),
        (CUT, ["methods.mixout={p: 0.5, scope: forward}"], "draws anew in every forward"),
    ],
)
def test_a_check_that_does_not_apply_says_why(check: str, overrides: list[str], why: str, tiny: list[str]) -> None:
    (finding,) = examined(tiny, check, "full_finetune", *overrides)
    assert finding.ok is None
    assert why in finding.line
    assert finding.line.startswith("??")


# What is broken


def failed(found: list[Finding]) -> list[str]:
    return [finding.check for finding in found if finding.ok is False]


def test_moments_that_are_lost(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """F12: a checkpoint whose moments are zero."""
    original = Training.optimizer_state

    def forgetful(self: Training) -> dict[str, Tensor]:
        return {key: value * ("exp_avg" not in key) for key, value in original(self).items()}

    monkeypatch.setattr(Training, "optimizer_state", forgetful)
    (finding,) = examined(tiny, RESUME)
    assert failed([finding]) == [RESUME]
    assert finding.difference is not None
    assert finding.difference > 1e-6
    assert finding.where in finding.line


def test_a_schedule_that_starts_anew(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Training.load_state

    def forgetful(self: Training, optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
        original(self, optimizer, {**state, "schedule": self.state()["schedule"]})

    monkeypatch.setattr(Training, "load_state", forgetful)
    assert failed(examined(tiny, RESUME)) == [RESUME]


def test_generators_that_a_checkpoint_does_not_bring_back(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "restore", lambda state: None)
    (finding,) = examined(tiny, RESUME)
    assert failed([finding]) == [RESUME]


def test_a_cut_that_drops_a_row(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = batch.cut

    def lossy(lengths: list[int], budget: int, overhead: int) -> list[list[int]]:
        cuts = original(lengths, budget, overhead)
        return [*cuts[:-1], cuts[-1][1:]] if len(cuts[-1]) > 1 else cuts

    monkeypatch.setattr(gradients, "cut", lossy)
    assert failed(examined(tiny, CUT)) == [CUT]


def test_a_dropout_that_stays_on_is_not_taken_for_a_broken_cut(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgery, "disable_dropout", lambda model: None)
    (finding,) = examined(tiny, CUT)
    assert finding.ok is None


def test_generators_that_a_shortage_of_memory_moves_on(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """F6."""

    def put_back(self: Training, before: Any) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    monkeypatch.setattr(Training, "_put_back", put_back)
    assert failed(examined(tiny, MEMORY)) == [MEMORY]


def test_a_method_that_does_not_start_at_the_pretrained_model(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = lora.LoRALinear.__init__

    def restless(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        nn.init.constant_(self.lora_b, 0.1)

    monkeypatch.setattr(lora.LoRALinear, "__init__", restless)
    assert failed(examined(tiny, START)) == [START]


def test_a_method_that_acts_at_strength_zero(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awp.AWP, "is_off", lambda self: False)
    monkeypatch.setattr(awp, "relative", lambda weights, grads, gamma: [0.1 * weight for weight in weights])
    assert failed(examined(tiny, START, *EVERYTHING)) == ["awp at zero = off"]


def test_masks_at_strength_zero(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mixout, "off", lambda self: self)
    assert failed(examined(tiny, START, *EVERYTHING)) == ["mixout at zero = off"]


def merge_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lora.LoRALinear.merged_weight
    monkeypatch.setattr(
        lora.LoRALinear, "merged_weight", lambda self: original(self) + 1e-2 * torch.randn_like(original(self))
    )


def test_a_merge_that_is_off(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    merge_badly(monkeypatch)
    (finding,) = examined(tiny, MERGE, "full_finetune", "methods.lora={rank: 2, target_modules: all}")
    assert failed([finding]) == [MERGE]


def test_a_check_that_breaks_has_failed_and_the_next_is_made() -> None:
    def broken(rehearsal: Rehearsal) -> list[Finding]:
        raise AssertionError("one\ntwo")

    checks = {"first": broken, "second": lambda rehearsal: [Finding("second", True, "fine")]}
    said: list[str] = []
    selftest.examine(None, checks, lambda finding: said.append(finding.line))  # type: ignore[arg-type]
    assert said == ["FAILED  first: AssertionError: one", "ok      second: fine"]


def test_a_mistake_in_the_spec_is_told_as_one(tiny: list[str]) -> None:
    with pytest.raises(SpecError, match="has no effect with rule: sam"):
        examined(tiny, CUT, "awp", "methods.awp={rule: sam, gamma: 0.5}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_infinitely_far(value: float) -> None:
    one, other = {"a": torch.zeros(2)}, {"a": torch.tensor([0.0, value])}
    assert largest(one, other) == (float("inf"), "a")
    assert largest(one, {}) == (float("inf"), "a")
    finding = judged("check", "detail", (float("inf"), "a"), 1.0)
    assert finding.ok is False
    json.dumps(report([finding]), allow_nan=False)


# Two processes


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tiny: list[str]) -> None:
    (finding,) = two_processes(rehearsal(tiny, *EVERYTHING))
    assert finding.ok, finding.line


@pytest.mark.slow
def test_processes_that_take_other_steps(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Rehearsal.steps

    def other(self: Rehearsal, *arguments: Any) -> Any:
        outcome = original(self, *arguments)
        return dataclasses.replace(outcome, weights={n: t + 1e-4 for n, t in outcome.weights.items()})

    monkeypatch.setattr(Rehearsal, "steps", other)
    (finding,) = two_processes(rehearsal(tiny, "lora"))
    assert finding.ok is False
    assert finding.difference == pytest.approx(1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "patience", "told"),
    [
        ("gradient.forward:kill@rank=1", 120.0, "one was ended by signal 9"),
        ("gradient.forward:error@rank=1", 120.0, "RuntimeError: fault point gradient.forward"),
        ("gradient.forward:sleep@rank=1", 20.0, "did not end in 20 seconds"),
    ],
)
def test_a_process_that_dies_or_hangs(
    fault: str, patience: float, told: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F24."""
    monkeypatch.setenv(faults.VARIABLE, fault)
    (finding,) = two_processes(rehearsal(tiny, "lora"), patience)
    assert finding.ok is False
    assert told in finding.detail


def test_below_a_launcher_no_processes_are_started(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = rehearsal(tiny, "lora")
    monkeypatch.setenv("WORLD_SIZE", "1")
    (finding,) = two_processes(small)
    assert finding.line.startswith("??")
    assert "already one of several processes" in finding.line


# The command, and a run that asks for it


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        selftest, "two_processes", lambda rehearsal: [Finding("1 process = 2", None, "not made: a test")]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_the_command(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["selftest", "lora", *tiny])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if not line.startswith("NOTE")]
    assert [line.partition(":")[0].split(maxsplit=1)[1] for line in lines[:-1]] == [*CHECKS, "1 process = 2"]
    assert lines[-1].startswith("5 passed, 0 FAILED, 1 not made, in ")
    merge_badly(monkeypatch)
    done = CliRunner().invoke(app, ["selftest", "lora", *tiny, "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["passed"] is False
    assert [check["check"] for check in told["checks"] if check["ok"] is False] == [MERGE]


@pytest.mark.slow
@QUIET
def test_a_run_that_asks_for_it(tiny: list[str], tmp_path: Path) -> None:
    """The run is that of one which does not ask, bit for bit, and its folder holds the verdict."""
    weights = []
    for asked in ("false", "true"):
        more = [f"output={tmp_path / asked}", f"provenance.selftest={asked}", "latency.measure=false"]
        assert main(["exp=lora", *SMOKE, *tiny, *more]) == 0
        (folder,) = (tmp_path / asked / "runs").iterdir()
        weights.append((folder / "weights" / "trained.safetensors").read_bytes())
    assert weights[0] == weights[1]
    verdict = json.loads((folder / "selftest.json").read_text())
    assert verdict["passed"]
    assert [check["check"] for check in verdict["checks"]] == [*CHECKS]
    assert "selftest.json" in sealed(folder)


def sealed(folder: Path) -> set[str]:
    return set(provenance.open_envelope(folder / "end.envelope.json", ()).subjects)


@pytest.mark.slow
def test_a_run_that_fails_it_does_not_train(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = spec.load("lora", [*tiny, "provenance.selftest=true"])
    merge_badly(monkeypatch)
    tracker, given = MemoryTracker(), (Accelerator(cpu=True), tmp_path)
    with pytest.raises(TrainingError, match=r"(?s)the selftest failed.*merged = unmerged"):
        selftest.precede(chosen, 1, dataset.load(chosen.data, Classes()), *given, tracker, Terminal(False))
    assert not json.loads((tmp_path / "selftest.json").read_text())["passed"]
    assert {"kind": "tags", "values": {"selftest": "failed"}} in tracker.messages


def test_the_spec_that_processes_read_is_the_one_given(tiny: list[str], tmp_path: Path) -> None:
    chosen = spec.load("lora", tiny)
    (tmp_path / "spec.yaml").write_text(yaml_source.dump(chosen.resolved()))
    assert spec.reload(tmp_path / "spec.yaml", {}).resolved() == chosen.resolved()
    assert yaml.safe_load((tmp_path / "spec.yaml").read_text()) == chosen.resolved()
