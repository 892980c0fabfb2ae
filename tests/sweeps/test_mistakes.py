"""A search space against its experiments: every mistake is told once, at its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.launching import main
from harness.errors import SpecError
from harness.specs import spec
from harness.sweeps.plan import Plan, render

Make = Callable[..., Plan]


MISTAKES = [
    ("  train.learing_rate: {log_uniform: [1.0e-5, 1.0e-3]}", "lora",
     ["mine.yaml:4: space.train.learing_rate: unknown key; did you mean `learning_rate`?"]),
    ("  methods.lora.rank: {choice: [1, 0, 8]}", "lora",
     ["mine.yaml:4: space.methods.lora.rank: Input should be greater than or equal to 1, found 0"]),
    ("  methods.lora.rank:\n    choice: [-1, 0]", "lora",
     ["mine.yaml:4: space.methods.lora.rank: Input should be greater than or equal to 1, found -1",
      "mine.yaml:4: space.methods.lora.rank: Input should be greater than or equal to 1, found 0"]),
    ("  methods.lora.dropout: {uniform: [0.0, 1.5]}", "lora",
     ["mine.yaml:4: space.methods.lora.dropout: Input should be less than 1, found 1.5"]),
    ("  precision: {choice: [bf16]}\n  seeds: {choice: [[1]]}\n  tracking.uri: {choice: [a]}\n  output: {choice: [a]}",
     "lora", [f"mine.yaml:{n}: space.{key}: all trials of a study share it; make one study for each value"
              for n, key in ((4, "precision"), (5, "seeds"), (6, "tracking.uri"), (7, "output"))]),
    ("  train.max_steps: {choice: [5]}\n  train.warmup_steps: {choice: [3, 9]}", "lora",
     ["mine.yaml:5: space.train.warmup_steps: the warm-up lasts longer than train.max_steps, the rate is "
      "never reached"]),
    ("  train.warmup_steps: {choice: [9]}\n  train.max_steps: {choice: [50, 5]}", "lora",
     ["mine.yaml:4: space.train.warmup_steps: the warm-up lasts longer than train.max_steps, "
      "the rate is never reached"]),
    ("  methods.lra.rank: {choice: [1, 2]}", "lora",
     ["mine.yaml:4: space.methods.lra: no method is called so; did you mean 'lora'?"]),
    ("  exp: {choice: [lora, lroa]}", None,
     ["mine.yaml:4: space.exp: no experiment is called 'lroa'; did you mean 'lora'?"]),
    ("  exp: {choice: [lora, full_finetune, mixout]}\n  methods.lora.rank: {choice: [1, 2]}", None,
     ["mine.yaml:5: space.methods.lora.rank: full_finetune, mixout without lora: the trial would add it; "
      "give it a `when: {exp: ...}`"]),
    ("  exp: {choice: [lora, awp]}\n  methods.awp.rule: {choice: [sam], when: {exp: [lora, awp]}}\n"
     "  methods.awp.rho: {uniform: [0.1, 0.2], when: {methods.awp.rule: sam}}", None,
     [f"mine.yaml:{n}: space.methods.awp.{key}: lora without awp: the trial would add it; give it a `when: "
      "{exp: ...}`"
      for n, key in ((5, "rule"), (6, "rho"))]),
    ("  methods.lora.rank: {choice: [1, 2]}", "mixout",
     ["mine.yaml:4: space.methods.lora.rank: mixout without lora: the trial would add it; name an experiment that has "
      "it"]),
    ("  train.epochs:\n    - {choice: [1], when: {train.schedule: linear}}", "lora",
     ["mine.yaml:4: space.train.epochs: `when` names train.schedule, which is not searched above it"]),
    ("  methods.lora.rank:\n    - {choice: [1], when: {}}\nbaseline: {exp: full_finetun}", "lora",
     ["mine.yaml:6: baseline.exp: no experiment is called 'full_finetun'; did you mean 'full_finetune'?"]),
    ("  train.epochs: {choice: [1]}\nbaseline: {exp: lora, space: {methods.lora.rank: {choice: [0]}}}", "lora",
     ["mine.yaml:5: baseline.space.methods.lora.rank: Input should be greater than or equal to 1, found 0"]),
    ("  train.epochs: {choice: [1]}\nconstraints: {latency/p50ms: 3.0}\nconfirm: {top: 1, seeds: [42, 7]}", "lora",
     ["mine.yaml:5: constraints: latency/p50ms is never recorded; did you mean 'latency/p50_ms'?",
      "mine.yaml:6: confirm.seeds: 42 is not fresh, the search uses it"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "exp", "told"), MISTAKES, ids=[text.split(":")[0].strip() for text, *_ in MISTAKES])
def test_a_mistake_is_told_once_at_its_place(make: Make, text: str, exp: str | None, told: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        make(text, exp)
    assert str(error.value).splitlines() == told
    assert error.value.exit_code == 2


def test_all_mistakes_are_told_at_once(make: Make) -> None:
    text = """  methods.lora.rank: {choice: [0, 8]}
  train.learing_rate: {log_uniform: [1.0e-5, 1.0e-3]}
  seeds: {choice: [[1]]}
baseline: {exp: full_finetune, space: {train.epochs: {int_uniform: [0, 3]}}}
"""
    overrides = ("train.batch_sze=3", "methods.lora.rank=4", "precision=fp8")
    with pytest.raises(SpecError) as error:
        make(text, overrides=overrides)
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        "methods.lora.rank=4", "train.batch_sze=3", "precision=fp8",
        "mine.yaml:4", "mine.yaml:5", "mine.yaml:6", "mine.yaml:7",
    ]  # fmt: skip


def test_a_mistake_in_one_of_several_ranges_has_its_own_line(make: Make) -> None:
    text = """  exp: {choice: [lora, full_finetune]}
  train.learning_rate:
    - {log_uniform: [1.0e-5, 1.0e-3], when: {exp: lora}}
    - {uniform: [-1.0, 1.0e-3], when: {exp: full_finetune}}
"""
    with pytest.raises(SpecError) as error:
        make(text, None)
    assert str(error.value) == "mine.yaml:7: space.train.learning_rate: Input should be greater than 0, found -1.0"


@pytest.mark.parametrize(
    ("exp", "own", "overrides", "message"),
    [
        ("lora", [], ["train.epochs=3"],
         r"^train\.epochs=3: train\.epochs is searched: leave it out, or search it no more: '~space\.train\.epochs'$"),
        ("lora", [], ["~train.epochs"], r"^~train\.epochs: train\.epochs is searched"),
        ("lora", [], ["methods.lora={}"], r"^methods\.lora=\{\}: methods\.lora\.rank is searched"),
        ("lora", ["objective.metric=validation/f1_marco"], [], r"^objective\.metric=.*: .*'validation/f1_macro'"),
        ("lora", ["objective.metric=memory/peak_gib"], [], r"^objective\.metric=.*: the first one is a score"),
        ("lora", ["space.methods.lora.rank.choice=[0]"], [], r"^space\.methods\.lora\.rank\.choice=\[0\]: .*found 0$"),
        ("lora", ["workers=2", "constraints={latency/p50_ms: 9.0}"], [], r"^workers=2: latency cannot be"),
        ("lora", [], ["foo"], r"^'foo' is not an override"),
        (None, [], [], r"^sweep=mine: which experiment\?\n  fix: exp=<name>; known: awp, "),
        ("lroa", [], [], r"^exp=lroa: no experiment is called 'lroa'\n  fix: did you mean 'lora'"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_command_line_is_told_as_typed(
    make: Make, exp: str | None, own: list[str], overrides: list[str], message: str
) -> None:
    text = "  train.epochs: {choice: [1, 2]}\n  methods.lora.rank: {choice: [1]}\n"
    with pytest.raises(SpecError, match=message):
        make(text, exp, tuple(own), tuple(overrides))


@pytest.mark.parametrize(("arm", "line"), [("space", 4), ("baseline.space", 5)])
def test_a_grid_without_an_end_is_told_with_its_line(make: Make, arm: str, line: int) -> None:
    endless, counted = "{log_uniform: [1.0e-5, 1.0e-3]}", "{choice: [1.0e-4]}"
    ours, theirs = (endless, counted) if arm == "space" else (counted, endless)
    baseline = f"baseline: {{exp: full_finetune, space: {{train.learning_rate: {theirs}}}}}"
    with pytest.raises(SpecError) as error:
        make(f"  train.learning_rate: {ours}\n{baseline}\nsampler: grid\n")
    assert str(error.value).startswith(f"mine.yaml:{line}: {arm}.train.learning_rate: a grid needs values")


def test_experiments_of_one_study_have_one_precision(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _experiments(tmp_path, other="precision: bf16")
    monkeypatch.setattr(spec, "EXPERIMENTS", files)
    with pytest.raises(SpecError, match="other: its precision are not those of lora: nothing could be compared"):
        make("  train.learning_rate: {choice: [1.0e-4]}\nbaseline: {exp: other}\n")


def test_budgets_that_differ_are_told_unless_they_are_searched(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "EXPERIMENTS", _experiments(tmp_path, other="train: {epochs: 3}"))
    made = make("  train.learning_rate: {choice: [1.0e-4]}\nbaseline: {exp: other}\n")
    assert made.budgets() == ["train.epochs: 5 (lora), 3 (other)"]
    assert "NOTE not the same for all experiments: train.epochs: 5 (lora), 3 (other)" in render(made)
    assert make("  train.epochs: {choice: [5]}\nbaseline: {exp: other}\n").budgets() == []


def _experiments(folder: Path, *, other: str) -> Path:
    """The shipped experiments, and another one that is full fine-tuning with something else."""
    files = folder / "experiments"
    shutil.copytree(spec.EXPERIMENTS, files)
    (files / "other.yaml").write_text(f"# Another one.\ndefaults: [base, _self_]\n{other}\n")
    return files


@pytest.mark.parametrize("name", ["median", "{percentile: {percentile: 50.0}}", "wilcoxon"])
def test_the_other_pruners_go_with_several_seeds(make: Make, name: str) -> None:
    assert make(f"  train.epochs: {{choice: [1]}}\npruner: {name}\n", overrides=("seeds=[0,1,2,3,4]",))


def test_wilcoxon_needs_seeds_enough_for_its_threshold(make: Make) -> None:
    text = "  train.epochs: {choice: [1]}\npruner: {wilcoxon: {p_threshold: 0.3}}\n"
    assert make(text, overrides=("seeds=[0,1,2]",))
    with pytest.raises(
        SpecError, match=r"^mine\.yaml:5: pruner: wilcoxon looks over seeds, and 2 are too few for p be"
    ):
        make(text, overrides=("seeds=[0,1]",))


def test_an_experiment_is_given_or_searched_but_not_both(make: Make) -> None:
    with pytest.raises(SpecError, match=r"^exp=lora: the search chooses the experiment\n  fix: leave it out"):
        make("  exp: {choice: [lora, mixout]}\n", "lora")


def test_methods_that_all_experiments_would_have_are_refused(make: Make) -> None:
    text = "  train.epochs: {choice: [1]}\n"
    assert list(make(text, overrides=("methods={awp: {}}",)).spec("search", {}).methods) == ["awp"]
    with pytest.raises(SpecError, match=r"^methods=\{\}: full_finetune and lora would be the same: give methods\."):
        make(f"{text}baseline: {{exp: full_finetune}}\n", overrides=("methods={}",))


def test_the_command_line_says_how_many_mistakes_there_are(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("  train.epochs: {choice: [1, 2]}\n")
    assert main(["sweep=mine", "exp=lora", "train.epochs=3", "precision=fp8", "--plan"]) == 2
    assert capsys.readouterr().err.startswith("2 errors:\ntrain.epochs=3: train.epochs is searched")
    assert main(["sweep=mine", "exp=lora", "--plan"]) == 0
    assert "train.epochs: choice [1, 2]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("smpler=tpe", "unknown key; did you mean `sampler`?"),
        ("confim.seeds=[1,2]", "confim: unknown key; did you mean `confirm`?"),
        ("confirm.sedes=[1]", "unknown key; did you mean `seeds`?"),
        ("~basline", "basline: unknown key; did you mean `baseline`?"),
        ("trian.epochs=2", "trian: unknown key; did you mean `train`?"),
        ("train.epoch=2", "unknown key; did you mean `epochs`?"),
    ],
)
def test_a_key_of_a_study_may_be_meant_where_one_is_asked_for(
    make: Make, word: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make("  train.weight_decay: {choice: [0.1]}\nconfirm: {top: 1, seeds: [1, 2]}\n")
    assert main(["exp=lora", "sweep=mine", word, "--plan"]) == 2
    assert capsys.readouterr().err == f"error: {word}: {told}\n"


def test_one_value_where_values_are_searched_is_told_with_other_mistakes(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("  train.epochs: {choice: [1, 2]}\n")
    assert main(["exp=lora", "sweep=mine", "space.train.learing_rate=1e-3", "trails=3", "--plan"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "2 errors:"
    assert second.startswith("space.train.learing_rate=1e-3: values are given as {log_uniform: ")
    assert second.endswith("one value for all trials stands without `space.`, found 0.001")
    assert third == "trails=3: unknown key; did you mean `trials`?"


def test_a_key_like_no_other_is_answered_with_those_of_both(make: Make) -> None:
    with pytest.raises(SpecError) as error:
        make("  train.weight_decay: {choice: [0.1]}\n", overrides=("zzz=1",))
    known = str(error.value).removeprefix("zzz=1: unknown key; known: ").split(", ")
    assert known == sorted(known)
    assert {"sampler", "trials", "train", "methods"} <= set(known)
    assert not {"name", "story"} & set(known)


def test_without_a_study_its_keys_are_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp=lora", "smpler=tpe", "--plan"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: smpler=tpe: unknown key; ")
    assert "sampler" not in told.removeprefix("error: smpler=tpe: ")


@pytest.mark.parametrize("word", ["evaluation.final=test", "evaluation.baselines=true", "compression.int8=true"])
def test_what_a_trial_has_no_use_for_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp=lora", "sweep=lora_rank", word, "--plan"]) == 2
    assert f"{word}: a trial has no use for it" in capsys.readouterr().err


def test_a_study_does_not_pretend_to_register_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp=lora", "sweep=lora_rank", "tracking.register_as=a", "--plan"]) == 2
    assert "tracking.register_as: a trial leaves no model" in capsys.readouterr().err
