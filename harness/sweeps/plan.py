"""What a study would do: the spec of each configuration, what is shown of it, and what makes it that study."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.specs import composing, schema, spec
from harness.specs.schema import Spec
from harness.sweeps.distribution import as_list
from harness.sweeps.space import SearchSpace
from harness.sweeps.trials import Arm

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
_LENGTH = ("train.epochs", "train.max_steps", "train.batch_size", "evaluation.every", "early_stopping.patience")
"""What a trial may take."""
_ABSENT = object()


@dataclass(frozen=True)
class Plan:
    """A search space held against the experiments it searches."""

    space: SearchSpace
    exp: str | None
    """The experiment that is searched; None: the search chooses."""
    overrides: list[str]
    """Of the command line, for every trial and for the baseline; one of a method's settings, only where it is used."""

    @property
    def name(self) -> str:
        """Of the study."""
        return self.space.study or "-".join(filter(None, [self.space.name, self.exp]))[:40]

    def spec(self, arm: Arm, chosen: dict[str, Any], own: list[str] | None = None) -> Spec:
        """The spec of a configuration: overrides of the command line, then what was chosen, then `own`.

        Raises:
            SpecError: it is not a valid one.
        """
        exp = self.exp_of(arm, chosen)
        return spec.load(exp, [*self.overrides_of(arm, exp), *self.words(chosen), *(own or [])])

    def exp_of(self, arm: Arm, chosen: dict[str, Any]) -> str:
        """The experiment of a configuration."""
        return str(chosen.get("exp") or self._given(arm))

    def overrides_of(self, arm: Arm, exp: str) -> list[str]:
        """The overrides of the command line that hold for an experiment."""
        return [one for one in self.overrides if self._fits(one, arm, exp)]

    def _given(self, arm: Arm) -> str | None:
        return self.space.baseline.exp if arm == "baseline" and self.space.baseline else self.exp

    def _fits(self, override: str, arm: Arm, exp: str) -> bool:
        """Whether an override holds for an experiment: no method's settings add it to the baseline, or to a choice."""
        is_named = arm == "search" and exp == self.exp
        return is_named or (method := method_of(override)) is None or method in self.methods[exp]

    def experiments(self, arm: Arm) -> list[str]:
        """Those of an arm: one, or the choices of the search."""
        given = self._given(arm)
        entries = self.space.space.get("exp", []) if given is None else []
        return [given] if given else [str(value) for entry in entries for value in entry.extremes]

    def named(self, arm: Arm, exp: str) -> str:
        """What a person calls an experiment of an arm: one that is its own baseline has two names."""
        baseline = self.space.baseline
        return f"{exp} (search)" if arm == "search" and baseline and exp == baseline.exp else exp

    def size(self, arm: Arm) -> str:
        """How many trials of what, for people."""
        exp, *others = self.experiments(arm)
        of = "experiments that the search chooses" if others else self.named(arm, exp)
        return f"{_several(self.space.size(arm), 'trial')} of {of}"

    @cached_property
    def methods(self) -> dict[str, list[str]]:
        """The methods of each experiment, as its file has them."""
        known = set(spec.names())
        asked = {name for arm in self.space.arms for name in self.experiments(arm)}
        return {name: list(spec.load(name).methods) for name in sorted(asked & known)}

    def budgets(self) -> list[str]:
        """Settings of a trial's length in which the experiments differ although nothing searches them, one line each.

        Such as `train.epochs: 5 (lora), 3 (full_finetune)`.
        """
        made = {exp: self.spec(arm, {"exp": exp}).flat() for arm in self.space.arms for exp in self.experiments(arm)}
        searched = {parameter.key for arm in self.space.arms for parameter in self.space.parameters(arm)}
        values = {key: {exp: flat.get(key) for exp, flat in made.items()} for key in _LENGTH if key not in searched}
        return [
            f"{key}: {', '.join(f'{value} ({exp})' for exp, value in of.items())}"
            for key, of in values.items()
            if len(set(map(str, of.values()))) > 1
        ]

    @property
    def measures_latency(self) -> bool:
        """Whether trials have to measure latency: an objective or a constraint asks for it."""
        asked = [*(one.metric for one in self.space.objective), *self.space.constraints]
        return any(metric.startswith("latency/") for metric in asked)

    @property
    def keeps_by_objective(self) -> bool:
        """Whether trials keep their best checkpoint by the first objective: the command line does not say otherwise."""
        return not any(one.lstrip("+~").startswith("early_stopping") for one in self.overrides)

    def first(self, arm: Arm) -> dict[str, Any]:
        """Some configuration of an arm."""
        return self.space.choose(arm, lambda parameter: parameter.distribution.extremes[0])

    @staticmethod
    def words(chosen: dict[str, Any]) -> list[str]:
        """What was chosen, as one types it."""
        return [composing.override(key, value) for key, value in chosen.items() if key != "exp"]


def trial_spec(plan: Plan, arm: Arm, chosen: dict[str, Any], own: list[str]) -> Spec:
    """The spec of a trial: its configuration, in the study's MLflow experiment, measured as far as the study asks.

    The checkpoint that is kept is the best by the first objective, unless the command line says otherwise.
    """
    first, kept = plan.space.objective[0], list[str]()
    if plan.keeps_by_objective:
        kept = [f"early_stopping.metric={first.metric}", f"early_stopping.direction={first.direction}"]
    quick = [*kept, f"latency.measure={str(plan.measures_latency).lower()}", "evaluation.baselines=false"]
    made = plan.spec(arm, chosen, [*quick, *own])
    if made.tracking.experiment:
        return made
    return made.model_copy(update={"tracking": made.tracking.model_copy(update={"experiment": plan.name})})


def method_of(override: str) -> str | None:
    """The method whose settings an override gives, or removes; None: it is about something else."""
    section, _, rest = override.lstrip("~+").split("=", 1)[0].partition(".")
    return rest.split(".")[0] if section == "methods" and rest else None


def render(plan: Plan) -> str:
    """What a study would do, for `--plan`."""
    space, lines = plan.space, [f"study {plan.name}", plan.space.story, ""]
    for arm in space.arms:
        lines.append(f"{arm}: {plan.size(arm)}")
        for parameter in space.parameters(arm):
            of = parameter.distribution
            when = "".join(f"  when {key} = {_either(value)}" for key, value in of.when.items())
            step = f", step {of.step:g}" if of.step else ""
            lines.append(f"  {parameter.key}: {of.kind} {list(getattr(of, of.kind))}{step}{when}")
    goals = ", ".join(f"{one.direction} {one.metric}" for one in space.objective)
    lines.append(
        f"{goals}; sampler {_named(space.sampler)}, pruner {_named(space.pruner)}, {_several(space.workers, 'worker')}"
    )
    kept = f"by {space.objective[0].metric}" if plan.keeps_by_objective else "as early_stopping says"
    patience = [plan.spec(arm, plan.first(arm)).early_stopping.patience for arm in space.arms]
    early = ", and stops early," if all(patience) else ", and may stop early," if any(patience) else ""
    lines.append(f"each trial keeps its best checkpoint{early} {kept}")
    lines += [f"NOTE not the same for all experiments: {line}" for line in plan.budgets()]
    runs = space.confirm.top * len(space.confirm.seeds) * len(space.arms) if space.confirm else 0
    if space.confirm:
        lines.append(f"then at most {runs} runs on fresh seeds {space.confirm.seeds}, and the test split once")
    seeds = len(plan.spec("search", plan.first("search")).seeds)
    sizes = [space.size(arm) for arm in space.arms]
    if None not in sizes:
        lines.append(f"in all at most {seeds * sum(filter(None, sizes)) + runs} trainings")
    return "\n".join(lines)


def as_values(plan: Plan) -> dict[str, Any]:
    """The same for programs: what makes the study that study, its sizes, and what is not the same for all."""
    sizes = {arm: plan.size(arm) for arm in plan.space.arms}
    return {"study": plan.name, **definition(plan), "sizes": sizes, "notes": plan.budgets()}


def _several(number: int | None, what: str) -> str:
    return f"{number or 'as many as fit'} {what}{'s' * (number != 1)}"


def _either(value: Any) -> str:
    return " or ".join(map(str, as_list(value)))


def _named(chosen: dict[str, dict[str, Any]]) -> str:
    return " ".join(f"{name} {settings or ''}".strip() for name, settings in chosen.items())


def definition(plan: Plan) -> dict[str, Any]:
    """What makes a study that study: it cannot go on with another one. Its size and its engine may change."""
    space = plan.space.model_dump(mode="json", exclude=set(_FREE), exclude_none=True)
    shared = {arm: {exp: _shared(plan, arm, exp) for exp in plan.experiments(arm)} for arm in plan.space.arms}
    return {"space": plan.space.name, "exp": plan.exp, "definition": space, "spec": shared}


def _shared(plan: Plan, arm: Arm, exp: str) -> dict[str, Any]:
    """Every setting of an experiment that trials do not choose."""
    searched = [parameter.key for parameter in plan.space.parameters(arm)]
    return {
        key: value
        for key, value in plan.spec(arm, {"exp": exp}).flat().items()
        if not any(key == own or key.startswith(f"{own}.") for own in (*searched, "output", "tracking"))
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each setting of two definitions that is not the same."""
    old, new = (dict(schema.flatten(one)) for one in (before, after))
    told = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key, _ABSENT) != new.get(key, _ABSENT):
            was, now = (json.dumps(one[key]) if key in one else "absent" for one in (old, new))
            told.append(f"{key}: {was} -> {now}")
    return told
