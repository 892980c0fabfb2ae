"""Several texts of a batch in one row, each of them alone: positions begin anew, attention keeps to its own text.

    input_ids       a a a b b . | c c c c c c         . is padding
    position_ids    0 1 2 0 1 0 | 0 1 2 3 4 5
    attention       token i sees j where j <= i and both are of one text

What a model computes for a text is what it computes for that text in a row of its own, up to rounding. A layout, not
another batch: which texts make an optimizer step, and what its loss is averaged over, stay as they are.
Legend: B texts, T tokens of the longest, R rows, P tokens of the fullest.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import losses
from harness.batch import Batch

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Laid:
    """The tokens of a batch as a model is given them."""

    inputs: dict[str, Tensor]
    labels: Tensor
    """[R, P]"""
    owner: Tensor
    """The text of each token, a row number of the batch; -1: padding. [R, P]"""


def plain(batch: Batch) -> Laid:
    """One text per row, padded on the right."""
    inputs = {name: tensor for name, tensor in batch.per_token.items() if name != "labels"}
    real = inputs["attention_mask"] != 0
    rows = torch.arange(len(batch), device=real.device)[:, None].expand_as(real)
    return Laid(inputs, batch.per_token["labels"], rows.masked_fill(~real, -1))


def pack(batch: Batch, capacity: int, dtype: torch.dtype) -> Laid:
    """At most `capacity` tokens per row (or one longer text); `dtype`: of the additive attention mask."""
    ids, labels = batch.per_token["input_ids"], batch.per_token["labels"]
    lengths, packed = batch.lengths.tolist(), rows_of(batch.lengths.tolist(), capacity)
    width = max(sum(lengths[text] for text in row) for row in packed)
    of = {
        "ids": ids.new_zeros(len(packed), width), "labels": labels.new_full((len(packed), width), losses.IGNORE),
        "positions": ids.new_zeros(len(packed), width), "owner": ids.new_full((len(packed), width), -1),
    }  # fmt: skip
    for row, texts in enumerate(packed):
        start = 0
        for text in texts:
            place = slice(start, start := start + lengths[text])
            of["ids"][row, place] = ids[text, : lengths[text]]
            of["labels"][row, place] = labels[text, : lengths[text]]
            of["positions"][row, place] = torch.arange(lengths[text], device=ids.device)
            of["owner"][row, place] = text
    owner = of["owner"]
    sees = (owner[:, :, None] == owner[:, None, :]).tril()  # [R, P, P]; padding sees padding, so that no row is empty
    bias = torch.zeros(sees.shape, dtype=dtype, device=ids.device).masked_fill_(~sees, torch.finfo(dtype).min)
    inputs = {"input_ids": of["ids"], "position_ids": of["positions"], "attention_mask": bias[:, None]}
    return Laid(inputs, of["labels"], owner)


def rows_of(lengths: list[int], capacity: int) -> list[list[int]]:
    """Which texts share a row: the longest first, each into the first row with room (first fit decreasing)."""
    rows: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = next((row for row, left in enumerate(room) if lengths[text] <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(text)
        room[row] -= lengths[text]
    return rows


def scores(logits: Tensor, labels: Tensor, owner: Tensor, texts: int) -> tuple[Tensor, Tensor]:
    """Of each text the summed negative log-likelihood [B]; number of targets, and of those that came first [2, B].

    logits: [R, P, V]; labels, owner: [R, P]. On the CPU, sums in float64.
    """
    learnt = labels != losses.IGNORE
    truth, owner = labels[learnt], owner[learnt].cpu()
    nll = F.cross_entropy(logits[learnt].float(), truth, reduction="none").double().cpu()
    counts = torch.stack([torch.ones_like(owner), (logits[learnt].argmax(-1) == truth).long().cpu()])
    summed = torch.zeros(texts, dtype=torch.float64).index_add(0, owner, nll)
    return summed, torch.zeros(2, texts, dtype=torch.long).index_add(1, owner, counts)


def why_not(model: nn.Module, batch: Batch) -> str:
    """Why the model cannot be given packed rows, or "": the logits of these texts are compared with the plain ones."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no position_ids"
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            dtype = next(model.parameters()).dtype
            one, other = plain(batch), pack(batch, int(batch.lengths.sum()), dtype)
            expected, found = (_by_text(model(**laid.inputs).logits, laid.owner, len(batch)) for laid in (one, other))
    except Exception as error:  # of a model's own code there is no list of what it raises
        return f"{type(model).__name__} does not take them ({(str(error).splitlines() or [type(error).__name__])[0]})"
    finally:
        for module, is_training in modes.items():
            module.training = is_training
    apart = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30))
    return "" if apart <= _TOLERANCE else f"logits of packed texts differ by {apart:.1g} of the largest"


def _by_text(logits: Tensor, owner: Tensor, texts: int) -> Tensor:
    """The logits of all tokens, text by text."""
    return torch.cat([logits[owner == text] for text in range(texts)])
