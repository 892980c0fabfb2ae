"""A spec: YAML and overrides in, one frozen, validated object out.

Hydra's compose API (composing.py) merges `experiments/base.yaml`, the chosen file and the overrides; pydantic judges
the result. All errors are reported at once, each with its place, and before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from harness import composing, notes, registry, yaml_source
from harness.data import Data
from harness.errors import SpecError, did_you_mean
from harness.latency import Latency
from harness.optim import Train
from harness.registry import MAPS
from harness.settings import Settings
from harness.storage import PROJECT
from harness.tracking import Tracking
from harness.units import Duration, Interval

EXPERIMENTS = PROJECT / "experiments"
_HELD = "HARNESS_EXPERIMENTS"
"""Names the folder in their place, for the processes of a study."""


class Model(Settings):
    """The pretrained model."""

    name: str = Field(min_length=1)
    """`builtin:minilm`, a Hub id, or a local folder."""
    revision: str | None
    """Branch, tag or commit of a Hub id."""


class EarlyStopping(Settings):
    """Which checkpoint is kept, and when to stop."""

    metric: str
    """The validation metric that chooses: `validation/<name>`."""
    direction: Literal["maximize", "minimize"]
    """Which scores of it are better: high or low ones."""
    patience: Duration | None
    """Stop after so long without a better score; null: train to the end. The best checkpoint is restored either way."""


class Evaluation(Settings):
    """When the validation split is scored, and what stands beside the test score."""

    every: Duration
    """How often the validation split is scored: steps or epochs."""
    final: Literal["test", "weights", "scores"]
    """What a run leaves at its end. test: it is judged on the test split, measured and described. weights: the best
    weights and their validation scores; the test split stays unread. scores: the same without the weights."""
    baselines: bool
    """Score majority class, TF-IDF and frozen embeddings (and VADER, a human rater) on the same test split."""


class Checkpoint(Settings):
    """What a stopped run can go on from."""

    every: Interval
    """How often one is saved while training; one more when a run is asked to stop, and at the end of training."""
    keep: int = Field(ge=2)
    """How many stay: a new one is written whole before an old one goes. Those of a finished run are removed."""


class Compression(Settings):
    """Which smaller variants of the trained model are judged beside it at the end of a run."""

    prune: list[Annotated[float, Field(gt=0, lt=1)]]
    """Shares of the weights of attention and feed-forward layers to set to zero, one variant each."""
    int8: bool
    """Dynamic quantisation of every linear layer, on the CPU."""

    @field_validator("prune")
    @classmethod
    def _distinct(cls, prune: list[float]) -> list[float]:
        if len({f"{share:g}" for share in prune}) < len(prune):
            raise ValueError("shares are distinct")
        return prune

    @property
    def shares(self) -> dict[str, float]:
        """The pruned variants by name, such as `prune_0.3`."""
        return {f"prune_{share:g}": share for share in self.prune}


class Provenance(Settings):
    """Signing, and what stands beside the scores."""

    require_signature: bool
    """Refuse to run without a signing key."""
    selftest: bool
    """Prove the engine on this spec, data and model before training (`harness selftest`); a run that fails it stops."""


def distinct_seeds(seeds: list[int]) -> list[int]:
    """The seeds. Raises ValueError if they cannot be those of replicates."""
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError("seeds are distinct whole numbers from 0 to 2^32 - 1")
    return seeds


class Spec(Settings):
    """One experiment. `task`, `methods` and `metrics` are maps from a file name to that plug-in's settings."""

    name: str
    story: str
    """The comment at the top of the file: what it shows, and the score it reached."""
    task: dict[str, SerializeAsAny[Settings]] = Field(min_length=1, max_length=1)
    model: Model
    data: Data
    methods: dict[str, SerializeAsAny[Settings]]
    train: Train
    early_stopping: EarlyStopping
    evaluation: Evaluation
    checkpoint: Checkpoint
    metrics: dict[str, SerializeAsAny[Settings]] = Field(min_length=1)
    latency: Latency
    compression: Compression
    tracking: Tracking
    provenance: Provenance
    precision: Literal["auto", "no", "bf16", "fp16"]
    """Of the forward and backward pass; auto: bf16 where the GPU has it, else no, which is float32."""
    seeds: list[int] = Field(min_length=1)
    """One run per seed; several make replicates under one parent run."""
    output: str = Field(min_length=1)
    """The folder for runs, MLflow's database and artifacts; relative to the project."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)

    @model_validator(mode="after")
    def _alive(self) -> Spec:
        """Refuse settings that could never have an effect."""
        metrics = [name for name in self.metrics if name in registry.names("metric")]
        known = {f"validation/{key}" for name in metrics for key in registry.produces(name)}
        if self.early_stopping.metric not in known:
            hint = did_you_mean(self.early_stopping.metric, known)
            raise ValueError(f"early_stopping.metric: '{self.early_stopping.metric}' is never produced; {hint}")
        if self.tracking.register_as and self.evaluation.final == "scores":
            raise ValueError("tracking.register_as: evaluation.final=scores keeps no weights that could be registered")
        above: list[str] = []
        for name in (name for name in self.methods if name in registry.names("method")):
            for other, why in registry.not_after(name).items():
                if other in above:
                    raise ValueError(f"methods.{name}: cannot stand below {other}: {why}; put {name} above {other}")
            above.append(name)
        if self.train.max_steps and self.train.warmup_steps >= self.train.max_steps:
            raise ValueError(
                "train.warmup_steps: the warm-up lasts longer than train.max_steps, the rate is never reached"
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain values of every setting, with the keys one types; what is logged, signed and written as spec.yaml."""
        return self.model_dump(mode="json", exclude={"story"})

    def flat(self) -> dict[str, Any]:
        """The same as dotted keys; what MLflow shows as params."""
        return dict(flatten(self.resolved()))


def names() -> list[str]:
    """The specs that exist."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem != "base")


def story(name: str) -> str:
    """The comment at the top of a spec."""
    return comment(EXPERIMENTS / f"{name}.yaml")


def comment(path: Path) -> str:
    """The comment at the top of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:kept])


def load(name: str, overrides: list[str] | None = None) -> Spec:
    """Compose and validate a spec.

    Args:
        name: a file of `experiments/`, without `.yaml`.
        overrides: `key=value` with dotted keys; `~key` removes.

    Raises:
        SpecError: everything that is wrong with it, at once.
    """
    if name not in names():
        stem = Path(name).stem
        fix = f"write exp={stem}" if stem in names() else did_you_mean(name, names())
        raise SpecError(f"no experiment is called '{name}'", where=f"exp={name}", fix=fix)
    return _build(name, overrides or [])


@contextmanager
def held() -> Iterator[None]:
    """Inside, experiments are read as they are now, whatever becomes of their files: a study takes hours.

    Processes that are started inside read the same, whenever they begin.
    """
    global EXPERIMENTS
    before, given = EXPERIMENTS, os.environ.get(_HELD, "")
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        is_given = bool(given) and Path(given).is_dir()
        EXPERIMENTS = Path(given) if is_given else Path(shutil.copytree(before, Path(folder) / before.name))
        os.environ[_HELD] = str(EXPERIMENTS)
        try:
            yield
        finally:
            EXPERIMENTS = before
            os.environ.pop(_HELD)
            os.environ.update({_HELD: given} if given else {})


def reload(path: Path, changes: dict[str, str]) -> Spec:
    """The spec of a run that was begun, from the spec.yaml in its folder, with other places (such as `output`).

    A setting that the harness did not have when the run began gets its default.

    Raises:
        SpecError: the file cannot be read, or is of another version of the harness.
    """
    composed = yaml_source.load(path)
    for section, values in yaml_source.load(EXPERIMENTS / "base.yaml").items():
        if section not in composed:
            composed[section] = values
        elif isinstance(values, dict) and section not in MAPS:
            composed[section] = {**values, **composed[section]}
    name = str(composed.pop("name", ""))
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        (composed[section] if section else composed)[last] = value
    told = story(name) if name in names() else ""
    return _judge(composed, name, told, yaml_source.Places([yaml_source.read(path)], []))


def defaults() -> dict[str, Any]:
    """Every setting as base.yaml alone gives it, with dotted keys, to tell what an experiment changes."""
    return _build("base", []).flat()


def _build(name: str, overrides: list[str]) -> Spec:
    """Compose and judge `experiments/<name>.yaml`; a map in `MAPS` that is given replaces the one there."""
    base, own = (yaml_source.read(EXPERIMENTS / file) for file in ("base.yaml", f"{name}.yaml"))
    if name != "base" and own.defaults[-1:] != ("_self_",):
        fix = "write it above the settings: what follows differs from base.yaml"
        raise SpecError("there is no `defaults: [base, _self_]`", where=own.path.name, fix=fix)
    replaced = [f"~{key}" for key in base.plugins("task") if own.plugins("task") and key not in own.lines]
    composed = composing.compose(EXPERIMENTS, name, [*replaced, *overrides], maps=MAPS)
    made = _judge(composed, name, story(name), yaml_source.Places([base, own], overrides))
    gone = [key for key in own.plugins("methods") if key.partition(".")[2] not in made.methods]
    if gone and len(gone) == len(own.plugins("methods")):
        left = f"its name and other settings are left, such as train.learning_rate={made.train.learning_rate:g}"
        notes.note(f"exp={name} is without {' and '.join(gone)}: {left}")
    return made


def _judge(composed: dict[str, Any], name: str, told: str, places: yaml_source.Places) -> Spec:
    """The validated spec. Raises SpecError with everything that is wrong at once."""
    plugins, problems = _validate_plugins(composed)
    try:
        spec = Spec.model_validate({**composed, **plugins, "name": name, "story": told})
    except ValidationError as error:
        problems += error.errors()
    if problems:
        lines = (explain(problem, places, _siblings, _is_nullable) for problem in _alternatives(problems))
        raise SpecError("\n".join(dict.fromkeys(lines)))
    return spec


def _validate_plugins(composed: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Settings objects in the place of the maps `task`, `methods` and `metrics`, and what is wrong with them."""
    sections: dict[str, Any] = {}
    problems: list[Any] = []
    for section in MAPS:
        given, kind = composed.get(section), section.removesuffix("s")
        if not isinstance(given, dict):
            continue
        sections[section] = dict.fromkeys(given, Settings())
        for name, settings in given.items():
            if name not in registry.names(kind):
                hint = f"no {kind} is called so; {did_you_mean(name, registry.names(kind))}"
                problems.append({"type": "unknown_plugin", "loc": (section, name), "msg": hint, "input": {}})
                continue
            if settings is None:
                hint = f"null is no map of settings; `{{}}` are its defaults, ~{section}.{name} takes it out"
                problems.append({"type": "null_plugin", "loc": (section, name), "msg": hint, "input": {}})
                continue
            try:
                sections[section][name] = registry.settings_class(kind, name).model_validate(settings)
            except ValidationError as error:
                problems += [{**problem, "loc": (section, name, *problem["loc"])} for problem in error.errors()]
    return sections, problems


def explain(
    problem: Any,
    places: yaml_source.Places,
    siblings_of: Callable[[list[str]], list[str]],
    is_nullable: Callable[[list[str]], bool],
) -> str:
    """One line for one pydantic error: where, what, what instead.

    `siblings_of` a path: the keys that may stand there. `is_nullable`: whether null may.
    """
    path = _path(problem)
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    if not path:  # a rule over several settings names its key in its message
        key, message = message.split(": ", 1)
        path = key.split(".")
    if problem["type"] == "extra_forbidden":
        message = unknown_key(path[-1], siblings_of(path))
    elif problem["type"] == "missing":
        message = "missing"
    elif problem["type"] in ("model_type", "dict_type"):
        known = siblings_of([*path, ""])
        inside = f"a section of settings: {', '.join(known)}" if known else "a map, such as {}"
        message = f"found {value!r}, but this is {inside}"
    elif not isinstance(value, dict | Settings):
        message = f"{message}, found {value!r}{_as_meant(value, message, is_nullable(path))}"
    return f"{places.named(path)}: {message}"


def _as_meant(value: Any, message: str, is_nullable: bool) -> str:
    """What a value may have been meant as, and how that is written."""
    if value == "None" and is_nullable:
        return "; nothing is written `null`"
    return f"; a list is written [{value}]" if "valid list" in message and isinstance(value, str | int | float) else ""


def _path(problem: Any) -> list[str]:
    """The keys that lead to what a pydantic error is about; without the names of the types it was tried as."""
    return [str(part) for part in problem["loc"] if not str(part).startswith(("list[", "literal[", "constrained-"))]


def _alternatives(problems: list[Any]) -> Iterator[Any]:
    """The problems; what one value should be, and is none of, in one."""
    for _, same in itertools.groupby(problems, lambda one: (_path(one), repr(one["input"]))):
        first, *others = same
        if all(one["msg"].startswith("Input should be ") for one in (first, *others)):
            also = (f" or {one['msg'].removeprefix('Input should be ')}" for one in others)
            yield {**first, "msg": "".join([first["msg"], *also])}
        else:
            yield from (first, *others)


_SHORT = {"lr": "learning_rate", "bs": "batch_size", "seed": "seeds", "wd": "weight_decay", "warmup": "warmup_steps"}
"""What other tools call some settings."""


def unknown_key(key: str, known: list[str]) -> str:
    """What is said of a key that does not exist: where one of its name stands, the nearest, or all of them."""
    if key not in known and (elsewhere := setting_called(key)):
        return f"unknown key; did you mean `{elsewhere}`?"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown key; did you mean `{near[0]}`?" if near else f"unknown key; known: {', '.join(known)}"


def setting_called(name: str) -> str | None:
    """The dotted key of the one setting with this name, or with the name that it is short for; sections go first."""
    found = [key for key in _settings() if key.rpartition(".")[2] == _SHORT.get(name, name)]
    found = [key for key in found if key.partition(".")[0] not in MAPS] or found
    return found[0] if len(found) == 1 else None


def _settings() -> Iterator[str]:
    """Every setting that a spec can have, by its dotted key."""
    for section in _siblings([""]):
        plugins = registry.names(section.removesuffix("s")) if section in MAPS else []
        for path in [[section, name] for name in plugins] or [[section]]:
            here = settings_at(path)
            yield from [".".join([*path, name]) for name in (here.model_fields if here else ())] or [".".join(path)]


def described(chosen: Spec, asked: str) -> list[tuple[str, Any, str]]:
    """Key, value and meaning of a setting of this spec, or of all settings of a section.

    Raises:
        SpecError: it has no such key.
    """
    values = chosen.resolved()
    known = {key: value for key in _settings() if (value := _value(values, key)) is not _ABSENT}
    for key in (asked, setting_called(asked) or asked):
        if found := [one for one in known if f"{one}.".startswith(f"{key}.") or key.startswith(f"{one}.")]:
            return [(one, known[one], _meaning(one)) for one in found]
    plugin = asked.split(".")[:2]
    near = difflib.get_close_matches(asked, [*known, *(key.rpartition(".")[0] for key in known)], n=1)
    fix = f"did you mean '{near[0]}'?" if near else f"harness show {chosen.name} lists them all"
    if settings_at(plugin):
        fix = f"it has no {'.'.join(plugin)}: look at it with '{'.'.join(plugin)}={{}}'"
    raise SpecError(f"{chosen.name} has no setting '{asked}'", fix=fix)


_ABSENT = object()


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part, _ABSENT) if isinstance(tree, dict) else _ABSENT
    return tree


def _meaning(key: str) -> str:
    """What the source says below a setting; of a plug-in without settings, its first line."""
    *path, last = key.split(".")
    if here := settings_at(path):
        return next(meaning for name, _, meaning in registry.describe_fields(here) if name == last)
    return registry.describe(path[0].removesuffix("s"), last).story.partition("\n")[0]


def settings_at(path: list[str]) -> type[Settings] | None:
    """The class of a section or a plug-in; None: there is none."""
    if len(path) == 2 and path[0] in MAPS:
        kind = path[0].removesuffix("s")
        return registry.settings_class(kind, path[1]) if path[1] in registry.names(kind) else None
    here: type[Settings] = Spec
    for part in path:
        annotation = here.model_fields[part].annotation if part in here.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
            return None
        here = annotation
    return here


def _siblings(path: list[str]) -> list[str]:
    """The keys that may stand where an unknown one stands."""
    here = settings_at(path[:-1])
    return sorted(here.model_fields.keys() - ({"name", "story"} if here is Spec else set())) if here else []


def _is_nullable(path: list[str]) -> bool:
    here = settings_at(path[:-1])
    field = here.model_fields.get(path[-1]) if here else None
    return field is not None and type(None) in get_args(field.annotation)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
