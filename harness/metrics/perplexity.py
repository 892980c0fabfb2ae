"""Perplexity: exp of the mean negative log-likelihood per token, from sums over the whole split in float64.

    nll = sum of nll / number of target tokens,  perplexity = exp(nll)

Never a mean of means: neither of batches nor of examples. A model that knows nothing has the size of the vocabulary,
a perfect one 1. Only comparable where the tokens are the same: same tokenizer, same targets. Of a masked language model
it is that of the masked tokens.
"""

from __future__ import annotations

import math
from typing import ClassVar

from harness.metric import Metric
from harness.predictions import Likelihood


class Perplexity(Metric[Likelihood]):
    """`perplexity`, and `nll` in nats per token; 1 and 0 where there is no target at all."""

    produces: ClassVar[tuple[str, ...]] = ("perplexity", "nll")
    less_is_better: ClassVar[tuple[str, ...]] = ("perplexity", "nll")
    per_token: ClassVar[bool] = True

    def compute(self, predictions: Likelihood) -> dict[str, float]:
        """Both, over all target tokens of the split."""
        nll = math.fsum(predictions.nll.tolist()) / max(1, int(predictions.targets.sum()))
        return {"perplexity": math.exp(min(nll, 700.0)), "nll": nll}
