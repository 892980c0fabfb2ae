"""What a run writes down about itself: for its folder and for MLflow."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

from harness import storage
from harness.assembly import Assembled, Loaded
from harness.machine import device
from harness.results import footprint, report
from harness.selection import Selected
from harness.specs import yaml_source
from harness.specs.schema import Spec
from harness.tracking.tracker import Tracker

_TABLE = "test/samples.json"
"""Generated texts beside their references, where a task writes texts."""


def track_inputs(spec: Spec, loaded: Loaded, assembled: Assembled, seed: int, tracker: Tracker) -> None:
    """Every setting, the parameters and the data sets of a run, as MLflow shows them."""
    splits, count = loaded.splits, assembled.count
    tracker.params({**spec.flat(), "seed": seed, **device.describe()})
    tracker.metrics({"parameters/trainable": float(count.trainable), "parameters/total": float(count.total)})
    tracker.metrics({"parameters/share_of_full_fine_tuning": count.share})
    for split in (splits.train, splits.validation, splits.test):
        tracker.dataset(split.name, splits.source, split.digest, len(split.examples), split.name)


def write_inputs(spec: Spec, loaded: Loaded, assembled: Assembled, seed: int, precision: str, folder: Path) -> None:
    """What the run starts from; the start statement covers these files."""
    write_spec(spec, [seed], folder)
    storage.write_json(folder / "data.json", {**loaded.splits.report, "tokens": loaded.tokens})
    memory = {"memory_estimate_gib": footprint.estimate(assembled, spec, precision)}
    storage.write_json(folder / "parameters.json", {**report.parameters(assembled), **memory})
    storage.write_text(folder / "environment.txt", "\n".join(_installed()) + "\n")


@functools.cache
def _installed() -> list[str]:
    """Every distribution and its version; half a second, once for all runs of a process."""
    return sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)


def write_spec(spec: Spec, seeds: list[int], folder: Path) -> None:
    """spec.yaml: every setting, resolved; what a run that was stopped goes on with."""
    resolved = {**spec.resolved(), "seeds": seeds}
    storage.write_text(folder / "spec.yaml", yaml_source.dump(resolved))


def send_end(spec: Spec, headline: Iterable[str], folder: Path, scores: dict[str, float], tracker: Tracker) -> None:
    """Everything that is known at the end of a run, and its files, to the tracker."""
    tracker.metrics(scores, int(scores["train/steps"]))
    if (card := folder / "model_card.md").exists():
        tracker.tags({"mlflow.note.content": card.read_text(encoding="utf-8")})
    if (folder / _TABLE).exists():  # what MLflow's own `log_table` leaves
        tracker.tags({"mlflow.loggedArtifacts": json.dumps([{"path": _TABLE, "type": "table"}])})
    tracker.artifacts(folder, ignore=["checkpoints/*"])
    if model := spec.tracking.register_as:
        name, _, alias = model.partition("@")
        told = ", ".join(f"test/{key} {scores[f'test/{key}']:.4f}" for key in headline if f"test/{key}" in scores)
        tracker.register(name, alias, "weights", f"{folder.name}: {told}")
    tracker.finish("FINISHED")


def effort(spec: Spec, selected: Selected) -> dict[str, float]:
    """Where the best checkpoint was found, and what it took."""
    return {
        f"best/{spec.early_stopping.metric.replace('/', '_')}": selected.score or 0.0,
        "best/step": float(selected.step),
        "best/epoch": float(selected.epoch),
        "train/steps": float(selected.num_steps),
        "oom/events": float(selected.num_out_of_memory),
        "oom/seconds_lost": selected.seconds_lost,
        "memory/peak_gib": device.peak_memory_gib(),
        "time/train_s": selected.train_seconds,
        "train/examples_per_second": selected.num_examples / max(selected.train_seconds, 1e-9),
    }
