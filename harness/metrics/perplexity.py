"""How sure a language model is of the tokens it was to predict."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.metric import Likelihood, Metric


class Perplexity(Metric[Likelihood]):
    """exp of the mean negative log-likelihood of a token: the uniform model reaches the size of the vocabulary.

    The mean is one sum over one count, in float64, over all target tokens of the split; not a mean of batches or texts.
    Of a masked language model it is that of the masked tokens. Models compare only over the same tokens.
    """

    produces: ClassVar[tuple[str, ...]] = ("perplexity", "nll")
    less_is_better: ClassVar[tuple[str, ...]] = ("perplexity", "nll")

    def compute(self, predictions: Likelihood) -> dict[str, float]:
        """`perplexity`, and `nll` in nats per token; with no target at all 1 and 0: nothing was said wrongly."""
        nll = float(predictions.nll.sum() / max(1, predictions.targets.sum()))
        return {"perplexity": float(np.exp(nll)), "nll": nll}
