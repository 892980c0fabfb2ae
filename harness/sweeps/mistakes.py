"""A search space held against the experiments it searches: whatever is wrong is told before the first trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from harness import registry
from harness.errors import SpecError, did_you_mean
from harness.specs import composing, explaining, spec
from harness.specs.schema import Spec
from harness.sweeps.distribution import Parameter, as_list
from harness.sweeps.plan import Plan, method_of
from harness.sweeps.space import KEYS, SearchSpace, load
from harness.sweeps.trials import Arm

_OF_THE_STUDY = (
    "name", "story", "seeds", "data", "metrics", "output", "tracking", "provenance", "precision", "evaluation.final",
)  # fmt: skip
"""Settings that all trials of a study share."""
_RECORDED = ("parameters/trainable", "memory/peak_gib", "time/train_s", "latency/p50_ms", "latency/p95_ms")
"""What every trial records beside its scores, and objectives and constraints may name."""
_COMPARED = ("data", "metrics", "seeds", "precision", "provenance")
"""What all experiments of a study have to have in common."""


def read(name: str, own: list[str], overrides: list[str]) -> SearchSpace:
    """Read a search space; what is wrong with it is told together with the keys that nothing has.

    Args:
        name: a file of `search_spaces/`, without `.yaml`.
        own: overrides with its own keys.
        overrides: all others.

    Raises:
        SpecError: everything that can be told before it is held against its experiments.
    """
    try:
        return load(name, own)
    except SpecError as error:
        raise SpecError("\n".join([str(error), *dict(_unknown_keys(overrides)).values()])) from None


def check(space: SearchSpace, exp: str | None, overrides: list[str]) -> Plan:
    """Hold a search space against the experiments: every choice, and both ends of every range, make a valid spec.

    Raises:
        SpecError: with everything that is wrong, before anything heavy is imported.
    """
    unknown = dict(_unknown_keys(overrides))
    plan = Plan(space, exp, [override for override in overrides if override not in unknown])
    _check_exp(plan)
    problems = [*unknown.values(), *_check_overrides(plan), *_check_experiments(plan)]
    for arm in space.arms:
        problems += _check_space(plan, arm, set(problems))
        problems += _check_size(space, arm)
    if not problems:
        problems = _check_metrics(plan)
    if problems:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    return plan


def _check_size(space: SearchSpace, arm: Arm) -> list[str]:
    """What keeps a grid from having an end."""
    try:
        space.size(arm)
    except SpecError as error:
        return [str(error).replace("\n  fix: ", "; ")]
    return []


def _unknown_keys(overrides: list[str]) -> Iterator[tuple[str, str]]:
    """Overrides that begin with a key which neither a spec nor a search space has, and what is said of each."""
    known = sorted(KEYS | (Spec.model_fields.keys() - {"name", "story"}))
    for override in overrides:
        key = override.lstrip("~+").split("=", 1)[0].split(".", 1)[0]
        if key not in Spec.model_fields and ("=" in override or override.startswith("~")):
            place = override if override.startswith(f"{key}=") else f"{override}: {key}"
            yield override, f"{place}: {explaining.unknown_key(key, known)}"


def _check_exp(plan: Plan) -> None:
    space, exp, is_searched = plan.space, plan.exp, "exp" in plan.space.space
    if exp is None and not is_searched:
        fix = f"exp=<name>; known: {', '.join(spec.names())}"
        raise SpecError("which experiment?", where=f"sweep={space.name}", fix=fix)
    if exp is not None and is_searched:
        raise SpecError("the search chooses the experiment", where=f"exp={exp}", fix="leave it out")
    if exp is not None and exp not in spec.names():
        spec.load(exp)
    if space.baseline and space.baseline.exp not in spec.names():
        what = f"baseline.exp: no experiment is called '{space.baseline.exp}'"
        hint = did_you_mean(space.baseline.exp, spec.names())
        raise SpecError(f"{what}; {hint}", where=space.place(["baseline", "exp"]))


def _check_overrides(plan: Plan) -> Iterator[str]:
    """What is wrong with overrides of the command line: searched keys, methods of no experiment."""
    sections: dict[Arm, str] = {"search": "space", "baseline": "baseline.space"}
    places = [(one.key, sections[arm]) for arm in plan.space.arms for one in plan.space.parameters(arm)]
    searched = {key for key, _ in places}
    compared = {exp for arm in plan.space.arms for exp in plan.experiments(arm)}
    for override in plan.overrides:
        key = override.lstrip("~+").split("=", 1)[0]
        if near := [one for one in searched if one == key or one.startswith(f"{key}.") or key.startswith(f"{one}.")]:
            removal = " ".join(f"'~{section}.{of}'" for of, section in dict.fromkeys(places) if of == min(near))
            yield f"{override}: {min(near)} is searched: leave it out, or search it no more: {removal}"
        elif key == "methods" and len(compared) > 1:
            yield f"{override}: {' and '.join(sorted(compared))} would be the same: give methods.<name>"
        if key == "evaluation.final" or key.startswith("compression") or override == "evaluation.baselines=true":
            yield f"{override}: a trial has no use for it: leave it out"
        if (
            plan.exp is None
            and (method := method_of(override))
            and not any(method in of for of in plan.methods.values())
        ):
            yield f"{override}: no experiment of this search has {method}: leave it out"


def _check_experiments(plan: Plan) -> Iterator[str]:
    """What is wrong before anything is chosen."""
    shared: dict[str, dict[str, Any]] = {}
    for arm in plan.space.arms:
        for exp in plan.experiments(arm):
            try:
                if exp in spec.names():
                    made = plan.spec(arm, {"exp": exp}).resolved()
                    if made["tracking"]["register_as"]:
                        yield f"{exp}: tracking.register_as: a trial leaves no model: register a run of the winner"
                    shared.setdefault(exp, {section: made[section] for section in _COMPARED})
            except SpecError as error:
                yield from str(error).splitlines()
    for exp, settings in shared.items():
        first, expected = next(iter(shared.items()))
        if odd := [section for section in _COMPARED if settings[section] != expected[section]]:
            yield f"{exp}: its {' and '.join(odd)} are not those of {first}: nothing could be compared"


def _check_metrics(plan: Plan) -> list[str]:
    """What is wrong with what the study looks at."""
    space = plan.space
    first = plan.spec("search", plan.first("search"))
    known = [*(f"validation/{key}" for name in first.metrics for key in registry.produces(name)), *_RECORDED]
    asked = [(["objective", str(i), "metric"], one.metric) for i, one in enumerate(space.objective)]
    asked += [(["constraints", metric], metric) for metric in space.constraints]
    problems = [
        f"{space.named(path, path[0])}: {metric} is never recorded; {did_you_mean(metric, known)}"
        for path, metric in asked
        if metric not in known
    ]
    if not space.objective[0].metric.startswith("validation/"):
        problems.append(
            f"{space.named(['objective', '0', 'metric'], 'objective')}: the first one is a score, validation/<name>"
        )
    if space.workers > 1 and any(metric.startswith("latency/") for _, metric in asked):
        problems.append(
            f"{space.named(['workers'], 'workers')}: latency cannot be measured while other workers share the machine"
        )
    problems += _check_pruner(space, len(first.seeds))
    if space.confirm and (again := set(space.confirm.seeds) & set(first.seeds)):
        problems.append(
            f"{space.named(['confirm', 'seeds'], 'confirm.seeds')}: {min(again)} is not fresh, the search uses it"
        )
    return problems


def _check_pruner(space: SearchSpace, num_seeds: int) -> Iterator[str]:
    """What is wrong with the pruner for trials of so many seeds."""
    ((name, settings),) = space.pruner.items()
    place, needed = space.named(["pruner"], "pruner"), settings.get("p_threshold", 0.1)
    if name == "wilcoxon" and isinstance(needed, int | float) and 2.0 ** (1 - num_seeds) >= needed:
        why = f"wilcoxon looks over seeds, and {num_seeds} are too few for p below {needed}"
        yield f"{place}: {why}: name more, such as seeds=[0,1,2,3,4]"


def _cases(space: SearchSpace, arm: Arm, parameter: Parameter) -> Iterator[dict[str, Any]]:
    """A configuration for every extreme of a parameter, in which it applies."""
    wanted = _conditions(space, arm, parameter)
    for value in parameter.distribution.extremes:
        given = {other.name: wanted.get(other.key, other.distribution.extremes[0]) for other in space.parameters(arm)}
        given[parameter.name] = value
        chosen = space.choose(arm, partial(_of, given))
        if parameter.key in chosen:
            yield chosen


def _of(given: dict[str, Any], parameter: Parameter) -> Any:
    return given[parameter.name]


def _conditions(space: SearchSpace, arm: Arm, parameter: Parameter) -> dict[str, Any]:
    """A value for each key that the parameter depends on, directly or not."""
    wanted = {key: as_list(value)[0] for key, value in parameter.distribution.when.items()}
    for other in reversed(space.parameters(arm)):
        if other.key in wanted and wanted[other.key] in other.distribution.extremes:
            wanted = {key: as_list(value)[0] for key, value in other.distribution.when.items()} | wanted
    return wanted


def _check_key(plan: Plan, arm: Arm, parameter: Parameter) -> list[str]:
    """What is wrong with a parameter, whatever its value."""
    key, method = parameter.key, method_of(parameter.key)
    if key != "exp" and any(key == own or key.startswith(f"{own}.") for own in _OF_THE_STUDY):
        return [f"{_named_place(plan, arm, parameter)}: all trials of a study share it; make one study for each value"]
    if key == "exp" and arm == "search":
        unknown = [exp for exp in map(str, parameter.distribution.extremes) if exp not in spec.names()]
        told = [f"no experiment is called '{exp}'; {did_you_mean(exp, spec.names())}" for exp in unknown]
        return [f"{_named_place(plan, arm, parameter)}: {line}" for line in told]
    if key == "exp":
        return [f"{_named_place(plan, arm, parameter)}: a baseline is one experiment; name it in baseline.exp"]
    if method not in registry.names("method"):
        return []
    is_added = arm == "search" and plan.exp is not None and method in map(method_of, plan.overrides)
    without = [exp for exp in _experiments(plan, arm, parameter) if method not in plan.methods.get(exp, [method])]
    if without and not is_added:
        fix = "give it a `when: {exp: ...}`" if "exp" in plan.space.entries(arm) else "name an experiment that has it"
        what = f"{', '.join(without)} without {method}: the trial would add it; {fix}"
        return [f"{_named_place(plan, arm, parameter)}: {what}"]
    return []


def _experiments(plan: Plan, arm: Arm, parameter: Parameter) -> list[str]:
    """The experiments of an arm in which a parameter applies."""
    found = plan.experiments(arm)
    if "exp" not in plan.space.entries(arm):
        return found
    for key, value in parameter.distribution.when.items():
        above = [one for one in plan.space.parameters("search") if one.key == key and key != "exp"]
        allowed = {exp for one in above for exp in _experiments(plan, arm, one)} or set(as_list(value))
        found = [exp for exp in found if exp in allowed]
    return found


def _check_space(plan: Plan, arm: Arm, known: set[str]) -> list[str]:
    """What is wrong with the keys of an arm and their values; `known` is wrong without them too."""
    problems, tried = [], list[dict[str, Any]]()
    for parameter in plan.space.parameters(arm):
        told = _check_key(plan, arm, parameter)
        problems += told
        for chosen in () if told else _cases(plan.space, arm, parameter):
            if chosen not in tried:
                lines = [line for line in _complaints(plan, arm, chosen) if line not in known]
                problems += [_attributed(plan, arm, parameter, chosen, line) for line in lines]
                known |= set(lines)
                tried.append(chosen)
    return problems


def _complaints(plan: Plan, arm: Arm, chosen: dict[str, Any]) -> list[str]:
    """What a spec says of a configuration."""
    if chosen.get("exp", plan.experiments(arm)[0]) not in spec.names():
        return []
    try:
        plan.spec(arm, chosen)
    except SpecError as error:
        return str(error).splitlines()
    return []


def _attributed(plan: Plan, arm: Arm, parameter: Parameter, chosen: dict[str, Any], line: str) -> str:
    """What a spec says of a value, at the place of its range instead of the override that nobody has typed."""
    for one in plan.space.parameters(arm):
        if one.key not in chosen or not one.applies(chosen):
            continue
        own = f"{composing.override(one.key, chosen[one.key])}: "
        if line.startswith(own):
            place, told = _named_place(plan, arm, one), line.removeprefix(own)
            name = told.split(": ")[0]
            is_related = place.endswith(one.key) and f"{name}.".startswith(f"{one.key}."[: len(name) + 1])
            return f"{place.removesuffix(one.key)}{told}" if is_related else f"{place}: {told}"
    return f"{_named_place(plan, arm, parameter)}: with {json.dumps(chosen[parameter.key])}: {line}"


def _named_place(plan: Plan, arm: Arm, parameter: Parameter) -> str:
    """Such as `lora_rank.yaml:6: space.methods.lora.rank`."""
    section, key = "baseline.space" if arm == "baseline" else "space", parameter.key
    number = next(i for i, one in enumerate(plan.space.entries(arm)[key]) if one is parameter.distribution)
    return plan.space.named([*section.split("."), key, str(number)], f"{section}.{key}")
