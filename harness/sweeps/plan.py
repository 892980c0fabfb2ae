"""A search space held against the experiments it searches: whatever is wrong is told before the first trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from harness import composing, registry, spec, yaml_source
from harness.errors import SpecError, did_you_mean
from harness.spec import Spec
from harness.sweeps.space import SPACES, Parameter, SearchSpace, as_list
from harness.sweeps.trials import Arm

_OF_THE_STUDY = ("name", "story", "seeds", "output", "tracking", "provenance", "precision", "evaluation.final")
"""Settings that all trials of a study share."""
_RECORDED = ("parameters/trainable", "memory/peak_gib", "time/train_s", "latency/p50_ms", "latency/p95_ms")
"""What every trial records beside its scores, and objectives and constraints may name."""
_FREE = (
    "name",
    "story",
    "trials",
    "minutes",
    "study",
    "storage",
    "heartbeat_seconds",
    "workers",
    "executor",
    "resources",
)
"""Settings of a search space that may change while its study goes on: its size and its engine."""
_ABSENT = object()


@dataclass(frozen=True)
class Plan:
    """A search space held against the experiments it searches."""

    space: SearchSpace
    exp: str | None
    """The experiment that is searched; None: the search chooses."""
    overrides: list[str]
    """Of the command line, for every trial and for the baseline."""

    @property
    def name(self) -> str:
        """Of the study."""
        return self.space.study or "-".join(filter(None, [self.space.name, self.exp]))[:40]

    def spec(self, arm: Arm, chosen: dict[str, Any], own: list[str] | None = None) -> Spec:
        """The spec of a configuration: overrides of the command line, then what was chosen, then `own`.

        Raises:
            SpecError: it is not a valid one.
        """
        baseline = self.space.baseline.exp if arm == "baseline" and self.space.baseline else None
        exp = chosen.get("exp") or baseline or self.exp
        return spec.load(str(exp), [*self.overrides, *self.words(chosen), *(own or [])])

    @property
    def measures_latency(self) -> bool:
        """Whether trials have to measure latency: an objective or a constraint asks for it."""
        asked = [*(one.metric for one in self.space.objective), *self.space.constraints]
        return any(metric.startswith("latency/") for metric in asked)

    def first(self, arm: Arm) -> dict[str, Any]:
        """Some configuration of an arm."""
        return self.space.choose(arm, lambda parameter: parameter.distribution.extremes[0])

    @staticmethod
    def words(chosen: dict[str, Any]) -> list[str]:
        """What was chosen, as one types it."""
        return [composing.override(key, value) for key, value in chosen.items() if key != "exp"]


def check(space: SearchSpace, exp: str | None, overrides: list[str]) -> Plan:
    """Hold a search space against the experiments: every choice, and both ends of every range, make a valid spec.

    Raises:
        SpecError: with everything that is wrong, before anything heavy is imported.
    """
    plan = Plan(space, exp, overrides)
    if (exp is None) == ("exp" not in space.space):
        what = "which experiment?" if exp is None else "the search chooses the experiment"
        fix = f"exp=<name>; known: {', '.join(spec.names())}" if exp is None else f"leave out exp={exp}"
        raise SpecError(what, where=f"sweep={space.name}", fix=fix)
    problems = [
        f"{override}: {key} is searched: leave it out, or choose another space"
        for override in overrides
        if (key := override.lstrip("~+").split("=", 1)[0]) in space.space
    ]
    for arm in space.arms:
        for parameter, chosen in _cases(space, arm):
            problems += _check_case(plan, arm, parameter, chosen)
    if not problems:
        problems = _check_metrics(plan)
    if problems:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    return plan


def _check_metrics(plan: Plan) -> list[str]:
    """What is wrong with what the study looks at."""
    space, file = plan.space, f"{plan.space.name}.yaml"
    first = plan.spec("search", plan.first("search"))
    known = [*(f"validation/{key}" for name in first.metrics for key in registry.produces(name)), *_RECORDED]
    asked = {f"objective: {one.metric}": one.metric for one in space.objective}
    asked |= {f"constraints.{metric}": metric for metric in space.constraints}
    problems = [
        f"{file}: {place}: it is never recorded; {did_you_mean(metric, known)}"
        for place, metric in asked.items()
        if metric not in known
    ]
    if not space.objective[0].metric.startswith("validation/"):
        problems.append(f"{file}: objective: the first one is a score, validation/<name>")
    if space.workers > 1 and any(metric.startswith("latency/") for metric in asked.values()):
        problems.append("workers: latency cannot be measured while other workers use the same machine")
    if space.confirm and (again := set(space.confirm.seeds) & set(first.seeds)):
        problems.append(f"{file}: confirm.seeds: {min(again)} is not fresh, the search uses it")
    return problems


def _cases(space: SearchSpace, arm: Arm) -> Iterator[tuple[Parameter, dict[str, Any]]]:
    """Every extreme of every parameter, within a configuration in which it applies."""
    for parameter in space.parameters(arm):
        wanted = _conditions(space, arm, parameter)
        for value in parameter.distribution.extremes:
            given = {
                other.name: wanted.get(other.key, other.distribution.extremes[0]) for other in space.parameters(arm)
            }
            given[parameter.name] = value
            chosen = space.choose(arm, partial(_of, given))
            if parameter.key in chosen:
                yield parameter, chosen


def _of(given: dict[str, Any], parameter: Parameter) -> Any:
    return given[parameter.name]


def _conditions(space: SearchSpace, arm: Arm, parameter: Parameter) -> dict[str, Any]:
    """A value for each key that the parameter depends on, directly or not."""
    wanted = {key: as_list(value)[0] for key, value in parameter.distribution.when.items()}
    for other in reversed(space.parameters(arm)):
        if other.key in wanted and wanted[other.key] in other.distribution.extremes:
            wanted = {key: as_list(value)[0] for key, value in other.distribution.when.items()} | wanted
    return wanted


def _check_case(plan: Plan, arm: Arm, parameter: Parameter, chosen: dict[str, Any]) -> list[str]:
    key = parameter.key
    section = "baseline.space" if arm == "baseline" else "space"
    place = yaml_source.Places([yaml_source.read(SPACES / f"{plan.space.name}.yaml")], []).of([section, key])
    if key != "exp" and any(key == own or key.startswith(f"{own}.") for own in _OF_THE_STUDY):
        return [f"{place}: {section}.{key}: all trials of a study share it; make one study for each value"]
    if key == "exp" and chosen["exp"] not in spec.names():
        return [f"{place}: {section}.exp: no experiment is called so; {did_you_mean(chosen['exp'], spec.names())}"]
    if key.startswith("methods.") and "exp" in chosen:
        without = {name: value for name, value in chosen.items() if not name.startswith("methods.")}
        if (method := key.split(".")[1]) not in plan.spec(arm, without).methods:
            what = f"{chosen['exp']} has no {method}: the trial would add it; give it a `when: {{exp: ...}}`"
            return [f"{place}: {section}.{key}: {what}"]
    try:
        plan.spec(arm, chosen)
    except SpecError as error:
        others = {f"{word}:" for word in plan.words({k: v for k, v in chosen.items() if k != key})}
        own = [line for line in str(error).splitlines() if not any(word in line for word in others)]
        return [f"{place}: {section}.{key}: {line}" for line in own]  # the others are told where they are tried
    return []


def render(plan: Plan) -> str:
    """What a study would do, for `--plan`."""
    space, lines = plan.space, [f"study {plan.name}", plan.space.story, ""]
    for arm in space.arms:
        exp = space.baseline.exp if arm == "baseline" and space.baseline else plan.exp or "chosen by the search"
        lines.append(f"{arm}: {space.trials or 'as many as fit'} trials of {exp}")
        for parameter in space.parameters(arm):
            of = parameter.distribution
            when = f"  when {of.when}" if of.when else ""
            step = f", step {of.step:g}" if of.step else ""
            lines.append(f"  {parameter.key}: {of.kind} {list(getattr(of, of.kind))}{step}{when}")
    goals = ", ".join(f"{one.direction} {one.metric}" for one in space.objective)
    lines.append(f"{goals}; sampler {_named(space.sampler)}, pruner {_named(space.pruner)}, {space.workers} workers")
    if space.confirm:
        runs = space.confirm.top * len(space.confirm.seeds) * len(space.arms)
        lines.append(f"then at most {runs} runs on fresh seeds {space.confirm.seeds}, and the test split once")
    return "\n".join(lines)


def _named(chosen: dict[str, dict[str, Any]]) -> str:
    return " ".join(f"{name} {settings or ''}".strip() for name, settings in chosen.items())


def definition(plan: Plan) -> dict[str, Any]:
    """What makes a study that study: it cannot go on with another one. Its size and its engine may change."""
    space = plan.space.model_dump(mode="json", exclude=set(_FREE), exclude_none=True)
    arms = {arm: plan.spec(arm, plan.first(arm)) for arm in plan.space.arms}
    shared = {arm: _shared_settings(plan, arm, made) for arm, made in arms.items()}
    return {"space": plan.space.name, "exp": plan.exp, "definition": space, "spec": shared}


def _shared_settings(plan: Plan, arm: Arm, made: Spec) -> dict[str, Any]:
    """Every setting of the spec that trials do not choose."""
    searched = {parameter.key for parameter in plan.space.parameters(arm)}
    kept = {} if "exp" in searched else made.flat()
    places = ("output", "tracking")
    return {
        key: value
        for key, value in kept.items()
        if not any(key == own or key.startswith(f"{own}.") for own in (*searched, *places))
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each setting of two definitions that is not the same."""
    old, new = (dict(spec.flatten(one)) for one in (before, after))
    told = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key, _ABSENT) != new.get(key, _ABSENT):
            was, now = (json.dumps(one[key]) if key in one else "absent" for one in (old, new))
            told.append(f"{key}: {was} -> {now}")
    return told
