"""A study from the command line to its report: what it leaves, how it goes on, what its trials may do to it."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from harness.cli.launching import main
from harness.console import Terminal
from harness.errors import Interrupted, LostProcess, MemoryExhausted, RunInUse, TrainingError
from harness.machine import processes
from harness.run import run_in
from harness.session import Session
from harness.specs import spec
from harness.storage import RunLock
from harness.sweeps import conclusion, space, sweep, worker
from harness.sweeps.plan import Plan
from harness.sweeps.study import Study
from harness.tracking import stores, tracker
from harness.train import NonFinite
from tests.stores import QUIET
from tests.sweeps import launches
from tests.test_launch import TWO, launch, wait_for

pytestmark = [QUIET, pytest.mark.slow]
SMALL = [
    "exp=lora", "sweep=lora_rank", "study=small", "confirm.top=1", "confirm.seeds=[100,101]", "trials=2",
    "space.methods.lora.rank={choice: [1, 2]}", "train.max_steps=4", "train.warmup_steps=0", "train.batch_size=12",
    "evaluation.every=2 steps", "checkpoint.every=1 steps", "latency.batch_sizes=[1]", "latency.lengths=[8]",
    "latency.runs=10",
]  # fmt: skip


def study(output: Path, tiny: list[str], *more: str) -> int:
    return main([*SMALL, *tiny, f"output={output}", *more])


def trials(output: Path) -> list[dict[str, str]]:
    with (output / "studies" / "small" / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mlflow_runs(output: Path) -> dict[str, dict[str, Any]]:
    """Name -> status, parent's name, tags, metrics."""
    with sqlite3.connect(output / "mlflow.db") as database:
        names = dict(database.execute("select run_uuid, name from runs").fetchall())
        found: dict[str, dict[str, Any]] = {}
        for run, name in names.items():
            assert name not in found, f"{name} stands twice"
            (status,) = database.execute("select status from runs where run_uuid = ?", (run,)).fetchone()
            tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run,)).fetchall())
            metrics = database.execute("select key, value from latest_metrics where run_uuid = ?", (run,)).fetchall()
            parent = names.get(tags.get("mlflow.parentRunId", ""))
            found[name] = {"status": status, "parent": parent, "tags": tags, "metrics": dict(metrics)}
    return found


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were begun or gone on with, in order."""
    begun: list[str] = []

    def spy(session: Any, name: str, *more: Any) -> Any:
        begun.append(name)
        return run_in(session, name, *more)

    monkeypatch.setattr(worker, "run_in", spy)
    return begun


def test_what_a_study_leaves_and_that_it_goes_on(
    tmp_path: Path, tiny: list[str], watched: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    judged: list[str] = []
    judge = conclusion._judge

    def count(plan: Any, session: Any, one: Any, seed: int, run: str) -> Any:
        judged.append(run)
        return judge(plan, session, one, seed, run)

    monkeypatch.setattr(conclusion, "_judge", count)
    assert study(tmp_path, tiny) == 0
    assert watched[:4] == ["s000-small", "b000-small", "s001-small", "b001-small"], "the arms take turns"
    assert len(watched) == 4 + 2 * 2
    rows = trials(tmp_path)
    assert [(row["arm"], row["trial"], row["state"]) for row in rows] == [
        ("search", "0", "complete"), ("search", "1", "complete"),
        ("baseline", "0", "complete"), ("baseline", "1", "complete"),
    ]  # fmt: skip
    runs = mlflow_runs(tmp_path)
    assert runs.pop("small")["status"] == "FINISHED"
    assert sorted(runs) == sorted(watched)
    for name, run in runs.items():
        assert (run["status"], run["parent"]) == ("FINISHED", "small")
        assert "validation/f1_macro" in run["metrics"]
        assert not any(key.startswith("test/") for key in run["metrics"]), "the test split is not opened by a trial"
        assert (tmp_path / "runs" / name / "weights").exists() == ("seed" in name)
        assert not (tmp_path / "runs" / name / "checkpoints").exists()
    report = json.loads((tmp_path / "studies" / "small" / "report.json").read_text())
    assert [row["test split"] for row in report["test"]] == ["lora", "full_finetune"]
    assert report["difference"]["seeds"] == [100, 101]
    assert sorted(judged) == sorted(name for name in watched if "seed" in name), "the winners, each seed once"
    text = (tmp_path / "studies" / "small" / "report.md").read_text()
    assert "python launch.py exp=lora " in text and "95 %" in text
    assert "optuna-dashboard" in capsys.readouterr().out

    watched.clear()
    assert study(tmp_path, tiny) == 0
    assert watched == [] and len(judged) == 4, "nothing is left to be done"
    assert study(tmp_path, tiny, "trials=3") == 0
    assert watched[:2] == ["s002-small", "b002-small"], "the number is the total"
    assert len(trials(tmp_path)) == 6

    capsys.readouterr()
    assert study(tmp_path, tiny, "space.methods.lora.rank={choice: [1, 4]}") == 2
    told = capsys.readouterr().err
    assert "begun with other settings" in told and "methods.lora.rank" in told and "[1, 2]" in told
    shutil.rmtree(tmp_path / "studies" / "small" / "test")
    (one, *_) = (tmp_path / "runs").glob("s*-seed100-small")
    shutil.rmtree(one / "weights")  # as if another machine had trained it
    assert study(tmp_path, tiny, "trials=3") == 5
    assert f"the weights of {one.name} are not here" in capsys.readouterr().err
    assert main(["--resume", "s000-small", f"output={tmp_path}"]) == 2
    assert "is a trial of the study small" in capsys.readouterr().err


def test_who_helped_makes_the_report_if_the_one_that_led_is_gone(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leader = RunLock(tmp_path, "small")
    leader.acquire()
    monkeypatch.setattr(sweep, "_PARENT_SECONDS", 0.1)
    report, gone = tmp_path / "studies" / "small" / "report.md", "the process that led this study is gone"
    assert study(tmp_path, tiny) == 0
    told = capsys.readouterr().out
    assert "another process leads this study" in told and gone not in told and not report.exists()
    leader.release()
    run = worker.Worker.work

    def die_late(self: worker.Worker, stages: tuple[str, ...]) -> None:
        run(self, stages)
        if stages == worker.CONFIRM:
            leader.release()

    leader.acquire()
    monkeypatch.setattr(worker.Worker, "work", die_late)
    for is_made in (True, False):
        assert study(tmp_path, tiny) == 0
        assert (gone in capsys.readouterr().out) == is_made, "once"
        assert report.exists()
        leader.acquire()
    leader.release()
    assert mlflow_runs(tmp_path)["small"]["status"] == "FINISHED"


def test_a_study_killed_before_its_run_was_remembered_has_one_run(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = Study.remember

    def killed_at(moment: str) -> Callable[..., None]:
        def act(self: Study, key: str, value: str | None) -> None:
            if key == moment and value:
                raise KeyboardInterrupt
            remember(self, key, value)

        return act

    with monkeypatch.context() as killed:
        killed.setattr(Study, "remember", killed_at("mlflow_store"))
        killed.setattr(stores, "start", Mock(side_effect=AssertionError("a run that nobody would end")))
        assert study(tmp_path, tiny) == 130
    with monkeypatch.context() as killed:
        killed.setattr(Study, "remember", killed_at("mlflow_run"))
        assert study(tmp_path, tiny) == 130
    assert mlflow_runs(tmp_path)["small"]["status"] == "KILLED"
    assert study(tmp_path, tiny, "trials=1") == 0
    assert mlflow_runs(tmp_path)["small"]["status"] == "FINISHED"


def test_a_process_that_waits_for_other_workers_looks_again_with_the_rest_of_its_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What others work on may take hours; a process of the same launch must not wait in one collective so long."""

    class Others:
        def __init__(self) -> None:
            self.looks = 3

        def records(self, stage: str) -> list[Any]:
            return []

        def claim(self, stage: str) -> None:
            return None

        def is_open(self, stage: str) -> bool:
            self.looks -= 1
            return self.looks > 0

    told: list[Any] = []

    def take_down(_: Any, value: Any) -> Any:
        told.append(value)
        return value

    monkeypatch.setattr(worker, "_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(processes, "from_first", take_down)
    session: Any = SimpleNamespace(accelerator=None)
    study: Any = Others()
    worker.Worker(cast(Any, None), session, study, None, cast(Any, Mock())).work(("search",))
    assert told == [(None, False), (None, False), (None, True)]


Fault = Callable[[str, int], BaseException | None]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Fault], None]]:
    """Let trials raise what a function of the run's name and of how often it was begun says."""

    def use(fault: Fault) -> None:
        begun: dict[str, int] = {}

        def run(session: Any, name: str, *more: Any) -> Any:
            begun[name] = begun.get(name, 0) + 1
            if error := fault(name, begun[name]):
                raise error
            return run_in(session, name, *more)

        monkeypatch.setattr(worker, "run_in", run)

    yield use


def test_f33_a_trial_that_fails_or_runs_out_of_memory_is_told_and_the_study_goes_on(
    tmp_path: Path, tiny: list[str], faulty: Callable[[Fault], None]
) -> None:
    errors = {
        "s000-small": MemoryExhausted("out of memory in training"),
        "b000-small": TrainingError("the loss is nan"),
        "b001-small": ValueError("a mistake of somebody's"),
    }
    faulty(lambda name, times: errors.get(name))
    assert study(tmp_path, tiny, "trials=3") == 0
    found = {f"{row['arm']} {row['trial']}": (row["state"], row["reason"]) for row in trials(tmp_path)}
    assert found["search 0"] == ("infeasible", "out of memory in training")
    assert found["baseline 0"] == ("failed", "the loss is nan")
    assert found["baseline 1"] == ("failed", "ValueError: a mistake of somebody's")
    assert "somebody's" in (tmp_path / "runs" / "b001-small" / "traceback.txt").read_text()
    assert {found[f"search {i}"][0] for i in (1, 2)} == {found["baseline 2"][0]} == {"complete"}


def test_a_study_whose_every_trial_fails_ends_with_the_reason(
    tmp_path: Path, tiny: list[str], faulty: Callable[[Fault], None], capsys: pytest.CaptureFixture[str]
) -> None:
    faulty(lambda name, times: TrainingError("the loss is nan"))
    assert study(tmp_path, tiny, "trials=9") == 1
    told = capsys.readouterr()
    assert "3 trials in a row failed" in told.err and "the loss is nan" in told.err
    assert "resume  the same command again" in told.out
    assert mlflow_runs(tmp_path)["small"]["status"] == "FAILED"


def test_a_stopped_study_goes_on_with_the_trial_it_left(
    tmp_path: Path, tiny: list[str], faulty: Callable[[Fault], None]
) -> None:
    faulty(lambda name, times: Interrupted(143) if name == "b000-small" and times == 1 else None)
    assert study(tmp_path, tiny) == 143
    assert mlflow_runs(tmp_path)["small"]["status"] == "KILLED"
    assert study(tmp_path, tiny) == 0
    assert [row["state"] for row in trials(tmp_path)] == ["complete"] * 4
    assert mlflow_runs(tmp_path)["small"]["status"] == "FINISHED"


@pytest.mark.parametrize("is_slow", [False, True])
def test_the_end_of_a_stopped_trial_that_had_no_time_is_sent_by_who_leads(
    is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker leaves a busy store after ten seconds; its run must not stay RUNNING until the study goes on."""
    plan = Plan(space.load("lora_rank", ["study=small"]), "lora", [f"output={tmp_path}"])
    study = Study(plan, tmp_path / "studies" / "small")
    if is_slow:
        monkeypatch.setattr(sweep, "_SPOOLS_SECONDS", 0.5)
        monkeypatch.setattr(sweep, "sync", lambda *_, **__: iter(partial(time.sleep, 2), None))
    with pytest.raises(Interrupted), sweep._leading(plan, study, tmp_path, Terminal(quiet=True)) as lead:
        assert lead
        for name, identity in (("s000-small", study.identity), ("s000-other", "another study's")):
            tags = {"study_id": identity, "arm": "search"}
            trial: Any = stores.start(stores.Tracking(), tmp_path, "lora", name, parent=lead.wait_open(60), tags=tags)
            assert trial.wait_open(60)
            trial.metrics({"train/loss": 1.0}, 1)
            trial._give_up()  # as if the store had had its ten seconds
            trial._keep({"kind": "finish", "status": "KILLED", "time": tracker.now()})
            trial._spool.close()
        raise Interrupted(143)
    found = {name: run["status"] for name, run in mlflow_runs(tmp_path).items()}
    left = {path.stem for path in (tmp_path / "spool").iterdir()}
    error = capsys.readouterr().err
    if is_slow:
        assert found == {"small": "KILLED", "s000-small": "RUNNING", "s000-other": "RUNNING"}
        assert left == {"s000-small", "s000-other"}
        assert f"records of 1 trials wait in {tmp_path / 'spool'}; send them with: harness sync" in error
    else:
        assert found == {"small": "KILLED", "s000-small": "KILLED", "s000-other": "RUNNING"}
        assert mlflow_runs(tmp_path)["s000-small"]["metrics"] == {"train/loss": 1.0}
        assert left == {"s000-other"}
        assert "trials wait" not in error


def test_f33_trials_that_diverge_are_infeasible_and_never_end_the_study(
    tmp_path: Path, tiny: list[str], faulty: Callable[[Fault], None]
) -> None:
    faulty(lambda name, times: NonFinite("the loss is nan") if int(name[1:4]) < 3 else None)
    assert study(tmp_path, tiny, "trials=4", "~confirm", "~baseline") == 0
    assert [row["state"] for row in trials(tmp_path)] == ["infeasible"] * 3 + ["complete"]


def test_a_trial_that_another_process_still_works_on_waits(
    tmp_path: Path, tiny: list[str], faulty: Callable[[Fault], None]
) -> None:
    """F34: it was out of reach, and will find out. Its checkpoints are its own."""
    faulty(lambda name, times: RunInUse("another process works on it") if times < 6 else None)
    assert study(tmp_path, tiny, "trials=1", "~confirm", "~baseline") == 0
    (row,) = trials(tmp_path)
    assert row["state"] == "complete"


def test_runs_of_an_earlier_study_of_the_same_name_are_not_taken_for_trials(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["trials=1", "~confirm", "~baseline"]
    assert study(tmp_path, tiny, *small) == 0
    shutil.rmtree(tmp_path / "studies" / "small")
    capsys.readouterr()
    assert study(tmp_path, tiny, *small, "methods.lora.alpha=32") == 2
    told = capsys.readouterr().err
    assert "s000-small is a run of an earlier study that was called small" in told and "study=<name>" in told
    assert study(tmp_path, tiny, *small, "study=other") == 0


def test_f35_other_data_or_another_mistake_of_the_spec(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake that is found when the data is read does not fix the study; data that changed later ends it."""
    (name,) = (word for word in tiny if word.startswith("data.name="))
    own, small = tmp_path / "own.csv", ["trials=1", "~confirm", "~baseline"]
    shutil.copy(name.partition("=")[2], own)
    words = [*(word for word in tiny if word != name), f"data.name={own}", *small]
    assert study(tmp_path, words, "data.text=reviw") == 2
    assert study(tmp_path, words) == 0
    own.write_text(own.read_text() + "99 good bad never,a\n98 terrible,b\n" * 5)
    capsys.readouterr()
    assert study(tmp_path, words, "trials=2") == 2
    told = capsys.readouterr().err
    assert "begun with other inputs" in told and "train split: " in told


def test_a_helper_learns_the_run_of_the_study_as_soon_as_it_is_known(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """U15: its later trials stand below the study's run."""
    leader, parents = RunLock(tmp_path, "small"), list[str | None]()
    leader.acquire()

    def look(session: Any, name: str, parent: str | None, *more: Any) -> Any:
        parents.append(parent)
        Study.remember(studies[0], "mlflow_run", "0" * 32)
        return run_in(session, name, None, *more)

    class Watched(Study):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            studies.append(self)

    studies: list[Study] = []
    monkeypatch.setattr(sweep, "_PARENT_SECONDS", 0.1)
    monkeypatch.setattr(sweep, "Study", Watched)
    monkeypatch.setattr(worker, "run_in", look)
    assert study(tmp_path, tiny, "~confirm", "~baseline") == 0
    leader.release()
    assert parents == [None, "0" * 32]


def test_files_that_change_while_a_study_runs_do_not_change_it(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who prepares the next experiment edits files that this one's later trials are made of."""
    files, decays = tmp_path / "experiments", list[float]()
    shutil.copytree(spec.EXPERIMENTS, files)
    monkeypatch.setattr(spec, "EXPERIMENTS", files)

    def edit(session: Session, *more: Any) -> Any:
        decays.append(session.spec.train.weight_decay)
        base = files / "base.yaml"
        base.write_text(base.read_text().replace("weight_decay: 0.01", "weight_decay: 0.5"))
        return run_in(session, *more)

    monkeypatch.setattr(worker, "run_in", edit)
    assert study(tmp_path / "out", tiny, "~confirm", "~baseline") == 0
    assert decays == [0.01, 0.01]
    assert spec.load("lora").train.weight_decay == 0.5


def test_a_study_that_moves_to_another_store_forgets_the_run_it_had_there(tmp_path: Path, tiny: list[str]) -> None:
    """Its later trials would name a parent that the new store does not have."""
    assert study(tmp_path, tiny, "~confirm", "~baseline", "trials=1") == 0
    other = tmp_path / "other.db"
    assert study(tmp_path, tiny, "~confirm", "~baseline", "trials=2", f"tracking.uri=sqlite:///{other}") == 0
    with closing(sqlite3.connect(other)) as database:
        runs = dict(database.execute("select name, run_uuid from runs"))
        (parent,) = database.execute(
            "select value from tags where key = 'mlflow.parentRunId' and run_uuid = ?", (runs["s001-small"],)
        ).fetchone()
    assert parent == runs["small"]


def test_a_launch_that_lost_a_process_blames_no_trial(
    tmp_path: Path, tiny: list[str], faulty: Callable[[Fault], None]
) -> None:
    """F5: the trial waits, and is the first to be taken up by the next launch."""
    faulty(lambda name, times: LostProcess("lost another process") if (name, times) == ("s000-small", 1) else None)
    assert study(tmp_path, tiny) == 1
    assert study(tmp_path, tiny) == 0
    assert [row["state"] for row in trials(tmp_path)] == ["complete"] * 4


def test_a_trial_that_was_ended_leaves_no_optimizer_in_memory(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def look(session: Any, name: str, *more: Any) -> Any:
        found.append(len(session.accelerator._optimizers))
        return run_in(session, name, *more)

    monkeypatch.setattr(worker, "run_in", look)
    assert study(tmp_path, tiny, "trial_minutes=0.00001", "~confirm") == 0
    assert found == [0, 0, 0, 0]
    assert {row["state"] for row in trials(tmp_path)} == {"infeasible"}


def has_saved(output: Path, steps: int) -> bool:
    return launches.saved(output, "s000-small") >= steps


def test_a_trial_that_was_given_up_leaves_no_running_run_and_no_checkpoints(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed three times with a checkpoint: as a process that ends without a word."""
    length = ["train.max_steps=600", "train.epochs=300", "evaluation.every=600 steps"]  # not over before it is killed
    command = launches.command(tiny, tmp_path, "trials=1", "~confirm", "checkpoint.every=1 steps", *length)
    for _ in range(3):
        before = launches.saved(tmp_path, "s000-small")
        with launches.launched(command, tmp_path) as process:
            wait_for(partial(has_saved, tmp_path, before + 1))
            process.kill()
    assert launches.recorded(tmp_path)["s000-small"] == ("small", "RUNNING")
    done = launches.launch(command)
    assert done.returncode == 0, done.stderr
    assert launches.recorded(tmp_path)["s000-small"] == ("small", "KILLED")
    assert not (tmp_path / "runs" / "s000-small" / "checkpoints").exists()
    (row,) = trials(tmp_path)
    assert (row["state"], row["reason"]) == ("failed", "its process ended 3 times while it ran")


def test_a_trial_ends_when_its_time_is_over_and_breaks_a_constraint(tmp_path: Path, tiny: list[str]) -> None:
    assert study(tmp_path, tiny, "trial_minutes=0.00001", "trials=1") == 0
    rows = trials(tmp_path)
    assert {row["state"] for row in rows} == {"infeasible"}
    assert all("out of time after 1 steps" in row["reason"] for row in rows)
    run = mlflow_runs(tmp_path)["s000-small"]
    assert (run["status"], "out of time" in run["tags"]["ended"]) == ("KILLED", True)


def test_constraints_keep_a_trial_from_being_the_best(tmp_path: Path, tiny: list[str]) -> None:
    assert study(tmp_path, tiny, "constraints={parameters/trainable: 700}") == 0
    for row in trials(tmp_path):
        is_large = float(row["parameters/trainable"]) > 700
        assert (row["state"] == "infeasible") == is_large
        assert ("at most 700 is allowed" in row["reason"]) == is_large
    assert any(row["arm"] == "baseline" and row["state"] == "infeasible" for row in trials(tmp_path))


def test_seeds_within_a_trial_are_children_and_wilcoxon_prunes_over_them(tmp_path: Path, tiny: list[str]) -> None:
    assert study(tmp_path, tiny, "seeds=[1,2,3]", "pruner=wilcoxon") == 2, "three can never be enough"
    assert study(tmp_path, tiny, "seeds=[1,2,3,4,5]", "pruner=wilcoxon", "trials=1", "~confirm", "~baseline") == 0
    runs = mlflow_runs(tmp_path)
    children = {f"s000-small-s{seed}" for seed in range(1, 6)}
    assert {name for name, run in runs.items() if run["parent"] == "s000-small"} == children
    values = [runs[name]["metrics"]["validation/f1_macro"] for name in sorted(children)]
    (row,) = trials(tmp_path)
    assert float(row["value"]) == pytest.approx(sum(values) / 5, abs=1e-6)


def test_all_processes_of_a_launch_follow_the_same_trial_and_a_pruner_ends_it_on_all(
    tmp_path: Path, tiny: list[str]
) -> None:
    to_minimize = "{metric: validation/nll, direction: minimize}"
    asked = [
        "~confirm", "~baseline", "trials=5", "sampler=grid", "pruner={median: {n_startup_trials: 1}}",
        f"objective={to_minimize}", f"early_stopping={to_minimize}", "evaluation.every=1 steps",
        "space.methods.lora.rank={choice: [1]}",
        "space.train.learning_rate={choice: [5e-2, 4e-2, 1e-6, 2e-6, 3e-6]}",
    ]  # fmt: skip
    words = [word for word in SMALL if not word.startswith(("confirm", "evaluation", "space", "trials"))]
    done = launch(TWO, tmp_path, *words, *tiny, *asked)
    assert done.returncode == 0, done.stderr
    rows = {float(row["train.learning_rate"]): row for row in trials(tmp_path)}
    assert len(rows) == 5, "a grid: each value once"
    assert {row["state"] for row in rows.values()} == {"complete", "pruned"}
    runs = mlflow_runs(tmp_path)
    for row in rows.values():
        run = runs[row["run"]]
        assert run["status"] == {"complete": "FINISHED", "pruned": "KILLED"}[row["state"]]
        assert run["tags"].get("ended", "") == {"complete": "", "pruned": "pruned"}[row["state"]]
