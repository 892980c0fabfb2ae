"""A study for those who read it: tables and sentences in Markdown and on the terminal, JSON, metrics, CSV."""

from __future__ import annotations

import csv
import io
import json
import shlex
import statistics
from dataclasses import asdict
from typing import Any

import numpy as np

from harness import storage
from harness.markdown import markdown_table, text_table
from harness.statistics import significance
from harness.sweeps.comparison import non_dominated
from harness.sweeps.facts import Facts, doubt, verdict
from harness.sweeps.trials import Arm, State, TrialRecord

_STATES: tuple[State, ...] = ("complete", "pruned", "infeasible", "failed")
_COSTS = {
    "parameters/trainable": ("trainable", "{:,.0f}"),
    "memory/peak_gib": ("peak GiB", "{:.2f}"),
    "time/train_s": ("train s", "{:.0f}"),
}


# --------------------------------------------------------------------------------------------------------------- tables


def search_table(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """How many trials ended how, the best value found, its settings, and what it cost."""
    rows = []
    for arm in facts.plan.space.arms:
        of, best = facts.trials_of(arm), facts.best(arm)
        counts = [str(sum(one.state == state for one in of)) for state in _STATES]
        value, settings = (f"{best.values[0]:.4f}", told(best.params)) if best else ("", "")
        minutes = sum(one.seconds for one in of) / 60
        rows.append([facts.name(arm), *counts, value, settings, f"{minutes:.1f}"])
    return ["search", *_STATES, f"best {facts.plan.space.objective[0].metric}", "with", "minutes"], rows


def confirmation_table(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Each confirmed configuration: what the search promised, what fresh seeds gave, and the difference."""
    rows = []
    for one in sorted(facts.confirmed, key=lambda one: (one.arm, -facts.sign * statistics.fmean(one.values.values()))):
        found = significance.mean_interval(list(one.values.values()))
        mark = " *" if facts.winners.get(one.arm) == one else ""
        rows.append(
            [
                facts.name(one.arm) + mark,
                told(one.params),
                f"{one.searched:.4f}",
                _spread(found),
                f"[{found.low:.4f}, {found.high:.4f}]",
                str(found.n),
                f"{facts.sign * (one.searched - found.mean):+.4f}",
            ]
        )
    return ["confirmed", "with", "search", "fresh seeds", "95 %", "n", "optimism"], rows


def test_table(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """The best confirmed configuration of each arm on the test split, and what it costs."""
    rows = []
    for arm, tested in facts.tested.items():
        found = significance.mean_interval([one[f"test/{facts.metric}"] for one in tested.scores])
        metrics = facts.winners[arm].metrics.values()
        costs = [form.format(statistics.fmean(one[key] for one in metrics)) for key, (_, form) in _COSTS.items()]
        low_high = f"[{found.low:.4f}, {found.high:.4f}]"
        rows.append([facts.name(arm), _spread(found), low_high, str(found.n), *costs, _p50(facts, arm)])
    titles = [title for title, _ in _COSTS.values()]
    return ["test split", facts.metric, "95 %", "n", *titles, "p50 ms (merged)"], rows


def _p50(facts: Facts, arm: Arm) -> str:
    """Median latency of one text at the greatest length measured."""
    rows = [row for row in facts.latency if row["variant"] in (arm, f"{arm} merged")]
    if not rows:
        return ""
    size, length = min(row["batch_size"] for row in rows), max(row["length"] for row in rows)
    cell = {row["variant"]: row["p50_ms"] for row in rows if (row["batch_size"], row["length"]) == (size, length)}
    merged = f" ({cell[f'{arm} merged']:.1f})" if f"{arm} merged" in cell else ""
    return f"{cell[arm]:.1f}{merged}"


def front_table(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """The trials that no other one beats in all objectives, best first by the first."""
    complete = [one for one in facts.trials if one.state == "complete"]
    objectives = facts.plan.space.objective
    is_best = non_dominated([one.values for one in complete], [str(one.direction) for one in objectives])
    front = [one for one, best in zip(complete, is_best, strict=True) if best]
    front.sort(key=lambda one: -facts.sign * one.values[0])
    rows = [[f"{one.arm} {one.number}", *(f"{value:.4g}" for value in one.values), told(one.params)] for one in front]
    return ["trial", *(one.metric for one in objectives), "with"], rows


# ---------------------------------------------------------------------------------------------------------------- texts


def render(facts: Facts, pages: list[str], ui: str, storage: str) -> str:
    """The report as Markdown; also the note of the study's run."""
    plan, space = facts.plan, facts.plan.space
    parts = [f"# Study {plan.name}", f"**{verdict(facts)}**", doubt(facts), space.story]
    if facts.tested:
        parts += ["## The best of each on the test split", markdown_table(*test_table(facts))]
    if facts.confirmed:
        parts += [
            "## Confirmed on fresh seeds",
            markdown_table(*confirmation_table(facts)),
            f"*: the best mean, judged on the test split, which {_others(facts)}. Optimism: what the search promised "
            "minus what fresh seeds gave; the best of many noisy values is too good.",
        ]
    if len(space.objective) > 1:
        parts += ["## Beaten by no other trial", markdown_table(*front_table(facts))]
    parts += [f"NOT CONFIRMED, left out: {told(one.params)}: {one.reason}" for one in facts.lost]
    parts += ["## The search", markdown_table(*search_table(facts)), _budget(facts)]
    for arm, one in facts.winners.items():
        exp = plan.exp_of(arm, one.params)
        given = [word for word in plan.overrides_of(arm, exp) if not word.startswith(("tracking.", "output="))]
        command = shlex.join(["python", "launch.py", f"exp={exp}", *given, *plan.words(one.params)])
        parts.append(f"The best of {facts.name(arm)} again, as a run of its own:\n\n    {command}")
    parts.append(f"Figures beside this file: {', '.join(pages)}.")
    parts.append(f"All runs: `{ui}`; trials: `optuna-dashboard {storage}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _others(facts: Facts) -> str:
    """What else met the test split: nothing, unless the study grew after a report."""
    if not facts.opened:
        return "nothing else was"
    many = "1 other configuration was" if facts.opened == 1 else f"{facts.opened} other configurations were"
    return f"{many} before the study grew: its scores there are a little too good, too"


def _budget(facts: Facts) -> str:
    seeds = facts.plan.spec("search", facts.plan.first("search")).seeds
    told = f"Every trial trains with seeds {seeds} on the same data."
    if facts.plan.space.baseline:
        counts = [len(facts.trials_of(arm)) for arm in facts.plan.space.arms]
        told += f" Trials of search and baseline: {counts[0]} and {counts[1]}."
    return told + "".join(f" NOT THE SAME for all experiments: {line}." for line in facts.plan.budgets())


def for_terminal(facts: Facts) -> str:
    """The same, short."""
    parts = [text_table(*search_table(facts))]
    parts += [text_table(*confirmation_table(facts))] if facts.confirmed else []
    parts += [text_table(*test_table(facts))] if facts.tested else []
    return "\n\n".join([*parts, verdict(facts), doubt(facts)])


def as_values(facts: Facts) -> dict[str, Any]:
    """The same for programs."""
    tables = {"search": search_table(facts), "confirmed": confirmation_table(facts), "test": test_table(facts)}
    named = {name: [dict(zip(columns, row, strict=True)) for row in rows] for name, (columns, rows) in tables.items()}
    shown = storage.finite(asdict(facts.difference)) if facts.difference else {}
    winners = {arm: list(one.runs.values()) for arm, one in facts.winners.items()}
    return {"study": facts.plan.name, "verdict": verdict(facts), "difference": shown, "winners": winners, **named}


def as_metrics(facts: Facts) -> dict[str, float]:
    """The numbers that the study's run shows in MLflow.

    Those of the search stand under the names that its trials use: of its best trial on the validation split, as means
    over the fresh seeds on the test split. Those of the baseline begin with `baseline/`.
    """
    found: dict[str, float] = {}
    for arm in facts.plan.space.arms:
        of, best, own = facts.trials_of(arm), facts.best(arm), {}
        found |= {f"study/{arm}_{state}": float(sum(one.state == state for one in of)) for state in _STATES}
        if best:
            objectives = {one.metric for one in facts.plan.space.objective}
            own = {key: value for key, value in best.metrics.items() if key in objectives or key in _COSTS}
        if arm in facts.tested:
            scores = [one[f"test/{facts.metric}"] for one in facts.tested[arm].scores]
            own |= {f"test/{facts.metric}": statistics.fmean(scores)}
            own |= {f"test/{facts.metric}_sd": statistics.stdev(scores)} if len(scores) > 1 else {}
        found |= own if arm == "search" else {f"baseline/{key.replace('/', '_')}": value for key, value in own.items()}
    if (told := facts.difference) is not None:
        ends = {"mean": told.mean, "low": told.interval[0], "high": told.interval[1]}
        found |= {f"test/difference_{key}": value for key, value in ends.items() if np.isfinite(value)}
    return found


def to_csv(trials: list[TrialRecord]) -> str:
    """One line per trial: its settings, values, costs and why it ended."""
    keys = list(dict.fromkeys(key for one in trials for key in one.params))
    costs = [*_COSTS]
    file = io.StringIO(newline="")
    table = csv.writer(file)
    table.writerow(["arm", "trial", "state", "value", *keys, "seconds", *costs, "run", "reason"])
    for one in trials:
        settings = [_plain(one.params.get(key)) for key in keys]
        values = [f"{value:.6g}" for value in one.values]
        spent = [f"{one.metrics[key]:.6g}" if key in one.metrics else "" for key in costs]
        row = [one.arm, one.number, one.state, " ".join(values), *settings, f"{one.seconds:.1f}", *spent, one.run]
        table.writerow([*row, one.reason])
    return file.getvalue()


def told(params: dict[str, Any]) -> str:
    """A configuration on one line, with the last part of each key where that is clear."""
    last = [key.rpartition(".")[2] for key in params]
    names = {key: part if last.count(part) == 1 else key for key, part in zip(params, last, strict=True)}
    return " ".join(f"{names[key]}={_plain(value)}" for key, value in params.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _spread(found: significance.Interval) -> str:
    return f"{found.mean:.4f} ± {found.sd:.4f}" if found.n > 1 else f"{found.mean:.4f}"
