"""Every shipped spec composes, validates and builds; every mistake is told with its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry
from harness.errors import SpecError
from harness.specs import spec, yaml_source
from harness.storage import PROJECT


@pytest.mark.parametrize("name", spec.names())
def test_a_spec_composes_validates_and_builds(name: str) -> None:
    loaded = spec.load(name)
    for section, kind in ((loaded.task, "task"), (loaded.methods, "method"), (loaded.metrics, "metric")):
        for plug_in, settings in section.items():
            built = registry.build(kind, plug_in, settings)
            assert built.model_dump() == settings.model_dump()


@pytest.mark.parametrize("name", spec.names())
def test_a_spec_tells_its_story_and_only_what_differs(name: str) -> None:
    story = spec.story(name)
    assert story.partition("\n")[0].endswith("."), "what `harness list` shows is a whole sentence"
    measured = any(word in story for word in ("±", "one seed", "not measured"))
    assert measured, "the score it reached, with its spread over seeds where there are some"
    own = yaml_source.read(spec.EXPERIMENTS / f"{name}.yaml").lines
    defaults = spec.defaults()
    changed = {key for key, value in spec.load(name).flat().items() if defaults.get(key, object()) != value}
    leaves = {key for key in own if not any(other.startswith(f"{key}.") for other in own)} - {"defaults"}
    assert leaves <= {*changed, *(key.rsplit(".", 1)[0] for key in changed)}


def test_overrides_replace_add_and_remove() -> None:
    loaded = spec.load(
        "lora_adapter", ["train.learning_rate=1e-3", "methods.lora.rank=4", "~methods.bottleneck_adapter"]
    )
    assert loaded.train.learning_rate == 1e-3
    assert list(loaded.methods) == ["lora"]
    assert loaded.flat()["methods.lora.rank"] == 4
    added = spec.load("full_finetune", ["methods.lora.rank=2"])
    assert added.flat()["methods.lora.alpha"] == 16.0


def test_the_order_of_methods_is_that_of_the_spec() -> None:
    assert list(spec.load("lora_adapter").methods) == ["lora", "bottleneck_adapter"]


def test_a_map_of_plugins_replaces_the_one_that_is_there() -> None:
    assert spec.load("lora", ["methods={}"]).methods == {}
    assert list(spec.load("lora", ["methods={awp: {}}"]).methods) == ["awp"]
    assert list(spec.load("lora", ["methods={mixout: {}}", "methods.awp.every=2"]).methods) == ["mixout", "awp"]
    assert list(spec.load("lora", ["metrics={f1: {}}"]).metrics) == ["f1"]
    again = spec.load("ia3", ["methods.peft={type: LN_TUNING, config: {target_modules: [LayerNorm]}}"])
    assert again.flat()["methods.peft.config.target_modules"] == ["LayerNorm"]
    assert not [key for key in again.flat() if "feedforward" in key]
    assert list(spec.load("lora_adapter", ["methods.lora={rank: 2}"]).methods) == ["lora", "bottleneck_adapter"]
    assert list(spec.load("lora_adapter", ["~methods.lora", "methods.lora={}"]).methods)[-1] == "lora"


def test_a_map_of_settings_changes_those_it_names() -> None:
    assert spec.load("lora", ["train={epochs: 3}"]) == spec.load("lora", ["train.epochs=3"])


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped ones."""
    files = Path(shutil.copytree(spec.EXPERIMENTS, tmp_path / "experiments"))
    monkeypatch.setattr(spec, "EXPERIMENTS", files)
    return files


def test_the_task_of_a_file_takes_the_place_of_the_one_in_base_and_brings_its_metrics(experiments: Path) -> None:
    base = (experiments / "base.yaml").read_text()
    (experiments / "base.yaml").write_text(base.replace("sequence_classification: {max_length: 128}", "other: {}"))
    own = "task: {sequence_classification: {max_length: 64}}\nmetrics: {calibration: {bins: 9}, f1: {}}\n"
    (experiments / "mine.yaml").write_text(f"defaults: [base, _self_]\n{own}")
    mine = spec.load("mine")
    assert list(mine.task) == ["sequence_classification"]
    assert mine.flat()["metrics.calibration.bins"] == 9
    assert set(mine.metrics) == {"calibration", "f1"}
    (experiments / "more.yaml").write_text("defaults: [mine, _self_]\ntrain: {epochs: 7}\nmetrics: {accuracy: {}}\n")
    more = spec.load("more", ["data.limit=40"])
    assert (list(more.task), more.train.epochs) == (["sequence_classification"], 7)
    assert more.flat()["task.sequence_classification.max_length"] == 64
    assert set(more.metrics) == {"calibration", "f1", "accuracy"}
    (experiments / "again.yaml").write_text(
        "defaults: [more, _self_]\ntask: {sequence_classification: {max_length: 9}}\n"
    )
    again = spec.load("again")
    assert again.flat()["task.sequence_classification.max_length"] == 9
    assert set(again.metrics) == {"calibration", "f1", "accuracy"}, "the same task keeps them"


def test_a_file_builds_on_one_that_is_there_and_not_on_itself(experiments: Path) -> None:
    (experiments / "one.yaml").write_text("defaults: [fulll_finetune, _self_]\n")
    with pytest.raises(SpecError, match=r"^one\.yaml: no experiment is called 'fulll_finetune'\n.*'full_finetune'"):
        spec.load("one")
    (experiments / "one.yaml").write_text("defaults: [two, _self_]\n")
    (experiments / "two.yaml").write_text("defaults: [one, _self_]\n")
    with pytest.raises(SpecError, match=r"^two\.yaml: 'one' builds on itself"):
        spec.load("one")
    (experiments / "two.yaml").write_text("defaults: [lora, _self_]\ntrain: {learning_rat: 1}\n")
    with pytest.raises(SpecError, match=r"^two\.yaml:2: train\.learning_rat: unknown key"):
        spec.load("one")


def test_metrics_of_another_task_are_refused_with_those_that_fit() -> None:
    for name, overrides in (("ner", ["metrics.f1={}"]), ("lora", ["task={token_classification: {}}"])):
        with pytest.raises(
            SpecError, match=r"not for token_classification; metrics for it: entity_confusion, .*"
        ) as error:
            spec.load(name, overrides)
        assert "metrics." in str(error.value)
    with pytest.raises(SpecError, match=r"metrics\.entity_f1=\{\}: not for sequence_classification"):
        spec.load("lora", ["metrics.entity_f1={}"])
    assert "perplexity" in spec.load("lora_causal_lm").metrics, "it reads every language model"


def test_a_plugin_is_not_null(experiments: Path) -> None:
    (experiments / "mine.yaml").write_text("defaults: [base, _self_]\nmetrics: {f1: null}\n")
    with pytest.raises(SpecError, match=r"(?m)^mine\.yaml:2: metrics\.f1: null is no map of settings; "):
        spec.load("mine")


@pytest.mark.parametrize("head", ["", "defaults: [base]\n", "defaults: [_self_, base]\n"])
def test_a_file_that_does_not_build_on_base_is_told_once(experiments: Path, head: str) -> None:
    (experiments / "bad.yaml").write_text(f"# Bad.\n{head}train: {{epochs: 2}}\n")
    with pytest.raises(SpecError) as error:
        spec.load("bad")
    assert str(error.value).splitlines()[0] == "bad.yaml: there is no `defaults: [base, _self_]`"


MISTAKES = [
    (["train.learing_rate=1"], r"^train\.learing_rate=1: unknown key; .*`learning_rate`"),
    (["data.sentences.tag_nois=0.1"], r"^data\.sentences\.tag_nois=0\.1: unknown key; did you mean `tag_noise`\?$"),
    (["methods.lora.rnk=3"], r"^methods\.lora\.rnk=.*: unknown key; did you mean `rank`"),
    (["methods.lra.rank=3"], r"methods\.lra\.rank=3: methods\.lra: no method is called so; did you mean 'lora'"),
    (["metrics.f2={}"], r"^metrics\.f2=.*: no metric is called so; did you mean 'f1'|known: accuracy"),
    (["train.batch_size=abc"], r"^train\.batch_size=.*: Input should be a valid integer, found 'abc'"),
    (["train.batch_size=true"], r"^train\.batch_size=.*: Input should be a valid integer, found True"),
    (["train.learning_rate=-1"], r"^train\.learning_rate=.*: Input should be greater than 0, found -1"),
    (["train.learning_rate=nan"], r"^train\.learning_rate=.*: Input should be"),
    (["train.learning_rate=inf"], r"^train\.learning_rate=.*: Input should be a finite number"),
    (["train.max_steps=None"], r"^train\.max_steps=None: .*, found 'None'; nothing is written `null`$"),
    (["train.learning_rate="], r"^train\.learning_rate=.*: Input should be a valid number"),
    (["methods.lora.rank=0"], r"^methods\.lora\.rank=.*: Input should be greater than or equal to 1, found 0"),
    (["evaluation.every=100"], r"^evaluation\.every=.*: a duration is a positive whole number and a unit"),
    (["early_stopping.patience=3 weeks"], r"^early_stopping\.patience=.*: a duration is"),
    (["precision=fp8"], r"^precision=.*: Input should be 'auto', 'no', 'bf16' or 'fp16', found 'fp8'"),
    (["seeds=[1,1]"], r"^seeds=.*: seeds are distinct"),
    (["seeds=[]"], r"^seeds=.*: List should have at least 1 item"),
    (["early_stopping.metric=validation/f1_marco"], r"^early_stopping\.metric=.*: .* is never produced; .*f1_macro'"),
    (["train.max_steps=5", "train.warmup_steps=5"], r"^train\.warmup_steps=.*: the warm-up lasts longer than"),
    (["compression.prune=[0.3,0.3]"], r"^compression\.prune=.*: shares are distinct, found \[0\.3, 0\.3\]$"),
    (["compression.prune=[0]"], r"compression\.prune\.0: Input should be greater than 0, found 0"),
    (["compression.prune=[0.5,1]"], r"compression\.prune\.1: Input should be less than 1, found 1"),
    (["compression.prune=[-0.1]"], r"compression\.prune\.0: Input should be greater than 0, found -0\.1"),
    (["compression.int8=1"], r"^compression\.int8=.*: Input should be a valid boolean, found 1"),
    (["~train.epochs"], r"train\.epochs: missing"),
    (["train.nonfinite=None"], r"^train\.nonfinite=None: Input should be 'stop', .*, found 'None'$"),
    (["early_stopping=None"], r"^early_stopping=None: found 'None', but this is a section of settings: direction, "),
    (["model=3"], r"^model=3: found 3, but this is a section of settings: architecture, name, revision, tokenizer$"),
    (["methods=lora"], r"^methods=lora: found 'lora', but this is a map, such as \{\}$"),
    (["methods.lora=false"], r"^methods\.lora=false: found False, but this is a section of settings: alpha, "),
    (["methods.lora=null"], r"^methods\.lora=null: null is no map .* ~methods\.lora takes it out$"),
    (["methods=null"], r"^methods=null: found None, but this is a map, such as \{\}$"),
    (["metrics={}"], r"^metrics=\{\}: Dictionary should have at least 1 item"),
    (["metrics.f1=null"], r"^metrics\.f1=null: null is no map .* ~metrics\.f1 takes it out$"),
    (["seeds=42"], r"^seeds=42: Input should be a valid list, found 42; a list is written \[42\]$"),
    (["methods.lora.target_modules=query"],
     r"^methods\.lora\.target_modules=query: .*'all' or 'head' or a valid list, found 'query'; .* \[query\]$"),
    (["train.lr=1e-3"], r"^train\.lr=1e-3: unknown key; did you mean `train\.learning_rate`\?$"),
    (["batch_size=16"], r"^batch_size=16: unknown key; did you mean `train\.batch_size`\?$"),
    (["weight_decay=0"], r"^weight_decay=0: unknown key; did you mean `train\.weight_decay`\?$"),
    (["rank=4"], r"^rank=4: unknown key; did you mean `methods\.lora\.rank`\?$"),
    (["every=4"], r"^every=4: unknown key; known: checkpoint, "),
    (["~methods.awp"], r"^~methods\.awp: lora_adapter has no methods\.awp\n  fix: known: bottleneck_adapter, lora$"),
    (["~train.epochs.x"], r"^~train\.epochs\.x: lora_adapter has no train\.epochs\.x"),
    (["~methods.lora=8"], r"is not an override\n  fix: write key=value, or ~key to remove a key$"),
    (["~model.revision"], r"^~model\.revision: model\.revision: missing$"),
    (["seeds=0,1,2"], r"^seeds=0,1,2: one value is expected\n  fix: a list is written seeds=\[0,1,2\]; .*sweep="),
    (["methods.mixout={p=0.5}"], r"(?s)^methods\.mixout=\{p=0\.5\}: .*fix: .* 'methods\.mixout=\{p: 0\.5\}'$"),
    (["methods.lora.target_modules=[]"], r"methods\.lora\.target_modules=.*: List should have at least 1 item"),
    (["foo"], r"'foo' is not an override"),
    (["data.name=${oc.env:HOME}"], r"cannot refer to the environment"),
    (["data.name=a b(c).csv"], r"fix: quote values"),
    (["tracking.register_as=a/b"], r"^tracking\.register_as=.*: a model's name, or name@alias"),
    (["tracking.register_as=a@latest"], r"^tracking\.register_as=.*: an alias"),
    (["tracking.register_as=a@"], r"^tracking\.register_as=.*: a model's name, or name@alias"),
    (["metrics={entity_f1: {}}"], r"^metrics=\{entity_f1: \{\}\}: metrics\.entity_f1: not for sequence_classification"),
    (["methods={lora: {rnk: 3}}"], r"^methods=\{lora: \{rnk: 3\}\}: methods\.lora\.rnk: unknown key"),
    (["task.causal_lm.judge=x"],
     r"^task\.causal_lm\.judge=x: task\.causal_lm: the task is sequence_classification; 'task=\{causal_lm: .*place$"),
    (["model.architecture.layers=2"], r"its own: write model\.architecture=null$"),
    (["tracking.register_as=a", "evaluation.final=scores"], r"^tracking\.register_as=a: evaluation.final=scores keeps"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_told_with_its_place(overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec.load("lora_adapter", overrides)


def test_a_password_is_in_nothing_that_is_shown_or_written() -> None:
    loaded = spec.load("lora", ["tracking.uri='http://me:hunter2@tracking.example:5000'"])
    assert "hunter2" not in str(loaded.resolved()) + str(loaded.flat())
    assert loaded.tracking.uri == "http://me:hunter2@tracking.example:5000"


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(SpecError) as error:
        spec.load("lora_adapter", ["train.learing_rate=1", "methods.lora.rnk=3", "precision=fp8", "evaluation.every=1"])
    assert len(str(error.value).splitlines()) == 4


def test_an_unknown_experiment_gives_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'lora_adapter'"):
        spec.load("lora_adaptr")


TRAPS = [
    ("a: 1\nb: [x]\na: 2\n", r"x\.yaml:3: the key `a` stands twice"),
    ("a: &x 1\nb: *x\n", r"x\.yaml:2: anchors and aliases are not allowed"),
    ("a: 1\nb: NO\n", r"x\.yaml:2: 'NO' is ambiguous\n  why: YAML 1\.1 reads this as true or false"),
    ("a: 12:30\n", r"x\.yaml:1: '12:30' is ambiguous\n  why: .*base 60"),
    ("a: 012\n", r"octal"),
    ("a: ${oc.env:HOME}\n", r"x\.yaml:1: specs cannot refer to the environment"),
    ("a: [1\n", r"x\.yaml:2: not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), TRAPS)
def test_traps_of_yaml_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        yaml_source.read(tmp_path / "x.yaml")


def test_a_bomb_of_aliases_is_refused_before_it_grows(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(SpecError, match="aliases are not allowed"):
        yaml_source.read(tmp_path / "x.yaml")


def test_plain_yaml_stays_plain(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text('a: "NO"\nb: true\nc: 1.0e-4\nd: 0\ne: 0.5\nf: null\n')
    assert yaml_source.read(tmp_path / "x.yaml").lines == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}


def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "lora"):
        (tmp_path / f"{name}.yaml").write_text((spec.EXPERIMENTS / f"{name}.yaml").read_text())
    with (tmp_path / "lora.yaml").open("a") as file:
        file.write("precison: no_way\n")
    monkeypatch.setattr(spec, "EXPERIMENTS", tmp_path)
    line = len((tmp_path / "lora.yaml").read_text().splitlines())
    with pytest.raises(SpecError, match=rf"lora\.yaml:{line}: precison: unknown key; did you mean `precision`"):
        spec.load("lora")


ANSWERS = [
    (["--help"], "Run an experiment"),
    (["exp=lora_adaptr"], "did you mean 'lora_adapter'"),
    (["exp=lora", "methods.lora.rnk=3"], "did you mean `rank`"),
    (["exp=experiments/lora.yaml"], "fix: write exp=lora\n"),
    (["lora", "train.epochs=3"], "name exactly one experiment\n  fix: exp=lora; known: awp, "),
    (["exp=lora", "trials=4"], "trials=4: this is a setting of a study\n  fix: add sweep=<name>"),
    (["--exp", "lora"], "no option --exp\n  fix: settings have no dashes: exp=lora\n"),
    (["exp=lora", "--seed", "3"], "no option --seed\n  fix: settings have no dashes: seeds=[3]\n"),
    (["exp=lora", "--lr=1e-3"], "fix: settings have no dashes: train.learning_rate=1e-3\n"),
    (["exp=lora", "--quite"], "fix: did you mean '--quiet'?\n"),
    (["--version"], "no option --version\n  fix: known: --plan, "),
    (["sweep=lora_rnk", "exp=lora"], "did you mean 'lora_rank'"),
    (["sweep=lora_rank"], "sweep=lora_rank: which experiment?"),
    (["sweep=lora_rank", "exp=lora", "sampler=tpee", "trials=0"], "2 errors:"),
    (["sweep=lora_rank", "exp=lora", "space.methods.lora.rank.choice=[0]", "train.epoch=2"], "2 errors:"),
    (["sweep=lora_rank", "exp=lora", "confirm.seeds=[42,43]"], "confirm.seeds=[42,43]: 42 is not"),
]


def test_experiments_are_held_for_a_process_and_those_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Path(shutil.copytree(spec.EXPERIMENTS, tmp_path / "experiments"))
    monkeypatch.setattr(spec, "EXPERIMENTS", files)
    with spec.held():
        (files / "base.yaml").write_text((files / "base.yaml").read_text().replace("0.01", "0.5"))
        assert spec.load("lora").train.weight_decay == 0.01
        monkeypatch.setattr(spec, "EXPERIMENTS", files)  # as a process that is started now
        with spec.held():
            assert spec.load("lora").train.weight_decay == 0.01
        assert spec.load("lora").train.weight_decay == 0.5
    assert files == spec.EXPERIMENTS and "HARNESS_EXPERIMENTS" not in os.environ


def test_who_starts_workers_does_not_import_first_what_they_import() -> None:
    code = (
        "import sys, harness.sweeps.sweep; "
        "print(sorted({'torch', 'transformers', 'mlflow', 'scipy', 'plotly'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("arguments", "message"), ANSWERS)
def test_help_and_mistakes_answer_without_heavy_imports(arguments: list[str], message: str) -> None:
    code = (
        "import sys; from harness.cli.launching import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'mlflow', 'optuna', 'sklearn', 'scipy', 'pandas', 'plotly'}; "
        "print('heavy', sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    is_help = arguments == ["--help"]
    assert "heavy []" in done.stdout
    assert done.returncode == (0 if is_help else 2)
    assert message in (done.stdout if is_help else done.stderr)
    assert is_help == (done.stderr == "")
    assert "Traceback" not in done.stderr
