"""What masked and causal language models share: a corpus as chunks, the model, likelihoods, yardsticks.

Legend: B chunks, T tokens, V tokens of the vocabulary, N targets.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from harness import notes
from harness.batch import Batch, cut, overhead_tokens
from harness.catalogue import hub
from harness.data.dataset import Example
from harness.errors import DataError, ModelError, SpecError, did_you_mean
from harness.language import chunks as chunks_of
from harness.language import cleaning, kneser_ney
from harness.language.chunks import Chunks, Cut
from harness.language.cleaning import Cleaning
from harness.language.kneser_ney import KneserNey, Trigrams
from harness.losses import IGNORE
from harness.models.model import Model
from harness.signing import digests

Kind = Literal["masked_lm", "causal_lm"]
_CLASSES = {"masked_lm": "AutoModelForMaskedLM", "causal_lm": "AutoModelForCausalLM"}
_FORMAT = 1
"""Of the chunks in the cache."""
_CHARACTERS = 1_000_000
"""About so much text is made into tokens at once."""
MOST_COUNTED = 50_000_000
"""Tokens of the training split that the yardsticks count; more would not fit into the memory of a small machine."""
SCRIPTS = ("any", "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "cjk", "hangul", "hiragana", "thai")


# --------------------------------------------------------------------------------------------------------------- corpus


def check_cleaning(rules: Cleaning, where: str) -> Cleaning:
    """The rules. Raises SpecError for a script or a language that is not known."""
    for name, value, known in (
        ("script", rules.script, SCRIPTS),
        ("language", rules.language, ("any", *cleaning.STOP_WORDS)),
    ):
        if value not in known:
            raise SpecError(f"no {name} is called '{value}'", where=f"{where}.{name}", fix=did_you_mean(value, known))
    return rules


def texts(examples: Iterable[Example], rules: Cleaning) -> Iterator[str]:
    """The cleaned texts, those of which nothing is left as ""."""
    return (cleaning.clean(example.text, rules)[0] for example in examples)


def read(
    name: str, examples: Sequence[Example], tokenizer: Any, rules: Cleaning, how: Cut, before: list[int],
    after: list[int],
) -> Chunks:  # fmt: skip
    """A split, cleaned, as tokens, each document between these tokens, cut: from the cache, or written there.

    Tells what cleaning did. Its facts are those of `load_data`.

    Raises:
        DataError: nothing is left, or a split has no chunk.
        StorageError: the cache cannot be written.
    """
    digest = hashlib.sha256()
    settings = {"format": _FORMAT, "rules": asdict(rules), "cut": asdict(how), "frame": [before, after]}
    digest.update(digests.canonical(settings) + tokenizer.backend_tokenizer.to_str().encode())
    for example in examples:
        digest.update(f"{len(example.text)}:{example.text}".encode())

    def make(folder: Path) -> dict[str, Any]:
        counts = Counter[str]()
        found = chunks_of.write(_tokens(examples, tokenizer, rules, before, after, counts), how, folder)
        return {"tokens": found["tokens"], "longest": found["longest"], "truncated": 0, **found, "cleaning": counts}

    found = chunks_of.cached(digest.hexdigest(), make)
    _tell(name, found.facts)
    if not len(found):
        what = f"{name} has no tokens" if not found.facts["tokens"] else f"no text of {name} has two tokens"
        raise DataError(what, where="data", why=_told(found.facts), fix=_fix(found.facts))
    return found


def _tokens(
    examples: Iterable[Example], tokenizer: Any, rules: Cleaning, before: list[int], after: list[int],
    counts: Counter[str],
) -> Iterator[Sequence[int]]:  # fmt: skip
    """The tokens of each document, some documents at a time; one of which nothing is left has none."""
    waiting: list[str] = []

    def made() -> Iterator[Sequence[int]]:
        ids = tokenizer(waiting, add_special_tokens=False, verbose=False)["input_ids"] if waiting else []
        yield from ([*before, *own, *after] if own else [] for own in ids)
        waiting.clear()

    for example in examples:
        text, done = cleaning.clean(example.text, rules)
        counts.update(done)
        counts["characters"] += len(example.text)
        counts["documents_left_out"] += not text
        waiting.append(text)
        if sum(map(len, waiting)) > _CHARACTERS:
            yield from made()
    yield from made()


def _tell(name: str, facts: dict[str, Any]) -> None:
    """Say what cleaning changed, if it did."""
    if told := _told(facts):
        notes.note(f"{name}, cleaned: {told}")


def _fix(facts: dict[str, Any]) -> str:
    """What to do where too little is left: the rule that took most of the lines is named."""
    ways = {"script": "script=any", "language": "language=any", "mojibake": "mojibake=repair"}
    most = max(ways, key=lambda reason: int(facts["cleaning"].get(f"lines_dropped_{reason}", 0)))
    if not facts["cleaning"].get(f"lines_dropped_{most}"):
        return "give more text"
    return f"give more text, or clean it less: {ways[most]} among the settings of the task"


def _told(facts: dict[str, Any]) -> str:
    """Such as `3 of 3,500 documents left out; 9 of 4,000 lines dropped (script)`."""
    done, parts = facts["cleaning"], list[str]()
    if number := done.get("documents_left_out"):
        parts.append(f"{number:,} of {facts['documents']:,} documents left out")
    for reason in ("mojibake", "script", "language"):
        if number := done.get(f"lines_dropped_{reason}"):
            parts.append(f"{number:,} of {done['lines']:,} lines dropped ({reason})")
    if number := done.get("lines_repaired"):
        parts.append(f"{number:,} of {done['lines']:,} lines repaired")
    if number := done.get("characters_removed"):
        parts.append(f"{number:,} of {done['characters']:,} characters removed")
    return "; ".join(parts)


# ---------------------------------------------------------------------------------------------------------------- model


def load_model(kind: Kind, model: Model, tokenizer: Any, longest: int, where: str) -> tuple[nn.Module, set[str]]:
    """The model in float32, and the names of its parameters that its checkpoint has no values for.

    Raises:
        ModelError: it cannot be loaded, or does not fit the tokenizer or the length of the chunks.
    """
    loaded: Any
    if model.is_own:
        from harness.models import transformer

        loaded = transformer.build(model, kind, vocab_size=len(tokenizer), pad_token_id=pad_of(tokenizer))
        new = set[str]()
    else:
        import transformers

        with hub.explained("model", model.name), hub.quiet_loading():
            loaded, info = getattr(transformers, _CLASSES[kind]).from_pretrained(
                hub.resolve(model.name, model.revision),
                revision=model.revision,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
        new = {str(name) for name in info["missing_keys"]}
    if len(tokenizer) > loaded.config.vocab_size:
        what = f"the tokenizer has {len(tokenizer)} tokens, '{model.name}' knows {loaded.config.vocab_size}"
        raise ModelError(what, where="model.name", fix="take the tokenizer and the weights of one checkpoint")
    if longest > (positions := getattr(loaded.config, "max_position_embeddings", None) or longest):
        what = f"a chunk has {longest} tokens, '{model.name}' reads {positions}"
        raise ModelError(what, where=f"{where}.chunk_length", fix=f"set it to {positions} at most")
    return cast(nn.Module, loaded), {name for name, _ in loaded.named_parameters() if name in new}


def special(tokenizer: Any, *names: str, fix: str, where: str) -> int:
    """The first of these special tokens that the tokenizer has. Raises ModelError if it has none."""
    for name in names:
        if (token := getattr(tokenizer, f"{name}_id")) is not None:
            return int(token)
    raise ModelError(f"the tokenizer has no {' or '.join(names)}", where=where, fix=fix)


def pad_of(tokenizer: Any) -> int:
    """The token that fills rows; whatever it is, the attention mask hides it and it is no target."""
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def padded(rows: list[NDArray[np.int64]], labels: list[NDArray[np.int64]], pad: int) -> Batch:
    """Rows and what is to be said of their tokens as one batch. [T] each -> [B, T]"""
    lengths = torch.tensor([len(row) for row in rows])

    def filled(of: list[NDArray[np.int64]], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, of)), batch_first=True, padding_value=value)

    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    tensors = {"input_ids": filled(rows, pad), "attention_mask": mask, "labels": filled(labels, IGNORE)}
    return Batch(lengths, tensors, {})


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """What the model says of every token of a batch. [B, T, V]"""
    logits: Tensor = model(**{name: of for name, of in batch.per_token.items() if name != "labels"}).logits
    return logits


class Scores(NamedTuple):
    """Of some chunks: summed negative log-likelihoods, targets, and how many were most likely. [N] each"""

    nll: NDArray[np.float64]
    targets: NDArray[np.int64]
    hits: NDArray[np.int64]


def likelihoods(model: nn.Module, lengths: list[int], budget: int, batch_of: Callable[[list[int]], Batch]) -> Scores:
    """The likelihoods of rows of these lengths, in their order; `batch_of` makes a batch of some of them."""
    device = next(model.parameters()).device
    nll, targets, hits = np.zeros(len(lengths)), *(np.zeros(len(lengths), dtype=np.int64) for _ in range(2))
    model.eval()
    with torch.inference_mode():
        for rows in cut(lengths, budget, overhead_tokens(device)):
            micro = batch_of(rows).to(device)
            logits, labels = logits_of(model, micro).float(), micro.per_token["labels"]
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
            nll[rows] = losses.view(labels.shape).double().sum(1).cpu().numpy()
            targets[rows] = (labels != IGNORE).sum(1).cpu().numpy()
            hits[rows] = ((logits.argmax(-1) == labels) & (labels != IGNORE)).sum(1).cpu().numpy()
    return Scores(nll, targets, hits)


# ----------------------------------------------------------------------------------------------------------- yardsticks


def new_tokens(chunks: Chunks, ahead: int) -> NDArray[np.int64]:
    """Places of the tokens that are targets of some chunk, each once, in order. [N]"""
    first, count = chunks.bounds[:, 3] + ahead, chunks.bounds[:, 2] - chunks.bounds[:, 3]
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.asarray(np.repeat(first, count) + within)


def trigrams(chunks: Chunks, places: NDArray[np.int64], vocabulary: int) -> Trigrams:
    """The tokens at these places and the two before each, as far as they belong to its document. [N]"""
    document = chunks.bounds[:, 0]
    begins = chunks.bounds[np.searchsorted(document, document), 1]
    chunk = np.searchsorted(chunks.bounds[:, 1], places, side="right") - 1
    room = places - begins[chunk]

    def back(number: int) -> NDArray[np.int64]:
        found = chunks.tokens[np.maximum(places - number, 0)]
        return np.where(room >= number, found, vocabulary).astype(np.int64)

    return Trigrams(back(2), back(1), chunks.tokens[places].astype(np.int64))


def yardsticks(
    train: Chunks, test: Chunks, ahead: int, places: NDArray[np.int64], vocabulary: int, *, of: str = ""
) -> dict[str, Callable[[], dict[str, float]]]:
    """A unigram and a trigram model of the same tokens, judged on the tokens at these places of test.

    `of`: what has to be known of the trigram model.
    """
    seen = new_tokens(train, ahead)
    if len(seen) > MOST_COUNTED:
        of += f", of the first {MOST_COUNTED:,} tokens"
    counted = trigrams(train, seen[:MOST_COUNTED], vocabulary)
    wanted = trigrams(test, places, vocabulary)
    return {
        "unigram": lambda: perplexity(kneser_ney.unigram(counted.target, wanted.target, vocabulary)),
        f"trigram Kneser-Ney{of}": lambda: perplexity(KneserNey(counted, vocabulary).probabilities(wanted)),
    }


def perplexity(probabilities: NDArray[np.float64]) -> dict[str, float]:
    """Of targets with these probabilities. [N]"""
    nll = float(-np.log(probabilities).mean())
    return {"perplexity": math.exp(nll), "nll": nll}
