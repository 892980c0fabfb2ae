"""Greedy decoding: against transformers' own on one row, and independent of what stands beside a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness import notes
from harness.language import generation
from harness.models import padding_free
from tests.toys import VOCABULARY, language_model

PROMPTS = [[5, 9, 11], [7], [3, 3, 3, 8, 21, 40, 17], [30, 2, 6, 6, 9], [44, 45]]
FAMILIES = ("llama", "grouped", "gpt2")


def alone(model: Any, prompt: list[int], ends: set[int], most: int) -> list[int]:
    """Token by token from the beginning, without a cache: the definition."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most:
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_what_it_is_alone(family: str) -> None:
    model = language_model(family)
    ends = {int(alone(model, PROMPTS[0], set(), 4)[3]), 1}
    expected = [alone(model, prompt, ends, 9) for prompt in PROMPTS]
    assert len({len(text) for text in expected}) > 1, "rows end at different steps"
    assert generation.greedy(model, PROMPTS, ends, 9) == expected
    assert [generation.greedy(model, [prompt], ends, 9)[0] for prompt in PROMPTS] == expected
    assert generation.greedy(model, PROMPTS[::-1], ends, 9) == expected[::-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_transformers_generates(family: str) -> None:
    model: Any = language_model(family)
    for prompt in PROMPTS:
        given = torch.tensor([prompt])
        found = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=6, eos_token_id=1,
            pad_token_id=0,
        )  # fmt: skip
        written = found[0, len(prompt) :].tolist()
        expected = written[: written.index(1)] if 1 in written else written
        assert generation.greedy(model, [prompt], {1}, 6) == [expected]


def test_nothing_is_generated_beyond_the_limit_and_one_token_is_possible() -> None:
    model = language_model("llama")
    assert [len(text) for text in generation.greedy(model, PROMPTS, set(), 1)] == [1] * len(PROMPTS)
    first = alone(model, PROMPTS[0], set(), 1)[0]
    assert generation.greedy(model, PROMPTS[:1], {first}, 5) == [[]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_without_padding_leaves_it_alone(family: str) -> None:
    model = language_model(family)
    expected = generation.greedy(model, PROMPTS, {1}, 6)
    padding_free.attach(model, "always")
    with padding_free.running(model):
        assert generation.greedy(model, PROMPTS, {1}, 6) == expected


def test_a_model_without_a_cache_is_asked_row_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = language_model("llama")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)

    notes._told.clear()
    model = Forgetful().eval()
    expected = [alone(model.inner, prompt, {1}, 6) for prompt in PROMPTS]
    assert generation.greedy(model, PROMPTS, {1}, 6) == expected
    assert "texts are written one by one" in capsys.readouterr().err
    assert max(max(row, default=0) for row in expected) < VOCABULARY
