"""A language model writes on, and another one says how well that hangs together. Legend: P prompts, T tokens, V vocabulary.

Every prompt has random numbers of its own, from a seed and its number, so that what is written does not depend on which
prompts are written on together. No cache of keys and values: any model that gives logits can be asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import hub


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

    def __init__(self, name: str) -> None:
        """Raises ModelError: it cannot be loaded."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with hub.explained("judge", name), hub.quiet_loading():
            folder = hub.resolve(name)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        self._model = model.eval()

    @torch.inference_mode()
    def nats(self, prompt: str, text: str) -> float:
        """Mean negative log-likelihood of the tokens of `text` after `prompt`."""
        told = self._tokenizer(prompt + text, return_offsets_mapping=True, return_tensors="pt", add_special_tokens=False)
        begins, ids = told["offset_mapping"][0, :, 0], told["input_ids"]
        logits = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].double()
        nats = -logits.log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
        return float(nats[begins[1:] >= len(prompt)].mean())
