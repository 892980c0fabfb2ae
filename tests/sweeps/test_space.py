"""A search space by itself: what it may say, what it chooses from, and how a mistake in it is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SpecError
from harness.specs import schema
from harness.sweeps import space
from harness.sweeps.distribution import Parameter
from harness.sweeps.space import SearchSpace
from harness.sweeps.trials import Arm

HEAD = "objective: {metric: validation/f1_macro, direction: maximize}\ntrials: 4\n"
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Makes its text the only search space, `mine`."""

    def write_mine(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return "mine"

    monkeypatch.setattr(space, "SPACES", tmp_path)
    return write_mine


def _made(of: dict[str, Any], **more: Any) -> SearchSpace:
    plain = {"objective": {"metric": "validation/f1_macro", "direction": "maximize"}, "trials": 4}
    return SearchSpace.model_validate({"name": "mine", "story": "", "space": of, **plain, **more})


def test_its_keys_and_those_of_a_spec_are_disjoint() -> None:
    own, of_specs = SearchSpace.model_fields.keys(), schema.Spec.model_fields.keys()
    assert own & of_specs == {"name", "story"}
    assert all(space.is_setting(f"{key}=1") for key in own - {"name", "story"})
    assert not any(space.is_setting(f"{key}.x=1") for key in of_specs)
    assert space.is_setting("~baseline")
    assert space.is_setting("++space.train.epochs.choice=[1,2]")


MISTAKES = [
    ("space: {train.epochs: {choise: [1, 2]}}", 3, r"space\.train\.epochs\.choise: unknown key; did you mean `choice`"),
    ("space: {train.epochs: {}}", 3, r"space\.train\.epochs: exactly one of choice, uniform"),
    ("space:\n  train.epochs: {choice: [1], uniform: [1.0, 2.0]}", 4, r"space\.train\.epochs: exactly one of"),
    ("space: {train.epochs: {int_uniform: [5, 5]}}", 3, r"int_uniform is \[low, high\], low below high$"),
    ("space: {train.learning_rate: {log_uniform: [0.0, 1.0]}}", 3, r"low below high, above 0$"),
    ("space: {train.learning_rate: {log_uniform: [0.1, 1.0], step: 0.1}}", 3, r"step does not go with log_uniform$"),
    ("space: {train.epochs: {int_uniform: [1, 5], step: 0.5}}", 3, r"step of int_uniform is a whole number$"),
    ("space: {train.epochs: {choice: [1, 1]}}", 3, r"the choices are distinct"),
    ("space: {train.epochs: {choice: [1, true]}}", 3, r"the choices are distinct \(and 1, 1\.0 and true are the same"),
    ("space: {train.epochs: {choice: []}}", 3, r"choice: .*at least 1 item"),
    ("space: {train.epochs: {uniform: [1.0, 2.0, 3.0]}}", 3, r"uniform: "),
    ("space:\n  a: {choice: [1], when: {b: 1}}\n  b: {choice: [1]}", 4, r"space\.a: `when` names b"),
    ("space:\n  a: {choice: [x]}\n  b: {choice: [1], when: {a: z}}", 5, r"space\.b: `when` asks for a = z, .* x$"),
    ("space:\n  a: {uniform: [0.0, 1.0]}\n  b: {choice: [1], when: {a: 0}}", 5, r"a = 0, .* it has a range$"),
    ("space:\n  a:\n    - {choice: [1]}\n    - {choice: [2]}", 4, r"space\.a: two of its ranges can apply at once"),
    ("space:\n  a:\n    - {choice: [1]}\n    - {choise: [2]}", 6, r"space\.a\.1\.choise: unknown key; .*`choice`"),
    ("space: {a: {choice: [1]}}\nsampler: tpee", 4, r"sampler: no sampler is called so; did you mean 'tpe'"),
    ("space: {a: {choice: [1]}}\npruner: medain", 4, r"pruner: no pruner is called so; did you mean 'median'"),
    ("space: {a: {choice: [1]}}\nsampler: {tpe: {}, gp: {}}", 4, r"sampler: name exactly one"),
    ("space: {a: {choice: [1]}}\nsampler: cmaes", 4, r"sampler: cmaes samples numbers only"),
    ("space: {a: {int_uniform: [1, 2]}}\nsampler: cmaes\nconstraints: {a: 1.0}", 4, r"does not learn from constraints"),
    ("space: {a: {choice: [1, 2]}, b: {uniform: [0.0, 1.0], when: {a: 1}}}\nsampler: gp", 4, r"gp knows no conditions"),
    ("space: {a: {choice: [1]}}\nconfirm: {top: 0, seeds: [1, 2]}", 4, r"confirm\.top: .* greater than or equal to 1"),
    ("space: {a: {choice: [1]}}\nconfirm: {top: 1, seeds: [3, 3]}", 4, r"confirm\.seeds: .*distinct whole numbers"),
    ("space: {a: {choice: [1]}}\nconfirm: {top: 1, seeds: [-1, 3]}", 4, r"confirm\.seeds: .*distinct whole numbers"),
    ("space: {a: {choice: [1]}}\nconfirm: {top: 1, seds: [1, 2]}", 4, r"confirm\.seds: unknown key; .*`seeds`"),
    ("space: {a: {choice: [1]}}\nbaseline: {exp: lora, spce: {}}", 4, r"baseline\.spce: unknown key; .*`space`"),
    ("space: {a: {choice: [1]}}\nbaseline: {exp: lora, space: {b: {chice: [1]}}}", 4, r"space\.b\.chice: .*`choice`"),
    ("space: {a: {choice: [1]}}\ntrails: 4", 4, r"trails: unknown key; did you mean `trials`"),
    ("space: {a: {choice: [1]}}\nworkers: 0", 4, r"workers: Input should be greater than or equal to 1, found 0"),
    ("space: {a: {choice: [1]}}\nstudy: 'a b'", 4, r"study: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES, ids=lambda value: str(value)[:50])
def test_a_mistake_is_told_with_its_line(write: Write, text: str, line: int, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        space.load(write(f"{HEAD}{text}\n"))
    assert error.value.exit_code == 2
    assert str(error.value).split(": ")[0] == f"mine.yaml:{line}"


def test_all_mistakes_are_told_at_once_and_each_once(write: Write) -> None:
    text = """objective: {metric: validation/f1_macro, direction: maximise}
space:
  train.epochs: {choise: [1, 2, 3]}
  train.learning_rate: {log_uniform: [0.0, 1.0]}
"""
    with pytest.raises(SpecError) as error:
        space.load(write(text), ["workers=0", "sampler=[1]"])
    told = str(error.value).splitlines()
    places = ["mine.yaml:1", "mine.yaml:3", "mine.yaml:4", "workers=0", "sampler=[1]"]
    assert sorted(line.split(": ")[0] for line in told) == sorted(places)


def test_settings_that_do_not_go_together_are_told_at_once(write: Write) -> None:
    text = """objective: [{metric: a, direction: maximize}, {metric: b, direction: minimize}]
space:
  a: {choice: [1]}
  b: {choice: [1], when: {c: 1}}
baseline:
  exp: lora
  space:
    c: {choice: [1], when: {a: 1}}
sampler: cmaes
pruner: median
"""
    with pytest.raises(SpecError) as error:
        space.load(write(text))
    told = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in told] == [f"mine.yaml:{n}" for n in (10, 9, 9, 9, 4, 8)] + ["mine.yaml"]
    assert told[-1] == "mine.yaml: trials: say how many, or for how many minutes"
    assert "baseline.space.c: `when` names a" in told[-2]


def test_an_override_of_the_study_is_told_as_typed(write: Write) -> None:
    name = write(f"{HEAD}space: {{train.epochs: {{choice: [1, 2]}}}}\n")
    with pytest.raises(SpecError, match=r"^trials=many: Input should be a valid integer, found 'many'$"):
        space.load(name, ["trials=many"])
    with pytest.raises(SpecError, match=r"^space\.train\.epochs\.choise=\[1\]: .*did you mean `choice`"):
        space.load(name, ["space.train.epochs.choise=[1]"])
    made = space.load(name, ["trials=9", "space.train.epochs.choice=[3,4]", "sampler=random", "~objective.direction",
                             "objective.direction=minimize"])  # fmt: skip
    assert (made.trials, made.sampler, made.objective[0].direction) == (9, {"random": {}}, "minimize")
    assert made.space["train.epochs"][0].choice == [3, 4]
    nested = space.load(name, ["space.methods.awp.stop={choice: [0.5, 1.0]}"])
    assert nested.space["methods.awp.stop"][0].choice == [0.5, 1.0], "stop is near step, and no misspelt range"
    assert made.place(["space", "train.epochs"]) == "space.train.epochs.choice=[3,4]"
    assert made.place(["objective"]) == "objective.direction=minimize"
    assert made.place(["sampler"]) == "sampler=random"


def test_an_unknown_space_gives_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"^sweep=lora_rnk: no search space is called 'lora_rnk'\n  fix: did you mean"):
        space.load("lora_rnk")


def test_a_choice_follows_its_conditions() -> None:
    made = _made(
        {
            "rule": {"choice": ["box", "sam"]},
            "size": [
                {"uniform": [0.0, 1.0], "when": {"rule": "box"}},
                {"log_uniform": [1.0, 2.0], "when": {"rule": "sam"}},
            ],
            "deep": {"choice": [7], "when": {"rule": ["sam"]}},
        }
    )
    names: list[str] = []

    def suggest(parameter: Parameter) -> Any:
        names.append(parameter.name)
        return "sam" if parameter.key == "rule" else parameter.distribution.extremes[-1]

    assert made.choose("search", suggest) == {"rule": "sam", "size": 2.0, "deep": 7}
    assert names == ["rule", 'size[rule="sam"]', "deep"]
    assert made.choose("search", lambda one: one.distribution.extremes[0]) == {"rule": "box", "size": 0.0}


@pytest.mark.parametrize("arm", ["search", "baseline"])
def test_a_grid_is_every_configuration_once(arm: Arm) -> None:
    conditional = {
        "a": {"choice": ["x", "y", [1, 2]]},
        "b": {"int_uniform": [1, 5], "step": 2, "when": {"a": ["x", "y"]}},
        "c": [{"uniform": [0.0, 0.5], "step": 0.25, "when": {"b": 3}}, {"choice": [True, None], "when": {"b": [1, 5]}}],
    }
    plain = {"a": {"choice": [1, 2]}, "b": {"int_log_uniform": [1, 3]}}
    first, second = (conditional, plain) if arm == "search" else (plain, conditional)
    made = _made(first, baseline={"exp": "lora", "space": second}, sampler="grid")
    values: dict[str, list[Any]] = {"a": ["x", "y", [1, 2]], "b": [1, 3, 5, None], "c": [0.0, 0.25, 0.5, True, None]}
    found: list[dict[str, Any]] = []
    for a, b, c in itertools.product(*values.values()):
        known: dict[str, Any] = {"a": a}
        if a in ("x", "y"):
            if b is None:
                continue
            known["b"] = b
            if (b == 3) != (type(c) is float):
                continue
            known["c"] = c
        if known not in found:
            found.append(known)
    grid = [{name.split("[")[0]: value for name, value in cell.items()} for cell in made.grid(arm)]
    assert len(found) == 1 + 2 * (3 + 2 * 2)
    assert sorted(map(repr, grid)) == sorted(map(repr, found))


def test_a_range_without_a_step_is_no_grid() -> None:
    with pytest.raises(SpecError, match=r"^mine\.yaml: space\.a: a grid needs values that can be counted\n  fix: give"):
        _made({"a": {"uniform": [0.0, 1.0]}}, sampler="grid").grid("search")


def test_a_grid_needs_no_number_of_trials() -> None:
    assert _made({"a": {"choice": [1, 2]}}, sampler="grid", trials=None).trials is None
    assert _made({"a": {"choice": [1, 2]}}, trials=None, minutes=3.0).minutes == 3
    with pytest.raises(ValueError, match="trials: say how many"):
        _made({"a": {"choice": [1, 2]}}, trials=None)


@pytest.mark.parametrize("word", ["pruner={percentile: {percentile: 30.0}}", "pruner=percentile"])
def test_a_pruner_of_the_command_line_takes_the_place_of_the_one_in_the_file(word: str, write: Write) -> None:
    plain = f"{HEAD}space: {{train.epochs: {{choice: [1, 2]}}}}\n"
    for own in ("pruner: {median: {n_warmup_steps: 2}}", "pruner: none"):
        name = write(f"{plain}{own}\n")
        assert list(space.load(name, [word]).pruner) == ["percentile"]
        assert space.load(name, ["pruner.median.n_warmup_steps=3"]).pruner == {"median": {"n_warmup_steps": 3}}


def test_a_key_need_not_be_searched() -> None:
    found = space.load("lora_rank", ["~space.train.learning_rate", "~baseline.space.train.learning_rate"])
    assert (list(found.space), found.baseline and found.baseline.space) == (["methods.lora.rank"], {})
    for one in ("~space.train.learning_rat", "~baseline.space.train.learning_rat"):
        with pytest.raises(
            SpecError, match=r"train\.learning_rat is not searched\n  fix: did you mean 'train.learning_rate'"
        ):
            space.load("lora_rank", [one])
    with pytest.raises(SpecError, match="is not searched"):
        space.load("lora_rank", ["~baseline", "~baseline.space.train.learning_rate"])
