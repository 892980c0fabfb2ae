"""Greedy decoding of many prompts at once, so that none of them depends on which others stand beside it.

Prompts are padded on the left; positions count from the first real token, and attention never sees padding. Keys and
values of earlier tokens are kept, so a new token costs one forward pass over one token of each row; a row that ended
leaves the batch. What a model writes is then a matter of its row alone, up to the rounding of a matrix product whose
size differs: it decides between tokens that are as likely to the last digits. Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from harness import notes


@torch.inference_mode()
def greedy(model: nn.Module, prompts: list[list[int]], ends: Collection[int], max_new_tokens: int) -> list[list[int]]:
    """The most likely next tokens of each prompt, up to the first end, which is left out.

    A model that puts tokens of its own before the prompt, or keeps nothing, is asked for one row at a time, from the
    beginning for each token; a note says so.

    Args:
        model: a causal language model in evaluation mode.
        prompts: at least one token each; forwarded together.
        ends: the tokens that end a text.
        max_new_tokens: of each; a text that did not end is cut there.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts], device=device)  # [B, T]
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    logits, cache = _step(model, ids, mask, None)
    if cache is None or cache.get_seq_length() != longest:
        notes.note(f"{type(model).__name__} keeps no keys and values of its own input: texts are written one by one")
        return [_one_by_one(model, row, ends, max_new_tokens) for row in prompts]
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for number in range(max_new_tokens):
        chosen = logits.argmax(-1)  # [B]
        going = [i for i, token in enumerate(chosen.tolist()) if token not in ends]
        for i in going:
            written[rows[i]].append(int(chosen[i]))
        if not going or number + 1 == max_new_tokens:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            chosen, mask, rows = chosen[kept], mask[kept], [rows[i] for i in going]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits, cache = _step(model, chosen[:, None], mask, cache)
    return written


def _step(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits of what follows the last token [B, V], and the cache with these tokens."""
    known = inspect.signature(model.forward).parameters
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
    inputs |= {"position_ids": positions} if "position_ids" in known else {}
    inputs |= {"past_key_values": cache} if cache is not None else {}
    inputs |= {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    output = model(**inputs)
    found = getattr(output, "past_key_values", None)
    return output.logits[:, -1].float(), found if hasattr(found, "batch_select_indices") else None


def _one_by_one(model: nn.Module, prompt: list[int], ends: Collection[int], max_new_tokens: int) -> list[int]:
    device, ids = next(model.parameters()).device, list(prompt)
    for _ in range(max_new_tokens):
        given = torch.tensor([ids], device=device)
        token = int(model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


@torch.inference_mode()
def sees_ahead(model: nn.Module, ids: list[int]) -> bool:
    """Whether the logits of a token depend on the last one, which follows it. The model is left in evaluation mode."""
    one = torch.tensor([ids, [*ids[:-1], ids[0]]], device=next(model.parameters()).device)
    logits = model.eval()(input_ids=one, attention_mask=torch.ones_like(one)).logits[:, :-1]
    return ids[-1] != ids[0] and not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4)
