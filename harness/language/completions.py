"""A prompt and its completion as tokens: how a prompt is written, where the completion begins, what ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness import losses, notes
from harness.errors import DataError, ModelError

PLAIN = "### Instruction:\n{}\n\n### Response:\n"
"""Around a prompt where there is no chat template."""


@dataclass(frozen=True)
class Row:
    """The tokens of a pair; of a prompt without a completion, the prompt's alone."""

    ids: list[int]
    start: int
    """Tokens of the prompt: the completion begins here."""

    @property
    def targets(self) -> list[int]:
        """For each token the one that follows, where that belongs to the completion; else -100."""
        return [losses.IGNORE] * (self.start - 1) + self.ids[self.start :] + [losses.IGNORE]


class Writer:
    """Writes pairs as one tokenizer reads them."""

    def __init__(self, tokenizer: Any, template: Literal["auto", "chat", "plain"], name: str) -> None:
        """`template`: `auto` is the tokenizer's chat template where it has one. Raises ModelError: no such, no end."""
        self.tokenizer = tokenizer
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        if template == "chat" and not has_chat:
            fix = "set it to plain, or take an instruction-tuned model"
            raise ModelError(f"the tokenizer of '{name}' has no chat template", where="template", fix=fix)
        if template == "auto" and not has_chat:
            notes.note(f"the tokenizer of '{name}' has no chat template: prompts are written as {PLAIN!r}")
        self.is_chat = has_chat and template != "plain"
        self._begin = self._beginning()
        self.end = self._end(name)
        """The token that ends a completion."""

    def _beginning(self) -> list[int]:
        """What the tokenizer puts before a text; a chat template writes it itself."""
        first, begin = self.tokenizer("")["input_ids"][:1], self.tokenizer.bos_token_id
        return [begin] if not self.is_chat and begin is not None and first == [begin] else []

    def _end(self, name: str) -> int:
        """What a chat template writes behind an answer, if that is one token; else the end-of-text token."""
        if self.is_chat:
            asked = [{"role": "user", "content": "q"}]
            whole = self._chat([*asked, {"role": "assistant", "content": "answer"}], add_generation_prompt=False)
            behind = self._ids(whole.rpartition("answer")[2].strip())
            if len(behind) == 1 and behind[0] in self.tokenizer.all_special_ids:
                return behind[0]
        if self.tokenizer.eos_token_id is None:
            fix = "take a model whose tokenizer has an end-of-text token"
            raise ModelError(f"the tokenizer of '{name}' has no token that ends a text", where="model.name", fix=fix)
        return int(self.tokenizer.eos_token_id)

    def _chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        return str(self.tokenizer.apply_chat_template(messages, **options))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def prompt(self, text: str) -> list[int]:
        """The tokens after which a completion begins."""
        if self.is_chat:
            return self._ids(self._chat([{"role": "user", "content": text}], add_generation_prompt=True))
        return [*self._begin, *self._ids(PLAIN.format(text))]

    def row(self, prompt: str, completion: str | None, max_length: int, where: str) -> tuple[Row, bool]:
        """The pair, and whether the end of its completion was cut off; None: a prompt that is to be completed.

        Raises:
            DataError: the prompt leaves no room for a completion: nothing would be learnt from it, or written.
        """
        asked = self.prompt(prompt)
        if len(asked) >= max_length:
            what = f"the prompt has {len(asked)} tokens, which leaves nothing of {max_length} for a completion"
            raise DataError(what, where=where, fix="raise max_length of the task, or leave this row out")
        if completion is None:
            return Row(asked, len(asked)), False
        whole = [*asked, *self._ids(completion), self.end]
        return Row(whole[:max_length], len(asked)), len(whole) > max_length

    def text(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def joined(text: str, pair: str | None) -> str:
    """One prompt of one or two columns: an instruction and its input."""
    return text if pair is None else f"{text}\n\n{pair}"
