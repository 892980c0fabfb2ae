"""What a masked language model has to guess. Every draw depends on a seed and the row alone, not on the process, the
order of batches, or whether the run was stopped. Legend: T tokens.

dynamic  every token by itself with probability p; of those 80 % become the mask, 10 % a random token, 10 % stay
         (Devlin et al. 2019, arXiv 1810.04805, 3.1), anew in every epoch (Liu et al. 2019, arXiv 1907.11692, 4.1)
static   every chunk by itself with probability p: all its tokens become the mask; the same in every epoch
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.losses import IGNORE

Ids = NDArray[np.int64]
MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens; the rest stays as it is."""


def dynamic(
    ids: Ids, can_be_chosen: NDArray[np.bool_], share: float, mask: int, others: Ids, seed: int, row: int
) -> tuple[Ids, Ids]:
    """What the model reads and what it has to say of one row, the latter -100 where nothing was chosen. [T], [T]

    Args:
        ids: the row; it is left as it is. [T]
        can_be_chosen: neither special tokens nor padding. [T]
        share: how likely each of them is chosen.
        mask: the token that stands for a guess.
        others: the tokens that a random one is taken from: no special ones.
        seed: of the draw, another one for every epoch.
        row: its number.
    """
    draw = np.random.default_rng([seed, row])
    chosen = (draw.random(len(ids)) < share) & can_be_chosen
    fate, instead = draw.random(len(ids)), others[draw.integers(len(others), size=len(ids))]
    read = np.where(fate < MASKED, mask, np.where(fate < MASKED + RANDOM, instead, ids))
    return np.where(chosen, read, ids), np.where(chosen, ids, IGNORE)


def static(ids: Ids, can_be_chosen: NDArray[np.bool_], share: float, mask: int, seed: int, row: int) -> tuple[Ids, Ids]:
    """The same for a whole chunk: all of it is masked, or nothing of it has to be guessed. [T], [T]"""
    chosen = can_be_chosen & (np.random.default_rng([seed, row]).random() < share)
    return np.where(chosen, mask, ids), np.where(chosen, ids, IGNORE)
