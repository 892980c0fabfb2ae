"""A spec: YAML and overrides in, one frozen, validated object out.

Hydra's compose API (composing.py) merges `experiments/base.yaml`, the chosen file and the overrides; pydantic judges
the result. All errors are reported at once, each with its place, and before anything heavy is imported.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness import notes, registry
from harness.errors import SpecError, did_you_mean
from harness.registry import MAPS
from harness.settings import Settings
from harness.specs import composing, explaining, yaml_source
from harness.specs.schema import Spec
from harness.storage import PROJECT

EXPERIMENTS = PROJECT / "experiments"
_HELD = "HARNESS_EXPERIMENTS"
"""Names the folder in their place, for the processes of a study."""


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
    files = _files(name)
    composed = composing.compose(EXPERIMENTS, name, [*_replaced(files), *overrides], maps=MAPS)
    made = _judge(composed, name, story(name), yaml_source.Places(files, overrides))
    own = files[-1]
    gone = [key for key in own.plugins("methods") if key.partition(".")[2] not in made.methods]
    if gone and len(gone) == len(own.plugins("methods")):
        left = f"its name and other settings are left, such as train.learning_rate={made.train.learning_rate:g}"
        notes.note(f"exp={name} is without {' and '.join(gone)}: {left}")
    return made


def _files(name: str, above: tuple[str, ...] = ()) -> list[yaml_source.Source]:
    """The files an experiment is built of, base.yaml first, its own last. Raises SpecError."""
    own = yaml_source.read(EXPERIMENTS / f"{name}.yaml")
    if name == "base":
        return [own]
    if own.defaults[-1:] != ("_self_",) or len(own.defaults) != 2:
        fix = "write it above the settings: what follows differs from base.yaml, or from the experiment named there"
        raise SpecError("there is no `defaults: [base, _self_]`", where=own.path.name, fix=fix)
    below = own.defaults[0]
    if below not in (*names(), "base"):
        raise SpecError(f"no experiment is called '{below}'", where=own.path.name, fix=did_you_mean(below, names()))
    if below in (name, *above):
        raise SpecError(f"'{below}' builds on itself", where=own.path.name, fix="let one of them build on base")
    return [*_files(below, (name, *above)), own]


def _replaced(files: list[yaml_source.Source]) -> list[str]:
    """Overrides that take out what files below said of another task: that task, and its metrics."""
    gone: dict[str, None] = {}
    known: list[str] = []
    for file in files:
        if (named := file.plugins("task")) and not set(named) & set(known):
            gone |= dict.fromkeys(known)
            known = []
        given = [*named, *file.plugins("metrics")]
        gone = {key: None for key in gone if key not in given}
        known += given
    return [f"~{key}" for key in gone]


def _judge(composed: dict[str, Any], name: str, told: str, places: yaml_source.Places) -> Spec:
    """The validated spec. Raises SpecError with everything that is wrong at once."""
    plugins, problems = _validate_plugins(composed)
    try:
        spec = Spec.model_validate({**composed, **plugins, "name": name, "story": told})
    except ValidationError as error:
        problems += error.errors()
    if problems:
        lines = (
            explaining.explain(problem, places, explaining.siblings, explaining.may_be_null)
            for problem in explaining.alternatives(problems)
        )
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
        if section == "task" and len(given) > 1:
            first, *others = given
            hint = f"the task is {first}; 'task={{{others[-1]}: {{}}}}' takes its place"
            problems.append({"type": "many_tasks", "loc": (section, others[-1]), "msg": hint, "input": {}})
            given, sections[section] = {first: given[first]}, {first: Settings()}
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
