from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from harness.console import Terminal
from harness.evaluate import Evaluator
from harness.latency import Latency
from harness.predictions import Classified
from harness.results.deployment import merge_changes, readable
from tests.toys import ToyTask, classifier


def test_latency_is_measured_only_at_lengths_the_model_reads(capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier("roberta")  # 64 positions
    assert readable(Latency(lengths=[16, 64]), model, Terminal()).lengths == [16, 64]
    assert readable(Latency(lengths=[16, 600]), model, Terminal()).lengths == [16]
    assert "NOTE latency at [16] tokens only: the model reads 64" in capsys.readouterr().out


class OneWeight(nn.Module):
    """Its logits are its weight, whatever the input."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))


class FixedTask(ToyTask):
    """Predicts what the model holds."""

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Classified:
        scores = model.get_parameter("logits").detach().double().numpy()
        return Classified(np.zeros(len(scores), dtype=np.int64), scores, ["a", "b"], [])


def test_merge_changes_are_the_largest_difference_and_the_flipped_labels() -> None:
    model = OneWeight([[1.0, 0.0], [0.2, 0.1], [0.0, 2.0]])
    merged = copy.deepcopy(model)
    with torch.no_grad():
        merged.logits.copy_(torch.tensor([[1.0, 0.25], [0.1, 0.2], [0.5, 2.0]]))
    before = FixedTask().predict(model, "test", range(3), 1)
    changes = merge_changes(FixedTask(), model, merged, before, Evaluator(Accelerator(cpu=True)))
    assert changes == {"merge/max_logit_difference": 0.5, "merge/label_flips": 1.0}
