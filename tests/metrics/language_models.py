"""Predictions of language models, made by hand."""

from __future__ import annotations

import numpy as np

from harness.predictions import Continued, Likelihood, Paragraph


def likelihood(nll: list[float], targets: list[int], hits: list[int] | None = None) -> Likelihood:
    rows = [{"id": str(i)} for i in range(len(nll))]
    found = np.array(hits if hits is not None else [0] * len(nll))
    return Likelihood(np.array(nll, dtype=np.float64), np.array(targets), found, rows)


def continued(written: list[list[int]], judged: float | None = None) -> Continued:
    paragraphs = [
        Paragraph(
            f"text {i}", "It began", f" and | went on {i}", tuple(tokens), 2.0 * len(tokens), " so", judged, judged
        )
        for i, tokens in enumerate(written)
    ]
    one = likelihood([1.0], [2], [1])
    return Continued(one.nll, one.targets, one.hits, one.rows, paragraphs)
