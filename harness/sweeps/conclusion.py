"""The end of a study: the best confirmed configuration of each arm meets the test split, once; report and figures."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import assembly, checkpoint, evaluate, latency, liveness, registry, storage
from harness.errors import StorageError
from harness.evaluate import Evaluator
from harness.results import deployment
from harness.session import Session
from harness.sweeps import figures, report
from harness.sweeps.facts import Facts, OnTest
from harness.sweeps.plan import Plan, trial_spec
from harness.sweeps.study import Study
from harness.sweeps.trials import Arm, Confirmed, TrialRecord
from harness.sweeps.worker import drop_checkpoints, run_name
from harness.tracking import stores
from harness.tracking.tracker import Tracker

_CONCLUDED = "concluded"
"""What is remembered of the study when its report is made."""


def conclude(plan: Plan, study: Study, session: Session, tracker: Tracker) -> None:
    """Judge what was confirmed on the test split, write report and figures, and record them in the study's run.

    On the first process only. What was judged before is read, not opened again.
    """
    folder, space = study.folder, plan.space
    trials = [one for arm in space.arms for one in study.records(arm)]
    again = latest(study.records("confirm"))
    confirmed, lost = confirmed_of(again), [one for one in again if one.state != "complete"]
    winners = {arm: best for arm in space.arms if (best := winner(plan, [one for one in confirmed if one.arm == arm]))}
    tested = {arm: _tested(plan, session, folder, one) for arm, one in winners.items()}
    opened = _opened_before(folder, winners)
    times = _latency(plan, session, folder, winners)
    facts = Facts(plan, trials, confirmed, winners, tested, times, lost, opened)
    objectives = [(one.metric, str(one.direction)) for one in space.objective]
    scales = {parameter.key: parameter.distribution.scale for parameter in space.parameters("search")}
    importances = study.importances()
    pages = figures.write(folder, trials, confirmed, objectives, scales, importances)
    text = report.render(facts, pages, stores.ui_command(session.spec.tracking.uri, session.output), study.store.shown)
    storage.write_text(folder / "report.md", text)
    storage.write_json(folder / "report.json", report.as_values(facts))
    storage.write_text(folder / "trials.csv", report.to_csv(trials))
    tracker.metrics(report.as_metrics(facts), len(trials))  # a study may grow
    tracker.tags({"mlflow.note.content": text})
    tracker.artifacts(folder, ignore=["journal.log*", "locks/*", "*.lock", "worker-*.log", "test/*"])
    study.remember(_CONCLUDED, str(_progress(study)))
    _clear_given_up(plan, session, trials)
    session.terminal.say()
    session.terminal.say(report.for_terminal(facts))
    session.terminal.say(f"\nreport  {folder / 'report.md'}, with {', '.join(pages)}")
    tracker.finish()
    if tracker.problem:
        session.terminal.say(f"NOTE    {tracker.problem}")
    session.terminal.say(f"MLflow  {stores.ui_command(session.spec.tracking.uri, session.output)}")


def is_concluded(study: Study) -> bool:
    """Whether the report was made of all trials that the study has now."""
    return study.recall(_CONCLUDED) == str(_progress(study))


def _progress(study: Study) -> dict[str, int]:
    return {stage: len(study.records(stage)) for stage in (*study.space.arms, "confirm")}


def _opened_before(folder: Path, winners: dict[Arm, Confirmed]) -> int:
    """How many other configurations met the test split in earlier reports, before the study grew."""
    now = {run for one in winners.values() for run in one.runs.values()}
    judged = {file.stem for file in (folder / "test").glob("*.json")} - now
    return len({run.rpartition("-seed")[0] for run in judged})


def _clear_given_up(plan: Plan, session: Session, trials: list[TrialRecord]) -> None:
    """End the runs of trials whose process was killed every time, and remove what nobody goes on with."""
    names = {run_name(plan, one.arm, one.number) for one in trials if one.state == "failed" and not one.run}
    for name in names:
        drop_checkpoints(session, name)
    with suppress(StorageError):  # a server that is away: `harness runs reap` does it
        for _ in liveness.reap(session.output, session.spec.tracking.uri, only=names) if names else ():
            pass


def latest(records: list[TrialRecord]) -> list[TrialRecord]:
    """The last try of each configuration on each seed: one that failed may have been trained again."""
    return list({(one.arm, one.params["number"], one.params["seed"]): one for one in records}.values())


def confirmed_of(records: list[TrialRecord]) -> list[Confirmed]:
    """The trials of the confirmation, by configuration; a configuration with a seed that failed is left out."""
    grouped: dict[tuple[Arm, int], list[TrialRecord]] = {}
    for one in records:
        grouped.setdefault((one.arm, one.params["number"]), []).append(one)
    found = []
    for (arm, number), of in grouped.items():
        if all(one.state == "complete" for one in of):
            by_seed = {one.params["seed"]: one for one in of}
            chosen, searched = of[0].params["chosen"], of[0].params["searched"]
            values = {seed: one.values[0] for seed, one in by_seed.items()}
            runs = {seed: one.run for seed, one in by_seed.items()}
            metrics = {seed: one.metrics for seed, one in by_seed.items()}
            found.append(Confirmed(arm, number, chosen, searched, values, runs, metrics))
    return found


def winner(plan: Plan, confirmed: list[Confirmed]) -> Confirmed | None:
    """The configuration with the best mean over the fresh seeds; None: nothing was confirmed."""
    pick = max if plan.space.objective[0].direction == "maximize" else min
    return pick(confirmed, key=lambda one: float(np.mean(list(one.values.values()))), default=None)


def _tested(plan: Plan, session: Session, folder: Path, one: Confirmed) -> OnTest:
    """Predictions and scores of each seed's run on the test split."""
    judged: list[dict[str, Any]] = []
    for seed, run in one.runs.items():
        file = folder / "test" / f"{run}.json"
        if not file.exists():
            session.terminal.say(f"test split: {run}")
            storage.write_json(file, _judge(plan, session, one, seed, run))
        judged.append(json.loads(file.read_text(encoding="utf-8")))
    on_test, first = OnTest(list(one.runs), [found["scores"] for found in judged]), judged[0]
    if "predicted" not in first:
        return on_test
    predicted, labels = np.asarray([found["predicted"] for found in judged]), np.asarray(first["labels"])
    return replace(on_test, predicted=predicted, labels=labels, num_labels=len(first["label_names"]))


def _judge(plan: Plan, session: Session, one: Confirmed, seed: int, run: str) -> dict[str, Any]:
    of = session.of(trial_spec(plan, one.arm, one.params, [f"seeds=[{seed}]"]), tags={}, terminal=session.terminal)
    model = _load(of, seed, run)
    metrics = {name: registry.build("metric", name, settings) for name, settings in of.spec.metrics.items()}
    predictions = Evaluator(of.accelerator, of.terminal.say).predict_alone(model.model, of.loaded.task, "test")
    return {"scores": evaluate.score(predictions, metrics, "test"), **(predictions.items() or {})}


def _load(session: Session, seed: int, run: str) -> assembly.Assembled:
    """A confirmed run's model, as it was saved. Raises StorageError if that was on another machine."""
    folder = session.output / "runs" / run
    if not (folder / "weights").is_dir():
        fix = "copy its folder from the machine that trained it, or let all share `output`; then the same command again"
        raise StorageError(f"the weights of {run} are not here", where=str(folder), fix=fix)
    assembled = assembly.assemble(session.spec, session.loaded, seed)
    checkpoint.restore(assembled.model, checkpoint.load(folder / "weights"))
    assembled.model.to(session.accelerator.device).eval()
    return assembled


def _latency(plan: Plan, session: Session, folder: Path, winners: dict[Arm, Confirmed]) -> list[dict[str, Any]]:
    """What a prediction costs: the winners taking turns, merged too where a method merges. [] where it is not asked."""
    measured = folder / "latency" / "of.json"
    runs = {arm: list(one.runs.values()) for arm, one in winners.items()}
    if measured.exists() and json.loads(measured.read_text(encoding="utf-8")) != runs:
        shutil.rmtree(folder / "latency")  # the study has grown, others won
    file = folder / "latency" / "latency.json"
    asked = plan.spec("search", plan.first("search")).latency
    if winners and asked.measure and not file.exists():
        variants: dict[str, Any] = {}
        for arm, one in winners.items():
            seed, run = next(iter(one.runs.items()))
            of = session.of(trial_spec(plan, arm, one.params, [f"seeds=[{seed}]"]), tags={}, terminal=session.terminal)
            assembled = _load(of, seed, run)
            variants[arm] = assembled.model
            if assembled.merges:
                variants[f"{arm} merged"] = deployment.merged(assembled)
        session.terminal.say(f"latency of {', '.join(variants)}")
        settings = deployment.readable(asked, next(iter(variants.values())), session.terminal)
        calls, device = deployment.calls(variants), session.accelerator.device
        with session.accelerator.autocast():
            rows = latency.measure(calls, session.loaded.task.example, settings, device)
        latency.write(rows, folder / "latency")
        storage.write_json(measured, runs)
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return found
