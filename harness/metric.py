"""The contract of a metric: predictions in, numbers out, and files for people to look at."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from harness.predictions import Predictions
from harness.settings import Settings

History = dict[str, list[tuple[int, float]]]
"""Metric name -> (step, value) in order."""

P = TypeVar("P", bound=Predictions)


class Metric(Settings, Generic[P]):
    """One metric: its settings are its fields. `P` is what it reads: the predictions of the tasks it is for.

    `produces` lists the keys `compute` returns whatever the data, so that a spec which monitors a metric that never
    appears is refused before training; keys that depend on the labels may come on top.
    """

    produces: ClassVar[tuple[str, ...]] = ()
    less_is_better: ClassVar[tuple[str, ...]] = ()
    """Those of its keys that are losses or errors."""
    per_token: ClassVar[bool] = False
    """Whether its numbers hold for the tokens they were counted over: another tokenizer is another scale."""

    def compute(self, predictions: P) -> dict[str, float]:
        """Numbers over one whole split, from pooled counts, never averaged over batches. Keys are without the split."""
        return {}

    def section(self, predictions: P) -> str:
        """A section of the model card, in Markdown, for the test split. Default: none."""
        return ""

    def write(self, predictions: P, folder: Path) -> None:
        """Files for people and tools (tables, figures); called once, for the test split. Default: none."""


def key_suffixes(names: Sequence[str], reserved: Collection[str]) -> list[str]:
    """Names of labels as parts of metric names: letters, digits, `_ - . space`, at most 100, all different.

    What else a label holds becomes `_`; a label that would then share its name with an earlier one, or with a
    `reserved` one (an average: a label called `macro`), gets `_2`, `_3` and so on. MLflow allows 250 characters for the
    whole name.
    """
    taken, suffixes = set(reserved), []
    for name in names:
        suffix = plain = re.sub(r"[^\w.\- ]", "_", name)[:100]
        number = 2
        while suffix in taken:
            suffix, number = f"{plain}_{number}", number + 1
        taken.add(suffix)
        suffixes.append(suffix)
    return suffixes
