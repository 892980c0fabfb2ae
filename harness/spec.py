"""A spec: YAML and overrides in, one frozen, validated object out.

Hydra's compose API (composing.py) merges `experiments/base.yaml`, the chosen file and the overrides; pydantic judges
the result. All errors are reported at once, each with its place, and before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from harness import composing, registry, yaml_source
from harness.data import Data
from harness.errors import SpecError, did_you_mean
from harness.latency import Latency
from harness.optim import Train
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
    patience: Duration | None
    """Stop after so long without a better score; null: train to the end. The best checkpoint is restored either way."""


class Evaluation(Settings):
    """When the validation split is scored, and what stands beside the test score."""

    every: Duration
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
        raise SpecError(f"no experiment is called '{name}'", where=f"exp={name}", fix=did_you_mean(name, names()))
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
        elif isinstance(values, dict) and section not in ("task", "methods", "metrics"):
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
    files = [yaml_source.read(EXPERIMENTS / file) for file in ("base.yaml", f"{name}.yaml")]
    return _judge(
        composing.compose(EXPERIMENTS, name, overrides), name, story(name), yaml_source.Places(files, overrides)
    )


def _judge(composed: dict[str, Any], name: str, told: str, places: yaml_source.Places) -> Spec:
    """The validated spec. Raises SpecError with everything that is wrong at once."""
    plugins, problems = _validate_plugins(composed)
    try:
        spec = Spec.model_validate({**composed, **plugins, "name": name, "story": told})
    except ValidationError as error:
        problems += error.errors()
    if problems:
        raise SpecError("\n".join(dict.fromkeys(explain(problem, places, _siblings) for problem in problems)))
    return spec


def _validate_plugins(composed: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Settings objects in the place of the maps `task`, `methods` and `metrics`, and what is wrong with them."""
    sections: dict[str, Any] = {}
    problems: list[Any] = []
    for section in ("task", "methods", "metrics"):
        given, kind = composed.get(section), section.removesuffix("s")
        if not isinstance(given, dict):
            continue
        sections[section] = dict.fromkeys(given, Settings())
        for name, settings in given.items():
            if name not in registry.names(kind):
                hint = f"no {kind} is called so; {did_you_mean(name, registry.names(kind))}"
                problems.append({"type": "unknown_plugin", "loc": (section, name), "msg": hint, "input": {}})
                continue
            try:
                sections[section][name] = registry.settings_class(kind, name).model_validate(
                    {} if settings is None else settings
                )
            except ValidationError as error:
                problems += [{**problem, "loc": (section, name, *problem["loc"])} for problem in error.errors()]
    return sections, problems


def explain(problem: Any, places: yaml_source.Places, siblings_of: Callable[[list[str]], list[str]]) -> str:
    """One line for one pydantic error: where, what, what instead.

    `siblings_of` a path: the keys that may stand there.
    """
    path = [str(part) for part in problem["loc"] if not str(part).startswith(("list[", "literal[", "constrained-"))]
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    if not path:  # a rule over several settings names its key in its message
        key, message = message.split(": ", 1)
        path = key.split(".")
    if problem["type"] == "extra_forbidden":
        message = unknown_key(path[-1], siblings_of(path))
    elif problem["type"] == "missing":
        message = "missing"
    elif not isinstance(value, dict | Settings):
        message = f"{message}, found {value!r}" + ("; nothing is written `null`" if value == "None" else "")
    return f"{places.named(path)}: {message}"


def unknown_key(key: str, known: list[str]) -> str:
    """What is said of a key that does not exist: the nearest of those that do, or all of them."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown key; did you mean `{near[0]}`?" if near else f"unknown key; known: {', '.join(known)}"


def _siblings(path: list[str]) -> list[str]:
    """The keys that may stand where an unknown one stands."""
    if (
        len(path) > 2
        and path[0] in ("task", "methods", "metrics")
        and path[1] in registry.names(path[0].removesuffix("s"))
    ):
        return sorted(registry.settings_class(path[0].removesuffix("s"), path[1]).model_fields)
    here: type[Settings] = Spec
    for part in path[:-1]:
        annotation = here.model_fields[part].annotation if part in here.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
            return []
        here = annotation
    return sorted(set(here.model_fields) - {"name", "story"} if here is Spec else here.model_fields)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
