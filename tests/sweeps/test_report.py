"""What a report prints of known numbers: in which order, with which sign, and with which command again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness import storage
from harness.sweeps import report
from harness.sweeps.conclusion import _opened_before, confirmed_of, latest
from harness.sweeps.trials import TrialRecord
from tests.sweeps.test_facts import HIGH, LOW, SEEDS, facts


def test_optimism_is_what_the_search_promised_too_much_in_either_direction() -> None:
    for direction, sign in (("maximize", "+"), ("minimize", "-")):
        _, rows = report.confirmation_table(facts(ours=LOW, theirs=HIGH, direction=direction, metric="nll"))
        assert all(row[-1].startswith(sign) for row in rows)


def test_the_best_confirmed_configuration_stands_first() -> None:
    for direction, first in (("maximize", "0.6100"), ("minimize", "0.5080")):
        made = facts(ours=LOW, theirs=LOW, direction=direction, metric="nll")
        other = dataclasses.replace(made.winners["search"], values=dict(zip(SEEDS, HIGH, strict=True)))
        _, rows = report.confirmation_table(dataclasses.replace(made, confirmed=[made.winners["search"], other]))
        assert rows[0][3].startswith(first)


def test_commands_to_run_the_best_again_hold_for_their_experiment_and_tell_no_secret() -> None:
    arguments = ("methods.lora.target_modules=all", "tracking.uri=http://me:secret@host", "train.epochs=2")
    made = facts(ours=LOW, theirs=HIGH, arguments=arguments)
    text = report.render(made, ["history.html"], "mlflow ui", "journal.log")
    assert "python launch.py exp=lora methods.lora.target_modules=all train.epochs=2 train.learning_rate=0.001" in text
    assert "python launch.py exp=full_finetune train.epochs=2 train.learning_rate=0.001\n" in text
    assert "secret" not in text


def test_a_confirmation_that_failed_and_was_trained_again_counts() -> None:
    task = {"arm": "search", "number": 3, "chosen": {"train.learning_rate": 1e-3}, "searched": 0.7}
    first, second = ({**task, "seed": seed} for seed in (100, 101))
    records = [
        TrialRecord("search", 0, "failed", first, []),
        TrialRecord("search", 1, "complete", second, [0.6], run="b"),
        TrialRecord("search", 2, "complete", first, [0.5], run="a"),
    ]
    (found,) = confirmed_of(latest(records))
    assert (found.number, found.values, found.runs) == (3, {100: 0.5, 101: 0.6}, {100: "a", 101: "b"})
    assert confirmed_of(latest(records[:2])) == [], "a seed is missing"


def test_the_test_split_that_was_opened_before_is_told(tmp_path: Path) -> None:
    of = facts(ours=HIGH, theirs=LOW)
    assert "which nothing else was" in report.render(of, [], "ui", "journal.log")
    for name in ("mine-s004-seed100", "mine-s004-seed101", "mine-s012-seed100", "search-100"):
        storage.write_json(tmp_path / "test" / f"{name}.json", {})
    opened = _opened_before(tmp_path, of.winners)
    assert opened == 2, "the third one is a winner of today"
    told = report.render(dataclasses.replace(of, opened=opened), [], "ui", "journal.log")
    assert "which 2 other configurations were before the study grew" in told
