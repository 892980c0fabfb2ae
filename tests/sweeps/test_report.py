"""What a report says of known numbers: who wins, in which direction, how sure, and with which command again."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from harness.sweeps import plan as planning
from harness.sweeps import report, space
from harness.sweeps.conclusion import confirmed_of, latest
from harness.sweeps.report import Facts, OnTest
from harness.sweeps.trials import Arm, Confirmed, TrialRecord

SEEDS = [100, 101, 102, 103, 104]


def facts(
    *, ours: list[float], theirs: list[float], metric: str = "accuracy", direction: str = "maximize",
    arguments: tuple[str, ...] = (),
) -> Facts:  # fmt: skip
    """Two arms with these test scores over five seeds."""
    goal = f"objective={{metric: validation/{metric}, direction: {direction}}}"
    plan = planning.check(space.load("lora_rank", [goal]), "lora", list(arguments))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    scores: dict[Arm, list[float]] = {"search": ours, "baseline": theirs}
    winners, tested = {}, {}
    for arm, values in scores.items():
        params: dict[str, Any] = {"train.learning_rate": 1e-3} | ({"methods.lora.rank": 4} if arm == "search" else {})
        of_seeds = dict(zip(SEEDS, values, strict=True))
        costs = {"parameters/trainable": 10.0, "memory/peak_gib": 1.0, "time/train_s": 2.0}
        runs = {seed: f"{arm}-{seed}" for seed in SEEDS}
        winners[arm] = Confirmed(arm, 0, params, values[0] + 0.1, of_seeds, runs, dict.fromkeys(SEEDS, costs))
        predicted = np.stack([labels] * 5)
        tested[arm] = OnTest(SEEDS, [{f"test/{metric}": value} for value in values], predicted, labels, 3)
    trials = [TrialRecord(arm, 0, "complete", one.params, [one.searched]) for arm, one in winners.items()]
    return Facts(plan, trials, list(winners.values()), winners, tested, [], [])


LOW, HIGH = [0.50, 0.51, 0.52, 0.50, 0.51], [0.60, 0.62, 0.61, 0.60, 0.62]


@pytest.mark.parametrize(
    ("ours", "theirs", "direction", "better"),
    [
        (HIGH, LOW, "maximize", "lora is better."),
        (LOW, HIGH, "maximize", "full_finetune is better."),
        (LOW, HIGH, "minimize", "lora is better."),
        (HIGH, LOW, "minimize", "full_finetune is better."),
    ],
)
def test_who_is_better_depends_on_the_direction(
    ours: list[float], theirs: list[float], direction: str, better: str
) -> None:
    told = report.verdict(facts(ours=ours, theirs=theirs, direction=direction, metric="nll"))
    assert told.endswith(better)
    assert "paired t, items not resampled" in told


def test_what_noise_explains_is_a_tie_with_the_size_that_would_be_seen() -> None:
    told = report.verdict(facts(ours=[0.5, 0.6, 0.55, 0.58, 0.52], theirs=[0.52, 0.57, 0.56, 0.55, 0.54]))
    assert ": a tie. Differences below 0.0" in told


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

    class Place:
        shown = "journal.log"

    text = report.render(made, ["history.html"], "mlflow ui", Place())
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
