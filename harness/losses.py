"""Count first, then sum: cross-entropy as a sum, and what it is to be divided by.

The mean of a batch is one sum over one count, both over the whole batch; no mean of micro-batch means is ever taken,
which is wrong as soon as micro-batches differ in their counts (huggingface/transformers#34191).
Legend: N targets (examples or tokens), L classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


def count_targets(labels: Tensor, class_weights: Tensor | None = None) -> float:
    """How many labels reach the loss (all but -100), or the sum of their class weights. labels: [...]."""
    kept = labels[labels != IGNORE]
    return float(len(kept)) if class_weights is None else float(class_weights[kept].double().sum())


def cross_entropy_sum(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy, shape []; divided by `count_targets` it is torch's weighted, smoothed mean.

    logits: [..., L], any float dtype, summed in float32 or better; labels: [...], -100 is left out.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(
        wide.reshape(-1, wide.shape[-1]),
        labels.reshape(-1),
        weight=None if class_weights is None else class_weights.to(wide),
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
