"""What follows from known numbers: who wins, in which direction, and how sure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from harness.sweeps import space
from harness.sweeps.facts import Facts, OnTest, doubt, verdict
from harness.sweeps.mistakes import check
from harness.sweeps.report import as_metrics, as_values
from harness.sweeps.trials import Arm, Confirmed, TrialRecord

SEEDS = [100, 101, 102, 103, 104]


def facts(
    *, ours: list[float], theirs: list[float], metric: str = "accuracy", direction: str = "maximize",
    arguments: tuple[str, ...] = (), of: tuple[str, str] = ("lora_rank", "lora"),
) -> Facts:  # fmt: skip
    """Two arms with these test scores over five seeds."""
    goal = f"objective={{metric: validation/{metric}, direction: {direction}}}"
    name, exp = of
    plan = check(space.load(name, [goal]), exp, list(arguments))
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
        (LOW, HIGH, "maximize", "lora is worse."),
        (LOW, HIGH, "minimize", "lora is better."),
        (HIGH, LOW, "minimize", "lora is worse."),
    ],
)
def test_who_is_better_depends_on_the_direction(
    ours: list[float], theirs: list[float], direction: str, better: str
) -> None:
    found = facts(ours=ours, theirs=theirs, direction=direction, metric="nll")
    assert verdict(found).endswith(better)
    assert "paired t, items not resampled" in doubt(found)


def test_an_experiment_that_is_its_own_baseline_has_two_names() -> None:
    """Only the space differs: masking against the masking that the experiment has."""
    found = facts(ours=LOW, theirs=HIGH, metric="perplexity", direction="minimize", of=("masking", "pretrain_mlm"))
    assert [found.name(arm) for arm in ("search", "baseline")] == ["pretrain_mlm (search)", "pretrain_mlm"]
    assert verdict(found).startswith("pretrain_mlm (search) - pretrain_mlm: -0.1")
    assert found.plan.size("search") == "16 trials of pretrain_mlm (search)"
    assert found.plan.size("baseline") == "16 trials of pretrain_mlm"


def test_what_noise_explains_is_a_tie_with_the_size_that_would_be_seen() -> None:
    told = verdict(facts(ours=[0.5, 0.6, 0.55, 0.58, 0.52], theirs=[0.52, 0.57, 0.56, 0.55, 0.54]))
    assert ": a tie. Differences below 0.0" in told


def test_the_same_difference_on_every_seed_is_no_evidence() -> None:
    """0.125 is one of eight test items: no spread does not mean no doubt."""
    told = verdict(facts(ours=[0.625, 0.75, 0.5, 0.625, 0.75], theirs=[0.5, 0.625, 0.375, 0.5, 0.625]))
    assert told.endswith(
        "cannot be judged. Every seed differs by the same amount, which few seeds on few test items can do by chance."
    )
    same = facts(ours=LOW, theirs=LOW)
    assert "interval" not in doubt(same)
    assert "cannot be judged" in verdict(same) and as_values(same)["difference"]["holm"] is None
    assert "test/difference_low" not in as_metrics(same)


def test_programs_can_read_what_could_not_be_computed() -> None:
    """Of accuracy there is no nested interval."""
    told = json.loads(json.dumps(as_values(facts(ours=HIGH, theirs=LOW)), allow_nan=False))
    assert told["difference"]["nested"] == [None, None]
    assert told["difference"]["verdict"] == "better"
