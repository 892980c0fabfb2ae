"""What a study would do: the shipped spaces fit their experiments, and a study stays the one that it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.cli.launching import main
from harness.errors import SpecError
from harness.specs import spec
from harness.sweeps import space
from harness.sweeps.mistakes import check
from harness.sweeps.plan import Plan, definition, differences, render, trial_spec

EXPERIMENT = {"lora_rank": "lora", "mixout_p": "mixout", "awp_schedule": "awp", "peft_methods": None, "pareto": None,
              "adapter_start": "scratch_adapters", "masking": "pretrain_mlm", "ner_rank": "ner_lora"}  # fmt: skip
Make = Callable[..., Plan]


def test_every_space_ships_with_its_experiment() -> None:
    assert sorted(EXPERIMENT) == space.names()


@pytest.mark.parametrize("name", sorted(EXPERIMENT))
def test_a_shipped_space_fits_its_experiment(name: str) -> None:
    plan = check(space.load(name), EXPERIMENT[name], [])
    exp = f"exp={plan.exp} " if plan.exp else ""
    assert f"launch.py {exp}sweep={name}" in plan.space.story
    assert plan.space.story.splitlines()[0].endswith("?")
    assert f"study {plan.name}\n{plan.space.story}\n" in render(plan)


@pytest.mark.parametrize("name", sorted(EXPERIMENT))
def test_the_learning_rate_of_a_spec_lies_well_inside_its_range(name: str) -> None:
    loaded = space.load(name)
    plan = Plan(loaded, EXPERIMENT[name], [])
    for arm in loaded.arms:
        for exp in plan.experiments(arm):
            given = {"exp": exp} if "exp" in loaded.entries(arm) else {}
            rates = [one for one in loaded.parameters(arm) if one.key == "train.learning_rate"]
            (entry,) = [one.distribution for one in rates if one.applies(given)]
            assert entry.log_uniform is not None
            low, high = entry.log_uniform
            assert 2 * low <= spec.load(exp).train.learning_rate <= high / 2


def test_settings_of_a_method_hold_where_it_is_used(make: Make) -> None:
    """The baseline of a study of LoRA does not become LoRA by an override of LoRA's dropout."""
    text = "  train.epochs: {choice: [1]}\nbaseline: {exp: full_finetune}\n"
    assert make("  methods.lora.rank: {choice: [1]}\n", "mixout", overrides=("methods.lora.alpha=2",)).exp == "mixout"
    plan = make(text, overrides=("methods.lora.dropout=0.3", "methods.mixout.p=0.1", "train.batch_size=8"))
    assert list(plan.spec("search", {"train.epochs": 1}).methods) == ["lora", "mixout"]
    baseline = plan.spec("baseline", {})
    assert (baseline.methods, baseline.train.batch_size) == ({}, 8)
    chosen = make("  exp: {choice: [lora, full_finetune]}\n", None, overrides=("methods.lora.dropout=0.3",))
    assert chosen.spec("search", {"exp": "lora"}).flat()["methods.lora.dropout"] == 0.3
    assert chosen.spec("search", {"exp": "full_finetune"}).methods == {}
    with pytest.raises(SpecError, match=r"^methods\.awp\.rho=1: no experiment of this search has awp: leave it out$"):
        make("  exp: {choice: [lora, full_finetune]}\n", None, overrides=("methods.awp.rho=1",))


def test_it_says_by_what_a_trial_keeps_its_best_checkpoint(make: Make) -> None:
    """As a trial does it: by the first objective, unless the command line says something of early stopping."""
    text, own = "  train.epochs: {choice: [1, 2]}\n", ("objective.metric=validation/accuracy",)
    for overrides, told in [
        ((), ", and stops early, by validation/accuracy"),
        (("early_stopping.patience=null",), " as early_stopping says"),
    ]:
        plan = make(text, own=own, overrides=overrides)
        assert f"each trial keeps its best checkpoint{told}" in render(plan).splitlines()
        by_accuracy = trial_spec(plan, "search", {}, []).early_stopping.metric == "validation/accuracy"
        assert by_accuracy == plan.keeps_by_objective == (not overrides)


def test_it_counts_the_trainings_of_all_seeds_and_of_the_confirmation(make: Make) -> None:
    text = "  train.epochs: {choice: [1, 2]}\nconfirm: {top: 2, seeds: [7, 8, 9]}\n"
    assert render(make(text, overrides=("seeds=[1,2]",))).endswith("\nin all at most 14 trainings")  # 4 x 2 + 2 x 3


def test_it_counts_one_and_several(make: Make) -> None:
    text = "  train.epochs: {choice: [1, 2]}\nbaseline: {exp: full_finetune}\n"
    one, two = render(make(text)), render(make(text, own=("workers=2",)))
    assert "\nsearch: 4 trials of lora\n" in one
    assert "\nbaseline: 1 trial of full_finetune\n" in one
    assert ", 1 worker\n" in one
    assert one.endswith("\nin all at most 5 trainings")
    assert ", 2 workers\n" in two


def test_a_changed_study_is_told_and_its_size_may_change(make: Make) -> None:
    text = "  train.epochs: {choice: [1, 2]}\nbaseline: {exp: full_finetune}\n"
    before = definition(make(text))
    assert definition(make(text)) == before
    assert definition(make(text, own=("trials=9", "workers=2", "study=other", "minutes=3.0"))) == before
    assert definition(make(text, overrides=("output=/elsewhere", "tracking.experiment=a"))) == before
    space_changed = definition(make(text, own=("space.train.epochs.choice=[1,3]", "sampler=random")))
    assert [line.split(": ")[0] for line in differences(before, space_changed)] == [
        "definition.sampler.random", "definition.sampler.tpe", "definition.space.train.epochs"
    ]  # fmt: skip
    spec_changed = definition(make(text, overrides=("train.batch_size=8",)))
    assert differences(before, spec_changed) == [
        "spec.baseline.full_finetune.train.batch_size: 32 -> 8", "spec.search.lora.train.batch_size: 32 -> 8"
    ]  # fmt: skip
    removed = definition(make("  train.epochs: {choice: [1, 2]}\n"))
    assert 'definition.baseline.exp: "full_finetune" -> absent' in differences(before, removed)


def test_a_study_that_chooses_the_experiment_holds_the_settings_of_each(make: Make) -> None:
    text = "  exp: {choice: [lora, mixout]}\n"
    before, after = definition(make(text, None)), definition(make(text, None, overrides=("methods.mixout.p=0.3",)))
    assert differences(before, after) == ["spec.search.mixout.methods.mixout.p: 0.5 -> 0.3"]


@pytest.mark.parametrize("name", sorted(EXPERIMENT))
def test_what_makes_a_study_small_fits_every_space(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"exp={EXPERIMENT[name]}"] if EXPERIMENT[name] else []
    assert main([f"sweep={name}", *words, "--smoke", "--plan"]) == 0
    assert "search: 2 trials" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", ["sampler={tpe: {gama: 3}}", "pruner={wilcoxon: {p_threshold: often}}", "storage='mysql://me:secret@host'"]
)
def test_settings_of_the_engine_are_looked_at_by_plan(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp=lora", "sweep=lora_rank", "space.train.learning_rate={choice: [1e-3]}", wrong, "--plan"]) == 2
    told = capsys.readouterr()
    key = wrong.partition("=")[0]
    assert told.err.startswith(("error: mine.yaml", f"error: {key}")) and told.out == ""
    assert "secret" not in told.err
