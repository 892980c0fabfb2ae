from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli.launching import SMOKE
from harness.compare import runs
from harness.compare.systems import find
from harness.errors import SpecError
from harness.specs import spec
from harness.tracking.stores import REHEARSALS, Tracking, start
from tests.compare.runs import finished
from tests.stores import QUIET


def names(output: Path, *asked: str) -> dict[str, list[int]]:
    return {system.name: list(system.entries) for system in find(asked, output).systems}


def test_runs_alike_in_all_but_the_seed_are_one_system(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        finished(tmp_path, "lora", seed, 0.7)
    finished(tmp_path, "lora", 0, 0.6, methods__lora__rank=4, latency__measure=False)
    finished(tmp_path, "full_finetune", 0, 0.8)
    found = find([], tmp_path)
    assert {one.label: list(one.entries) for one in found.systems} == {
        "full_finetune": [0], "lora": [0, 1, 2], "lora methods.lora.rank=4": [0],
    }  # fmt: skip
    assert names(tmp_path, "lora") == {"lora": [0, 1, 2]}
    assert find(["lora"], tmp_path).notes == ['not asked for: "lora methods.lora.rank=4"']
    assert names(tmp_path, "lora methods.lora.rank=4", "lora") == {"lora rank=4": [0], "lora": [0, 1, 2]}


def test_names_are_as_short_as_they_are_clear(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.7, train__epochs=2, methods__lora__rank=4, train__learning_rate=0.123456)
    finished(tmp_path, "lora", 0, 0.7, train__epochs=2, methods__lora__rank=16, train__learning_rate=0.123456)
    finished(tmp_path, "awp", 0, 0.7, train__epochs=2)
    assert set(names(tmp_path)) == {"awp", "lora rank=16", "lora rank=4"}


def test_of_two_runs_with_one_seed_the_later_one_counts_and_a_note_says_so(tmp_path: Path) -> None:
    first = finished(tmp_path, "lora", 0, 0.6, run="lora-s0-ffff")
    second = finished(tmp_path, "lora", 0, 0.7, run="lora-s0-0000")
    found = find(["lora"], tmp_path)
    assert found.systems[0].first.run == second.name
    assert found.notes == [f"lora, seed 0: {second.name} counts, {first.name} does not"]


def test_what_cannot_be_trusted_is_left_out_and_named(tmp_path: Path) -> None:
    whole = finished(tmp_path, "lora", 0, 0.7)
    unfinished = finished(tmp_path, "lora", 1, 0.7)
    (unfinished / "end.envelope.json").unlink()
    edited = finished(tmp_path, "lora", 2, 0.7)
    statement = edited / "end.envelope.json"
    statement.write_text(statement.read_text().replace("payload", "pay"))
    changed = finished(tmp_path, "lora", 3, 0.7, predicted=[0, 1])
    predictions = changed / "test" / "predictions.csv"
    predictions.write_text(predictions.read_text().replace("bad,bad", "bad,good"))
    found = find(["lora"], tmp_path)
    assert [entry.run for entry in found.systems[0].entries.values()] == [whole.name]
    assert found.notes[0] == f"left out, it did not finish: {unfinished.name}"
    assert found.notes[1].startswith("left out, its end statement cannot be trusted")
    assert found.notes[2] == f"left out, test/predictions.csv changed after it ended: {changed.name}"


def test_one_run_a_group_of_replicates_and_predictions(tmp_path: Path) -> None:
    folders = [finished(tmp_path, "lora", seed, 0.7, predicted=[0, 1, 1]) for seed in (0, 1)]
    group = tmp_path / "runs" / "lora-x2-abcd"
    group.mkdir()
    (group / "replicates.json").write_text(json.dumps({folder.name: {} for folder in folders}))
    assert names(tmp_path, folders[1].name) == {"lora": [1]}
    assert names(tmp_path, group.name) == {"lora": [0, 1]}
    predictions = find([group.name], tmp_path).systems[0].first.predictions
    assert predictions is not None and predictions.label_names == ["bad", "good"]
    assert np.array_equal(predictions.labels, [0, 1, 0]) and np.array_equal(predictions.predicted, [0, 1, 1])


def test_a_study_gives_the_winners_that_met_the_test_split(tmp_path: Path) -> None:
    """Not those of an earlier report; and what was measured of a winner only."""
    study, runs = tmp_path / "studies" / "mine", dict[str, list[str]]()
    (study / "test").mkdir(parents=True)
    (study / "latency").mkdir()
    for arm, name, rank in (("earlier", "lora", 4), ("search", "lora", 16), ("baseline", "full_finetune", None)):
        for seed in (100, 101):
            more: dict[str, Any] = {} if rank is None else {"methods__lora__rank": rank}
            folder = finished(tmp_path, name, seed, 0.5, run=f"mine-{arm}-seed{seed}", **more)
            (folder / "trial.json").write_text(json.dumps({"study": "mine", "arm": arm}))
            judged = {"predicted": [1, 1], "labels": [0, 1], "label_names": ["a", "b"]}
            file = study / "test" / f"{folder.name}.json"
            file.write_text(json.dumps({**judged, "scores": {"test/f1_macro": 0.8}}))
            runs.setdefault(arm, []).append(folder.name)
    winners = {arm: names for arm, names in runs.items() if arm != "earlier"}
    row = {"variant": "search merged", "batch_size": 1, "length": 8, "p50_ms": 3.0, "p95_ms": 4.0}
    (study / "latency" / "latency.json").write_text(json.dumps([row]))
    (study / "latency" / "of.json").write_text(json.dumps(winners))
    assert len(names(tmp_path, "mine")) == 3, "a report that does not name its winners"
    (study / "report.json").write_text(json.dumps({"winners": winners}))
    found = {system.label: system for system in find(["mine"], tmp_path).systems}
    assert list(found) == ["mine: full_finetune", "mine: lora methods.lora.rank=16"]
    lora, full = found["mine: lora methods.lora.rank=16"], found["mine: full_finetune"]
    assert (lora.name, full.name, list(lora.entries)) == ("lora", "full_finetune", [100, 101])
    assert lora.values("test/f1_macro") == [0.8, 0.8]
    assert lora.first.scores["latency/merged_b1_t8_p50_ms"] == 3.0
    assert "latency/merged_b1_t8_p50_ms" not in full.first.scores
    with pytest.raises(SpecError, match="no finished run of any experiment"):
        find([], tmp_path)


def test_what_was_left_out_or_judged_otherwise_is_another_system(tmp_path: Path) -> None:
    """An ablation is not the method it is cut from."""
    finished(tmp_path, "lora_mixout_awp", 0, 0.7)
    finished(tmp_path, "lora_mixout_awp", 0, 0.6, without=["methods.awp"])
    finished(tmp_path, "lora_mixout_awp", 0, 0.5, evaluation__every="20 steps")
    labels = {system.label for system in find([], tmp_path).systems}
    assert labels == {
        "lora_mixout_awp", "lora_mixout_awp ~methods.awp", "lora_mixout_awp evaluation.every=20 steps",
    }  # fmt: skip
    assert set(names(tmp_path)) == {"lora_mixout_awp", "lora_mixout_awp ~methods.awp", "lora_mixout_awp every=20 steps"}


def test_an_experiment_whose_file_is_gone_keeps_its_variants_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, epochs in ((0, 2), (1, 9)):
        finished(tmp_path, "lora", seed, 0.7, train__epochs=epochs)
    files = tmp_path / "experiments"
    shutil.copytree(spec.EXPERIMENTS, files)
    (files / "lora.yaml").unlink()
    monkeypatch.setattr(spec, "EXPERIMENTS", files)
    runs._shipped.cache_clear()
    found = find([], tmp_path).systems
    runs._shipped.cache_clear()
    assert [(len(one.entries), one.name) for one in found] == [(1, "lora epochs=2"), (1, "lora epochs=9")]


def test_one_odd_run_does_not_end_a_comparison(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.7)
    gone = finished(tmp_path, "lora", 1, 0.7, predicted=[0, 1])
    (gone / "test" / "predictions.csv").unlink()
    trained = finished(tmp_path, "lora", 2, 0.7, is_judged=False)
    found = find(["lora"], tmp_path)
    assert list(found.systems[0].entries) == [0]
    assert len(found.notes) == 2 and f"was not judged on the test split: {trained.name}" in found.notes[1]
    with pytest.raises(SpecError, match=f"{trained.name}\n  why: left out, it was not judged on the test split"):
        find([trained.name], tmp_path)


@QUIET
def test_filters_and_ids_of_mlflow(tmp_path: Path) -> None:
    ids = {}
    for seed, team in ((0, "blue"), (1, "red")):
        folder = finished(tmp_path, "lora", seed, 0.7)
        tracker = start(Tracking(), tmp_path, "lora", folder.name, tags={"team": team})
        ids[seed] = tracker.wait_open(60)
        tracker.finish()
    assert names(tmp_path, "tags.team = 'red'") == {"lora": [1]}
    assert names(tmp_path, str(ids[0])) == {"lora": [0]}
    with pytest.raises(SpecError, match="cannot read the filter"):
        find(["tags.team ="], tmp_path)
    with pytest.raises(SpecError, match=r"no finished run of tags\.team = 'green'"):
        find(["tags.team = 'green'"], tmp_path)


def test_names_that_nothing_is_called(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.7, train__epochs=2)
    assert names(tmp_path, "lora") == {"lora": [0]}, "only a variant is there"
    with pytest.raises(SpecError, match=r"no finished run of awp in .*\n.*exp=awp seeds="):
        find(["lora", "awp"], tmp_path)
    with pytest.raises(SpecError, match=r'no finished run of lora .*\n  fix: name one of "lora train.epochs=2"'):
        find(["lora train.epochs=3"], tmp_path)
    with pytest.raises(SpecError, match="did you mean 'lora'"):
        find(["lroa"], tmp_path)


def test_a_variant_is_named_by_what_a_table_shows_or_by_settings_that_only_it_has(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.7, train__learning_rate=0.0012)
    finished(tmp_path, "lora", 1, 0.7, train__learning_rate=0.0012, methods__lora__rank=4)
    finished(tmp_path, "lora", 2, 0.7, train__epochs=2, evaluation__every="20 steps", without=["metrics.calibration"])
    shown = names(tmp_path, "lora")
    assert len(shown) == 3 and names(tmp_path, *shown) == shown
    for typed, seed in {
        "lora learning_rate=1.2e-3": 0, "lora train.learning_rate=0.0012": 0, "lora rank=4": 1,
        "lora lora.rank=4 learning_rate=0.0012": 1, "lora every=20 steps": 2, "lora ~metrics.calibration epochs=2": 2,
    }.items():  # fmt: skip
        assert list(names(tmp_path, typed).values()) == [[seed]], typed
    finished(tmp_path, "lora", 3, 0.7, train__epochs=2, methods__lora__rank=2)
    with pytest.raises(SpecError, match=r'epochs=2 is several\n  fix: name one of "lora evaluation.*", "lora meth'):
        find(["lora epochs=2"], tmp_path)


def test_a_winner_of_a_study_is_named_by_what_a_table_shows(tmp_path: Path) -> None:
    test = tmp_path / "studies" / "mine" / "test"
    test.mkdir(parents=True)
    for seed, rank in ((0, 4), (1, 16)):
        run = finished(tmp_path, "lora", seed, 0.5, run=f"mine-{rank}", methods__lora__rank=rank)
        judged = {"predicted": [1], "labels": [0], "label_names": ["a", "b"], "scores": {"test/f1_macro": 0.8}}
        (test / f"{run.name}.json").write_text(json.dumps(judged))
    assert list(names(tmp_path, "mine: lora methods.lora.rank=4").values()) == [[0]]
    with pytest.raises(SpecError, match="no finished run of lora rank=2"):
        find(["mine: lora rank=2"], tmp_path)


def test_an_unfinished_run_is_named_with_the_command_that_finishes_it(tmp_path: Path) -> None:
    begun = finished(tmp_path, "awp", 0, 0.7)
    (begun / "end.envelope.json").unlink()
    for asked in (begun.name, "awp"):
        with pytest.raises(SpecError, match=rf"not finish: {begun.name}\n  fix: launch.py --resume {begun.name}"):
            find([asked], tmp_path)
    (begun / "trial.json").write_text("{}")
    with pytest.raises(SpecError) as raised:
        find([begun.name], tmp_path)
    assert "--resume" not in str(raised.value)


def test_runs_with_smoke_are_compared_only_where_they_are_named(tmp_path: Path) -> None:
    assert f"tracking.experiment={REHEARSALS}" in SMOKE
    finished(tmp_path, "lora", 0, 0.7)
    rehearsal = finished(tmp_path, "lora", 1, 0.4, tracking__experiment=REHEARSALS).name
    for asked in ([], ["lora"]):
        found = find(asked, tmp_path)
        assert [list(system.entries) for system in found.systems] == [[0]]
        assert found.notes == [f"left out unless they are named, runs with --smoke: {rehearsal}"]
    assert names(tmp_path, rehearsal) == {"lora": [1]}


@QUIET
def test_a_filter_leaves_runs_with_smoke_out(tmp_path: Path) -> None:
    for seed, experiment in ((0, "lora"), (1, REHEARSALS)):
        folder = finished(tmp_path, "lora", seed, 0.7, tracking__experiment=experiment)
        tracker = start(Tracking(), tmp_path, "lora", folder.name, tags={"team": "blue"})
        tracker.wait_open(60)
        tracker.finish()
    found = find(["tags.team = 'blue'"], tmp_path)
    assert [list(system.entries) for system in found.systems] == [[0]]
    assert found.notes == [f"left out unless they are named, runs with --smoke: {folder.name}"]
