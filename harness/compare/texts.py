"""Two short texts that a comparison's measurements write: what adapters cost, and how a small GPU is enough."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from harness.compare.comparison import Comparison, Table, measured_latency
from harness.compare.systems import System
from harness.results import footprint

_SMALL_GIB = 4.0
_SPEED = "train/examples_per_second"


@dataclass(frozen=True)
class Text:
    """A short text under its title, with the table that it speaks of."""

    title: str
    sentences: list[str]
    table: Table | None = None


def texts(comparison: Comparison) -> list[Text]:
    """Those whose measurements are there."""
    made = (adapters(comparison), small_gpu(comparison))
    return [text for text in made if text is not None]


def adapters(comparison: Comparison) -> Text | None:
    """How methods that train few parameters affect latency and memory; None: no system trains fewer than another."""
    reference = comparison.reference
    others = [one for one in comparison.systems if one.first.trainable < reference.first.trainable]
    if not others:
        return None
    told = [_device(comparison)]
    for one in others:
        share = one.first.trainable / reference.first.trainable
        sentence = f"{one.name} trains {share:.2%} of the parameters of {reference.name}"
        costs = [_against(one, reference, "memory/peak_gib", "{:.2f} GiB at the peak")]
        told.append("; ".join([sentence, *filter(None, costs)]) + ".")
        told += _latency(comparison, one)
    told += _speeds(comparison)
    told.append(
        "Why: gradients and AdamW's two moments, 12 bytes per trainable parameter, are what training few parameters "
        "saves; activations are still kept for every layer above the lowest trained one, and the forward is no "
        "cheaper. An update that is added to a weight (LoRA) can be merged into it, and then costs nothing; a layer "
        "with a non-linearity (a bottleneck adapter) cannot, and stays in every prediction."
    )
    return Text("What adapters and LoRA do to latency and memory", told)


def _latency(comparison: Comparison, system: System) -> list[str]:
    """One sentence on a prediction's median latency. A run times its model and the merged one in turns: a ratio."""
    cell, reference = comparison.shape, comparison.reference
    base, own, merged = (
        measured_latency(one, is_merged, cell)
        for one, is_merged in ((reference, False), (system, False), (system, True))
    )
    if cell is None or not (base and own):
        return []
    what = f"Batch {cell[0]}, {cell[1]} tokens, p50: {system.name} {own[0]:.1f} ms"
    told = (
        f"{what}, merged {merged[0]:.1f} ms ({merged[0] / own[0] - 1:+.0%})" if merged else f"{what}; it does not merge"
    )
    return [f"{told}; {reference.name} {base[0]:.1f} ms."]


def _speeds(comparison: Comparison) -> list[str]:
    """Texts per second in training, of each system, and what seconds of different runs do not say."""
    known = {one.name: [of.scores[_SPEED] for of in one.entries.values() if _SPEED in of.scores]
             for one in comparison.systems}  # fmt: skip
    speeds = [f"{name} {statistics.fmean(values):.1f}" for name, values in known.items() if values]
    trained = f"Texts per second in training: {', '.join(speeds)}. " if speeds else ""
    return [
        f"{trained}Seconds belong to the machine, and to what else ran on it: a difference between runs that were not "
        "timed in turns is not an effect of the method."
    ]


def _against(system: System, reference: System, key: str, form: str) -> str:
    """A cost beside the reference's, means over seeds; "": one of them has none."""
    own, base = ([of.scores[key] for of in one.entries.values() if key in of.scores] for one in (system, reference))
    if not (own and base):
        return ""
    mine, theirs = statistics.fmean(own), statistics.fmean(base)
    return f"{form.format(mine)} ({mine / theirs - 1:+.0%})"


def small_gpu(comparison: Comparison) -> Text | None:
    """How gradient accumulation fits a GPU of 4 GB, with the estimate beside what was measured.

    None: no run has written its estimate down.
    """
    known = [one for one in comparison.systems if one.first.memory]
    if not known:
        return None
    rows, fit = [], {}
    for one in known:
        parts, micro = one.first.memory, int(one.first.settings["train.micro_batch_tokens"])
        fixed = parts["weights"] + parts["gradients"] + parts["optimizer"]
        fit[one.name] = footprint.tokens_that_fit(parts, micro, _SMALL_GIB)
        measured = [
            of.scores["memory/peak_gib"] - of.scores["memory/before_gib"]
            for of in one.entries.values()
            if {"memory/peak_gib", "memory/before_gib"} <= of.scores.keys()
        ]
        found = f"{statistics.fmean(measured):.2f}" if measured else ""
        own = [f"{fixed:.2f}", f"{parts['activations']:.2f}", f"{parts['total']:.2f}", found, f"{fit[one.name]:,}"]
        rows.append([one.name, f"{micro:,}", *own])
    columns = ["tokens at once", "fixed", "activations", "estimate", "measured", f"tokens in {_SMALL_GIB:.0f} GiB"]
    told = [
        "A batch is cut into micro-batches of at most `train.micro_batch_tokens` tokens, padding included. Each is one "
        "forward and backward, and only its activations are held at once; gradients add up in place, and the optimizer "
        "steps once per batch. The loss denominator is counted over the whole batch first, so that the gradient is "
        "that of the uncut batch whatever the cut. What it costs is time: more and smaller matrix products.",
        "Fixed: weights, gradients, and AdamW's two moments in float32. Activations: of a full micro-batch of the "
        "longest texts (Korthikanti et al. 2022, arXiv 2205.05198); smaller batches hold less. Measured: the peak of "
        "training less what was held before it, "
        f"{_device(comparison)[0].lower()}{_device(comparison)[1:]}",
    ]
    for name, tokens in fit.items():
        fits = f"fits with `train.micro_batch_tokens={tokens}` and less, for a batch of any size"
        told.append(f"{name} {fits if tokens else 'does not fit at any batch size: what is fixed is too much'}.")
    table = Table("GiB", ["", *columns], rows)
    return Text(f"How gradient accumulation fits a GPU of {_SMALL_GIB:.0f} GB", told, table)


def _device(comparison: Comparison) -> str:
    """Where it was measured, and what that means."""
    names = {entry.device for one in comparison.systems for entry in one.entries.values()} - {""}
    if names == {"cpu"}:
        return (
            "Measured on a CPU, where memory is that of the whole process, with what it imports meanwhile: a GPU's "
            "differs."
        )
    return f"Measured on {', '.join(sorted(names)) or 'a device that is not known'}."
