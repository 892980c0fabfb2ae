"""The harness's own training loop without tracking, validation and checkpoints: what the benchmarks time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from harness import assembly, train
from harness.machine import processes, threads
from harness.specs import spec
from harness.train import Step


@dataclass(frozen=True)
class Started:
    """An experiment before its first step."""

    loaded: assembly.Loaded
    assembled: assembly.Assembled
    accelerator: Accelerator
    steps: Iterator[Step]


def start(experiment: str, overrides: Sequence[str] = (), loaded: assembly.Loaded | None = None) -> Started:
    """Make an experiment ready to train; always the same seed, hence the same batches.

    Args:
        experiment: its name.
        overrides: key=value.
        loaded: data and tokens of an earlier one that shares them.
    """
    threads.bound_caches()
    chosen = spec.load(experiment, list(overrides))
    loaded = loaded or assembly.load(chosen)
    assembled = assembly.assemble(chosen, loaded, 0)
    accelerator, generator = processes.build_accelerator("no"), torch.Generator().manual_seed(0)
    methods = list(assembled.methods.values())
    training = train.Training(assembled.model, loaded.task, methods, chosen.train, accelerator, generator)
    return Started(loaded, assembled, accelerator, training.steps())
