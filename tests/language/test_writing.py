"""What a model writes on: the distribution it samples from, and the likelihood it is told to have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.language.writing import write_on


class Fixed(nn.Module):
    """The same logits after every token, less for the token that was last. Remembers how much it saw."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.seen: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.seen.append(input_ids.shape[1])
        logits = self.logits.expand(*input_ids.shape, -1).clone()

        class Output:
            pass

        output: Any = Output()
        output.logits = logits
        return output


LOGITS = [math.log(share) for share in (0.5, 0.25, 0.15, 0.1)]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_in_the_shares_of_the_softmax(temperature: float) -> None:
    """Within 6.2 standard deviations; their likelihoods are those at temperature 1."""
    number = 4000
    tokens, nats = write_on(Fixed(LOGITS), torch.zeros(1, 1, dtype=torch.long), number, temperature, [], 8, [5])
    shares = torch.tensor(LOGITS).double().div(temperature).softmax(0).numpy()
    counts = np.bincount(tokens[0], minlength=4)
    assert (abs(counts - number * shares) < 6.2 * np.sqrt(number * shares * (1 - shares))).all()
    np.testing.assert_allclose(nats[0], -np.array(LOGITS)[tokens[0]], rtol=1e-6)


def test_what_is_forbidden_is_never_written() -> None:
    tokens, _ = write_on(Fixed(LOGITS), torch.zeros(2, 1, dtype=torch.long), 300, 1.0, [0, 3], 8, [1, 2])
    assert set(tokens.flatten().tolist()) == {1, 2}


def test_a_prompt_has_its_own_numbers_and_the_model_a_window() -> None:
    model = Fixed(LOGITS)
    both, _ = write_on(model, torch.tensor([[1, 2, 3], [3, 2, 1]]), 20, 1.0, [], 6, [8, 9])
    assert model.seen == [3, 4, 5, *[6] * 17]
    alone, _ = write_on(model, torch.tensor([[3, 2, 1]]), 20, 1.0, [], 6, [9])
    assert alone[0].tolist() == both[1].tolist() != both[0].tolist()
