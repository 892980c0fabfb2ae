"""What a causal language model writes: how varied it is, whether it repeats itself, and the paragraphs to read."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from harness.markdown import markdown_table
from harness.metric import Metric
from harness.predictions import Continued, Paragraph
from harness.storage import finite, write_json, write_text

Tokens = Sequence[int]
_COHERENCE = ("coherence", "coherence_reference")
"""Nats per token, at most 0, of what was written and of the text that stands there in truth."""


class Generation(Metric[Continued]):
    """distinct-n of what the model wrote (Li et al. 2016, arXiv 1510.03055), and how much of it repeats itself.

    distinct-n is the number of different n-grams over the number of tokens, pooled over all paragraphs, none reaching
    from one into the next. It falls with the length of what is written: compare only models that wrote equally much.
    Where a judge was named, `test/coherence` and `test/coherence_reference` stand beside them.
    """

    produces: ClassVar[tuple[str, ...]] = ("distinct_1", "distinct_2", "repetition")
    less_is_better: ClassVar[tuple[str, ...]] = ("repetition",)
    per_token: ClassVar[bool] = True

    repeated: int = Field(default=4, ge=2)
    """`repetition` is the share of n-grams of so many tokens that stood in the same paragraph before."""

    def compute(self, predictions: Continued) -> dict[str, float]:
        """Of the text that was written alone, without prompts; `coherence` is the mean over judged paragraphs."""
        written = [paragraph.tokens for paragraph in predictions.paragraphs]
        pooled = {f"distinct_{n}": distinct(written, n) for n in (1, 2)}
        facts = [self.facts(paragraph) for paragraph in predictions.paragraphs]
        judged = {key: [v for one in facts if (v := one[key]) is not None] for key in _COHERENCE}
        means = {key: sum(values) / len(values) for key, values in judged.items() if values}
        return {**pooled, "repetition": repetition(written, self.repeated), **means}

    def write(self, predictions: Continued, folder: Path) -> None:
        """paragraphs.json, paragraphs.md, paragraphs.html and paragraphs.png: perplexity against distinct-2."""
        rows = [{**asdict(paragraph), **self.facts(paragraph)} for paragraph in predictions.paragraphs]
        write_json(folder / "paragraphs.json", finite(rows))
        write_text(folder / "paragraphs.md", self.section(predictions).replace("## ", "# ", 1) + "\n")
        if predictions.paragraphs:
            self._draw(predictions.paragraphs, folder)

    def section(self, predictions: Continued) -> str:
        """A table, and the paragraphs themselves."""
        if not predictions.paragraphs:
            return ""
        names = {"tokens": "tokens", "perplexity": "perplexity", "distinct_2": "distinct-2", "repetition": "repetition"}
        names |= dict(zip(_COHERENCE, ("coherence", "true text"), strict=True))
        facts = [self.facts(paragraph) for paragraph in predictions.paragraphs]
        shown = [key for key in names if any(one[key] is not None for one in facts)]
        table = [
            [p.id, *(_shown(one[key]) for key in shown)] for p, one in zip(predictions.paragraphs, facts, strict=True)
        ]
        remarks = (
            f"Perplexity: the model's own, of what it wrote. Repetition: share of {self.repeated}-grams that stood in "
            "the paragraph before. Coherence: mean log-likelihood of a token after the prompt under the judge, beside "
            "that of the true text"
        )
        missing = "" if "coherence" in shown else "; nobody judged these"
        texts = [_written_on(paragraph.prompt, paragraph.text) for paragraph in predictions.paragraphs]
        parts = [markdown_table(["text", *(names[key] for key in shown)], table), f"{remarks}{missing}.", *texts]
        return "\n\n".join(["## What it writes", *parts])

    def facts(self, paragraph: Paragraph) -> dict[str, float | None]:
        """The numbers of one paragraph; coherence is None where nobody judged."""
        own = [paragraph.tokens]
        return {
            "tokens": len(paragraph.tokens),
            "perplexity": math.exp(paragraph.nll / max(1, len(paragraph.tokens))),
            "distinct_2": distinct(own, 2),
            "repetition": repetition(own, self.repeated),
            "coherence": None if paragraph.judged is None else -paragraph.judged,
            "coherence_reference": None if paragraph.judged_reference is None else -paragraph.judged_reference,
        }

    def _draw(self, paragraphs: list[Paragraph], folder: Path) -> None:
        from harness import figures

        facts = [self.facts(paragraph) for paragraph in paragraphs]
        x, y = ([one[key] or 0.0 for one in facts] for key in ("distinct_2", "perplexity"))
        names, title = [paragraph.id for paragraph in paragraphs], "What it writes"
        page, image = figures.page(title, 760, 480), figures.image(title, 7.2, 4.4)
        axes: Any = figures.calm(image.subplots())
        for name, across, up, colour in zip(names, x, y, itertools.cycle(figures.COLOURS), strict=False):
            page.add_scatter(x=[across], y=[up], mode="markers", name=escape(name), marker={"color": colour, "size": 9})
            axes.scatter(across, up, color=colour, label=name)
        page.update_layout(showlegend=True, legend_title_text="text")
        page.update_xaxes(title_text="distinct-2")
        page.update_yaxes(title_text="perplexity", rangemode="tozero")
        axes.set(xlabel="distinct-2", ylabel="perplexity")
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
        image.legend(title="text", loc="outside right upper", frameon=False, fontsize=8)
        figures.save_html(page, folder / "paragraphs.html")
        figures.save_png(image, folder / "paragraphs.png")


def ngrams(tokens: Tokens, n: int) -> Iterator[tuple[int, ...]]:
    """All runs of n tokens."""
    return (tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def distinct(texts: Iterable[Tokens], n: int) -> float:
    """Different n-grams of all texts over their tokens; 0 where there are none."""
    found = list(texts)
    return len({gram for tokens in found for gram in ngrams(tokens, n)}) / max(1, sum(map(len, found)))


def repetition(texts: Iterable[Tokens], n: int) -> float:
    """Share of n-grams that stood in the same text before; 0 where there are none."""
    counted = [(sum(1 for _ in ngrams(tokens, n)), len(set(ngrams(tokens, n)))) for tokens in texts]
    total = sum(count for count, _ in counted)
    return sum(count - different for count, different in counted) / max(1, total)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if float(value).is_integer() else f"{value:.3f}"


def _written_on(prompt: str, text: str) -> str:
    """On one line, the prompt in bold; one that ends inside a word goes on in it.

    Marks at its end are not bold: Markdown ends no emphasis between a mark and a letter.
    """
    between = " " if prompt[-1:].isspace() or text[:1].isspace() else ""
    given = " ".join(prompt.split())
    words = re.sub(r"[\W_]+$", "", given)
    bold = f"**{_plain(words)}**" if words else ""
    return f"{bold}{_plain(given[len(words) :])}{between}{_plain(' '.join(text.split()))}"


def _plain(text: str) -> str:
    """Of which Markdown reads nothing as markup."""
    return re.sub(r"[\\`*_<>\[\]~&]", r"\\\g<0>", text)
