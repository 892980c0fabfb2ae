"""A language model writes on, and another one says how well that hangs together.

Every prompt has random numbers of its own, from a seed and its number, so that what is written does not depend on which
prompts are written on together. No cache of keys and values: any model that gives logits can be asked.
Legend: P prompts, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.catalogue import hub
from harness.errors import ModelError
from harness.language import generation
from harness.language.chunks import Chunks
from harness.predictions import Paragraph


@torch.inference_mode()
def write_on(
    model: nn.Module, prompts: Tensor, number: int, temperature: float, forbidden: list[int], window: int,
    seeds: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """So many more tokens for each prompt, and their negative log-likelihoods at temperature 1.

    Sampled as argmax(logits / temperature + Gumbel noise) (Maddison et al. 2014, arXiv 1411.0030), from float32 logits.

    Args:
        model: in evaluation mode.
        prompts: all of one length. [P, T]
        number: of tokens.
        temperature: above 0; below 1 likely tokens are taken more often.
        forbidden: tokens that are not written: special ones.
        window: the model sees the last so many tokens.
        seeds: of the random numbers of each prompt. [P]

    Returns:
        tokens [P, number] and nats [P, number], float64.
    """
    device, ids = next(model.parameters()).device, prompts
    draws = [np.random.default_rng([seed, 0x77]) for seed in seeds]
    nats = []
    for _ in range(number):
        seen = ids[:, -window:].to(device)
        logits = model(input_ids=seen, attention_mask=torch.ones_like(seen)).logits[:, -1].float().cpu()  # [P, V]
        noise = torch.from_numpy(np.stack([draw.gumbel(size=logits.shape[1]) for draw in draws]))
        noisy = logits.double() / temperature + noise
        noisy[:, forbidden] = -torch.inf
        chosen = noisy.argmax(1, keepdim=True)
        nats.append(-logits.double().log_softmax(1).gather(1, chosen))
        ids = torch.cat([ids, chosen], dim=1)
    return ids[:, prompts.shape[1] :], torch.cat(nats, dim=1)


class Judge:
    """A causal language model with a tokenizer of its own."""

    def __init__(self, name: str, where: str) -> None:
        """`where`: the setting that names it.

        Raises:
            ModelError: it cannot be loaded, is no causal language model, or its tokenizer does not tell places.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        reader: Any = AutoModelForCausalLM
        with hub.explained("judge", name, where=where), hub.quiet_loading():
            folder = hub.resolve(name, where=where)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, info = reader.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
        fix = "take a causal language model, such as builtin:smollm2"
        if missing := sorted(info["missing_keys"]):
            why = f"without weights: {', '.join(missing[:3])}"
            raise ModelError(f"'{name}' is no causal language model", where=where, why=why, fix=fix)
        if generation.sees_ahead(model, [0, 1, 2, 3]):
            raise ModelError(f"'{name}' sees the tokens that it is to predict", where=where, fix=fix)
        if not self._tokenizer.is_fast:
            raise ModelError(f"the tokenizer of '{name}' does not tell places of its tokens", where=where, fix=fix)
        self._model = model.eval()

    @torch.inference_mode()
    def nats(self, prompt: str, text: str) -> float:
        """Mean negative log-likelihood of the tokens of `text` after `prompt`."""
        told = self._tokenizer(
            prompt + text, return_offsets_mapping=True, return_tensors="pt", add_special_tokens=False
        )
        begins, ids = told["offset_mapping"][0, :, 0], told["input_ids"]
        logits = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].double()
        nats = -logits.log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
        return float(nats[begins[1:] >= len(prompt)].mean())


def prompts(chunks: Chunks, number: int, length: int) -> list[int]:
    """Chunks whose begin is a prompt: so many begins of documents that are long enough, at even distances.

    Where there are fewer documents, other chunks begin with prompts, too.
    """
    begins = np.flatnonzero(np.diff(chunks.bounds[:, 0], prepend=-1))
    begins = begins if len(begins) >= number else np.arange(len(chunks))
    begins = begins[chunks.lengths[begins] >= min(length, int(chunks.lengths[begins].max()))]
    picked = np.linspace(0, len(begins) - 1, min(number, len(begins))).round().astype(int)
    return [int(row) for row in begins[picked]]


@dataclass(frozen=True)
class Way:
    """How it is written."""

    number: int
    """Tokens of a paragraph."""
    temperature: float
    window: int
    """Tokens that the model sees."""


@dataclass(frozen=True)
class Pen:
    """Who writes, and who judges it."""

    model: nn.Module
    tokenizer: Any
    way: Way
    judge: Judge | None

    def paragraphs(self, chunks: Chunks, rows: list[int], length: int, ids: list[str]) -> list[Paragraph]:
        """After the first `length` tokens of these chunks, fewer of a shorter one; prompts of one length at once.

        `ids`: of the documents.
        """
        found, way = dict[int, Paragraph](), self.way
        forbidden = sorted(set(self.tokenizer.all_special_ids))
        given = {row: min(length, int(chunks.lengths[row])) for row in rows}
        for size in sorted(set(given.values())):
            some = [row for row in rows if given[row] == size]
            begins = np.stack([chunks.tokens[int(at) : int(at) + size] for at in chunks.bounds[some, 1]])
            asked = torch.from_numpy(begins.astype(np.int64))
            written, nats = write_on(self.model, asked, way.number, way.temperature, forbidden, way.window, some)
            for row, tokens, cost in zip(some, written.tolist(), nats.sum(1).tolist(), strict=True):
                found[row] = self._paragraph(chunks, row, size, tokens, cost, ids)
        return [found[row] for row in rows]

    def _paragraph(
        self, chunks: Chunks, row: int, size: int, tokens: list[int], nll: float, ids: list[str]
    ) -> Paragraph:
        """As text, beside what stands there in truth, both judged."""
        document, first = chunks.bounds[row, :2].tolist()
        last = int(np.searchsorted(chunks.bounds[:, 0], document, side="right")) - 1
        true = chunks.tokens[first : int(chunks.bounds[last, 2]) + 1][: size + len(tokens)].tolist()
        told = self._text(true[:size])
        text, reference = (self._text([*true[:size], *end])[len(told) :] for end in (tokens, true[size:]))
        judged = [self.judge.nats(told, one) if self.judge and one.strip() else None for one in (text, reference)]
        is_first = row == 0 or int(chunks.bounds[row - 1, 0]) != document
        name = ids[document] if is_first else f"{ids[document]}, token {first}"
        return Paragraph(name, told, text, tuple(tokens), nll, reference, *judged)

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
