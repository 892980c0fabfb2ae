"""What follows training: the best checkpoint is judged, made smaller, measured and described, as the spec asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness import evaluate
from harness.assembly import Assembled
from harness.evaluate import Evaluator
from harness.metric import Metric
from harness.results import deployment, record, report, variants
from harness.selection import Selected
from harness.session import Session
from harness.yardsticks import baselines


@dataclass(frozen=True)
class Judged:
    """What a run reached."""

    scores: dict[str, float]
    headline: tuple[str, float]
    """The score that is told first."""
    ladder: list[list[str]] = field(default_factory=list)
    """The task's headline among its yardsticks; empty where the test split was not opened."""


def judge(
    session: Session, name: str, assembled: Assembled, selected: Selected, metrics: dict[str, Metric[Any]],
    evaluator: Evaluator, signed_by: str,
) -> Judged:  # fmt: skip
    """Score the model, which holds the best checkpoint, and write what the run leaves about it into its folder.

    On all processes; the first one writes. Only `evaluation.final=test` opens the test split.
    """
    spec, loaded, folder = session.spec, session.loaded, session.output / "runs" / name
    is_first, terminal = session.accelerator.is_main_process, session.terminal
    scores, best = record.effort(spec, selected), (f"best {spec.early_stopping.metric}", selected.score or 0.0)
    if is_first:
        report.write_history(selected.history, selected.step, folder)
    if spec.evaluation.final != "test":
        scores |= selected.best_scores | {"parameters/trainable": float(assembled.count.trainable)}
        if is_first and spec.latency.measure:
            scores |= deployment.measure_latency(spec, loaded.task, assembled, evaluator, terminal)
        return Judged(scores, best)
    predictions = evaluator.predict(assembled.model, loaded.task, "test")
    scores = evaluate.score(predictions, metrics, "test") | scores
    scores["oom/evaluation_events"] = float(evaluator.num_out_of_memory)
    if not is_first:
        return Judged(scores, best)
    evaluate.write(predictions, metrics, folder / "test")
    scores |= deployment.deploy(spec, loaded.task, assembled, predictions, evaluator, folder, terminal)
    compressed = variants.judge(spec, loaded.task, assembled, metrics, session.accelerator, folder, terminal)
    scores |= compressed.scores
    if spec.evaluation.baselines and not session.yardsticks:
        known = loaded.task.yardsticks(loaded.splits, spec.data, spec.model)
        session.yardsticks.extend(baselines.measure(known, terminal.say))
    own = evaluate.headline(loaded.task, predictions)
    ladder = report.score_rows(own, session.yardsticks, name)
    report.learning_curves(selected.history, selected.step, loaded.task.headline, folder)
    told = signed_by, "\n\n".join([*filter(None, [compressed.section]), *evaluate.sections(predictions, metrics)])
    report.write_card(report.model_card(spec, loaded, assembled, name, own, ladder, scores, *told), folder)
    selecting = f"test/{spec.early_stopping.metric.rpartition('/')[2]}"
    first, value = next(iter(own.items()))
    headline = selecting if selecting in scores else f"test/{first}"
    return Judged(scores, (headline, scores.get(headline, value)), ladder)
