"""Tune a causal language model on pairs of an instruction and its completion (Ouyang et al. 2022, arXiv 2203.02155).

    loss = - sum over completions, over their tokens and the end: log p(token | prompt, tokens before) / number of them

A prompt is written as the tokenizer's chat template has it, or between `### Instruction:` and `### Response:`. The
prompt is read, not learnt. Too long a pair loses the end of its completion and is counted; a prompt that leaves no
room is refused. Text is generated greedily: with the KV cache a token costs a forward pass over one token, so that
judging 75 rows takes about as long as some 20 steps of training. Hazards: only completions in the same tokens have
comparable perplexities; without an end among the targets a model never learns to stop, which truncation can cause.
Legend: B pairs, T tokens of the longest, V vocabulary, K last positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from harness import losses
from harness.batch import Batch, cut, overhead_tokens
from harness.catalogue import hub
from harness.data.dataset import Data, Example, Split, Splits
from harness.data.labelling import Completions
from harness.errors import ModelError
from harness.language import generation, packing
from harness.language.completions import Row, Writer, joined
from harness.models import tokenizing
from harness.models.model import Model
from harness.predictions import Completed
from harness.task import Task
from harness.yardsticks import completion_baselines

_WHERE = "task.instruction_tuning"
_FIX = "take a causal language model, such as builtin:smollm2"
_UNTUNED_TOKENS = 512
"""Padded tokens per forward of the model before tuning."""


class InstructionTuning(Task):
    """A completion per prompt; loss: cross-entropy averaged over the tokens of completions."""

    labelling = Completions()
    headline: ClassVar[dict[str, str]] = {
        "rouge_l": "ROUGE-L", "exact_match": "exact match", "perplexity": "perplexity"
    }  # fmt: skip

    max_length: int = Field(default=256, ge=8)
    """Tokens of prompt, completion and end; a longer pair loses the end of its completion, and is counted."""
    max_new_tokens: int = Field(default=48, ge=1)
    """A completion that did not end after so many tokens is cut there."""
    validation_rows: int = Field(default=32, ge=1)
    """Completions are generated for so many rows of validation, spread evenly; for the test split, all of them."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """How a prompt is written. auto: with the tokenizer's chat template, plainly where it has none."""
    packing: bool = False
    """Several pairs in one row of at most max_length tokens, each alone: memory and speed only, never the loss. Of use
    where padding is not removed anyway (`train.padding_free`)."""

    _writer: Any = PrivateAttr(None)
    _splits: dict[str, Split] = PrivateAttr(default_factory=dict)
    _rows: dict[str, list[Row]] = PrivateAttr(default_factory=dict)
    _known: frozenset[str] = PrivateAttr(frozenset())

    def load_data(self, splits: Splits, model: Model) -> dict[str, Any]:
        """Tokenise all splits; returns the tokens, longest and truncated rows of each, and how many are learnt.

        Raises:
            ModelError: the tokenizer cannot be loaded, has not the template, or no token that ends a text; or the
                model has random weights.
            DataError: a prompt that leaves no room for a completion.
        """
        if model.is_own:
            what = f"'{model.name}' has random weights: there is no language model in them to tune"
            raise ModelError(what, where="model.name", fix=_FIX)
        self._writer = Writer(tokenizing.load(model), self.template, model.name)
        return {split.name: self._encode(split) for split in (splits.train, splits.validation, splits.test)}

    def load_inputs(self, examples: list[Example], labels: list[str], model: Model) -> dict[str, Any]:
        """Tokenise the prompts as the split `inputs`; the facts and errors of `load_data`."""
        self._writer = Writer(tokenizing.load(model), self.template, model.name)
        return self._encode(Split("inputs", examples, ""))

    def _encode(self, split: Split) -> dict[str, Any]:
        rows, truncated = [], 0
        for example in split.examples:
            completion = None if split.name == "inputs" else str(example.label)
            where = f"row {example.id} of {split.name}"
            row, is_cut = self._writer.row(joined(example.text, example.pair), completion, self.max_length, where)
            rows.append(row)
            truncated += is_cut
        self._splits[split.name], self._rows[split.name] = split, rows
        lengths, learnt = [len(row.ids) for row in rows], sum(len(row.ids) - row.start for row in rows)
        facts = {"tokens": sum(lengths), "longest": max(lengths), "truncated": truncated, "targets": learnt}
        return {**facts, "template": "chat" if self._writer.is_chat else "plain"}

    def load_model(self, model: Model) -> nn.Module:
        """Pretrained weights in float32, head included.

        Raises:
            ModelError: it cannot be loaded, has no language-model head of its own, sees later tokens, reads shorter
                texts only, or cannot be given packed rows where they are asked for.
        """
        from transformers import AutoModelForCausalLM

        reader: Any = AutoModelForCausalLM
        with hub.explained("model", model.name), hub.quiet_loading():
            loaded, info = reader.from_pretrained(
                hub.resolve(model.name, model.revision),
                revision=model.revision,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
        if missing := sorted(info["missing_keys"]):
            what, why = f"'{model.name}' is no causal language model", f"without weights: {', '.join(missing[:3])}"
            raise ModelError(what, where="model.name", why=why, fix=_FIX)
        self._known = frozenset(inspect.signature(loaded.forward).parameters)
        rows = [row for of in self._rows.values() for row in of]
        self._check_sizes(loaded, max(rows, key=lambda row: len(row.ids)), model.name)
        if generation.sees_ahead(loaded, min(rows, key=lambda row: len(row.ids)).ids):
            raise ModelError(f"'{model.name}' sees the tokens that it is to predict", where="model.name", fix=_FIX)
        if self.packing:
            self._check_packing(loaded)
        return cast(nn.Module, loaded)

    def _check_sizes(self, model: Any, longest: Row, checkpoint: str) -> None:
        limit = getattr(model.config, "max_position_embeddings", None) or 2**31
        wanted = max(len(longest.ids), max(row.start for of in self._rows.values() for row in of) + self.max_new_tokens)
        if wanted > limit:
            what = f"texts with {wanted} tokens are read and written, '{checkpoint}' reads {limit}"
            fix = f"set max_length and max_new_tokens so that both fit into {limit}"
            raise ModelError(what, where=f"{_WHERE}.max_length", fix=fix)
        sizes = len(self._writer.tokenizer), model.get_input_embeddings().num_embeddings
        if sizes[0] > sizes[1]:
            what = f"the tokenizer of '{checkpoint}' has {sizes[0]} tokens, the model {sizes[1]}"
            raise ModelError(what, where="model.name", fix="give the tokenizer that belongs to the weights")

    def _check_packing(self, model: nn.Module) -> None:
        split = next(iter(self._rows))
        order = sorted(range(len(self._rows[split])), key=lambda row: len(self._rows[split][row].ids))
        few = self.batch(split, order[:3]).to(next(model.parameters()).device)
        if why := packing.why_not(model, few):
            fix = "set it to false: losses and scores are the same"
            raise ModelError(f"packing cannot be used: {why}", where=f"{_WHERE}.packing", fix=fix)

    def head(self, model: nn.Module) -> set[str]:
        """Nothing: the language-model head is pretrained."""
        return set()

    def answer_columns(self, labels: list[str]) -> list[str]:
        """The completion."""
        return ["generated"]

    def yardsticks(self, splits: Splits, data: Data, model: Model) -> Mapping[str, Callable[[], dict[str, float]]]:
        """The prompt copied, the completion of the most similar training prompt, the model before it is tuned."""
        return completion_baselines.of_completions(
            splits, lambda example: joined(example.text, example.pair), lambda: self._untuned(splits, model)
        )

    def _untuned(self, splits: Splits, model: Model) -> Completed:
        if not self._rows:
            self.load_data(splits, model)
        loaded = self.load_model(model).to("cuda" if torch.cuda.is_available() else "cpu")
        return self.predict(loaded, "test", range(self.num_rows("test")), _UNTUNED_TOKENS)

    def num_rows(self, split: str) -> int:
        """Rows of a split."""
        return len(self._rows[split])

    def train_lengths(self) -> list[int]:
        """Tokens of each pair."""
        return [len(row.ids) for row in self._rows["train"]]

    def batch(self, split: str, rows: list[int]) -> Batch:
        """These pairs; labels[t] is the token after t where that is learnt."""
        pairs = [self._rows[split][row] for row in rows]
        columns = {
            "input_ids": ([pair.ids for pair in pairs], self._writer.end),
            "attention_mask": ([[1] * len(pair.ids) for pair in pairs], 0),
            "labels": ([pair.targets for pair in pairs], losses.IGNORE),
        }
        per_token = {
            name: nn.utils.rnn.pad_sequence([torch.tensor(one) for one in lists], batch_first=True, padding_value=fill)
            for name, (lists, fill) in columns.items()
        }
        return Batch(torch.tensor([len(pair.ids) for pair in pairs]), per_token, {})

    def count(self, batch: Batch) -> dict[str, float]:
        """Tokens of completions, ends included."""
        return {"tokens": losses.count_targets(batch.per_token["labels"])}

    def loss(self, model: nn.Module, micro: Batch, units: dict[str, float]) -> Tensor:
        """The micro-batch's share of the batch's cross-entropy."""
        logits, labels, _ = self._logits(model, micro)
        return losses.cross_entropy_sum(logits, labels) / units["tokens"]

    def _logits(self, model: nn.Module, micro: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [R, K, V], labels and owners [R, K] of the last positions, from the first that is learnt on."""
        dtype = next(model.parameters()).dtype
        laid = packing.pack(micro, self.max_length, dtype) if self.packing else packing.plain(micro)
        learnt = (laid.labels != losses.IGNORE).any(0).nonzero()
        keep = laid.labels.shape[1] - int(learnt[0])
        options = {"use_cache": False, "logits_to_keep": keep}
        logits = model(**laid.inputs, **{name: v for name, v in options.items() if name in self._known}).logits
        return logits[:, -keep:], laid.labels[:, -keep:], laid.owner[:, -keep:]

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Completed:
        """How likely the completions are, and what is generated instead, for these rows, in their order.

        Rows are taken sorted by length; of `inputs` nothing is known but the prompt.
        """
        device, examples = next(model.parameters()).device, [self._splits[split].examples[row] for row in rows]
        nll, found = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(2, len(rows), dtype=torch.long)
        lengths = [len(self._rows[split][row].ids) for row in rows]
        model.eval()
        with torch.inference_mode():
            for chunk in cut(lengths, budget, overhead_tokens(device)) if split != "inputs" else []:
                micro = self.batch(split, [rows[i] for i in chunk]).to(device)
                nll[chunk], found[:, chunk] = packing.scores(*self._logits(model, micro), len(chunk))
        texts = self._generate(model, split, rows, budget)
        return Completed(
            nll.numpy(), found[0].numpy(), found[1].numpy(),
            [{"id": e.id, "text": e.text, **({} if e.pair is None else {"pair": e.pair})} for e in examples],
            [texts.get(i) for i in range(len(rows))], [str(example.label) for example in examples],
        )  # fmt: skip

    def _is_asked(self, split: str, row: int) -> bool:
        every = -(-self.num_rows(split) // self.validation_rows) if split == "validation" else 1
        return row % every == 0

    def _generate(self, model: nn.Module, split: str, rows: range, budget: int) -> dict[int, str]:
        """What the model writes for those that are asked for, by place in `rows`."""
        asked = [i for i, row in enumerate(rows) if self._is_asked(split, row)]
        prompts, texts = [(row := self._rows[split][rows[i]]).ids[: row.start] for i in asked], dict[int, str]()
        ends = {self._writer.end, self._writer.tokenizer.eos_token_id} - {None}
        for chunk in cut([len(prompt) for prompt in prompts], budget, overhead_tokens(next(model.parameters()).device)):
            written = generation.greedy(model, [prompts[i] for i in chunk], ends, self.max_new_tokens)
            texts |= {asked[i]: self._writer.text(ids) for i, ids in zip(chunk, written, strict=True)}
        return texts

    def example(self, batch_size: int, length: int) -> dict[str, Tensor]:
        """Ordinary tokens of the training texts at random, unpadded. [batch_size, length]"""
        special = set(self._writer.tokenizer.all_special_ids)
        seen = {token for row in self._rows["train"][:1000] for token in row.ids} - special
        words = torch.tensor(sorted(seen or {self._writer.end}))
        ids = words[torch.randint(len(words), (batch_size, length), generator=torch.Generator().manual_seed(0))]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tokenizer, its chat template included, and the model's configuration."""
        config: Any = model.config
        config.save_pretrained(folder)
        self._writer.tokenizer.save_pretrained(folder)
