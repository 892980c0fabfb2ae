"""Questions about a context: answers are spans of it, given by their text and their first character.

A label is a tuple of (text, start) pairs: what people answered, the first of them learnt. A question that the context
does not answer has the one pair `NO_ANSWER`, as SQuAD 2.0 has such questions (Rajpurkar et al. 2018, arXiv 1806.03822).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from harness.data.labelling import Labelling, as_text
from harness.data.splitting import Row
from harness.errors import DataError

Answer = tuple[str, int]
"""Its text, and the character of the context that it begins with."""
NO_ANSWER: Answer = ("", -1)
ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"
_FORM = 'write {"text": ["..."], "answer_start": [17]}; characters are counted from 0, two empty lists are no answer'


class Answers(Labelling):
    """Spans of the second text, which is the context of the question in the first one."""

    def label(self, cell: Any, beside: Sequence[Any], where: str, column: str) -> tuple[Answer, ...]:
        """`{"text": [...], "answer_start": [...]}` as on the Hub, or a list of `{"text": ..., "answer_start": ...}`.

        Raises:
            DataError: it is neither, or an answer does not stand in the context where it says.
        """
        if len(beside) != 2:
            fix = "name the columns of question and context: data.text=[question,context]"
            raise DataError("answers stand in a context, and data.text names one column", where="data.text", fix=fix)
        if cell is None:
            return ()
        context = as_text(beside[1], where, "context")
        found = _pairs(cell, where, column)
        for text, start in found:
            _check_place(text, start, context, where)
        return found or (NO_ANSWER,)

    def unknown(self, beside: Sequence[Any]) -> tuple[Answer, ...]:
        """As if there were none."""
        return (NO_ANSWER,)

    def group(self, texts: Sequence[str]) -> str:
        """The context: its questions stay in one split."""
        return texts[1]

    def stratum(self, label: Any) -> str:
        """Whether there is an answer, in proportion."""
        return _kind(label)

    def names(self, train: list[Row], order: list[str] | None) -> list[str]:
        """Both kinds of question where train has questions without an answer; else [], and every one has one."""
        return [ANSWERABLE, UNANSWERABLE] if any(_kind(row.label) == UNANSWERABLE for row in train) else []

    def check(self, split: str, rows: Mapping[str, list[Row]], names: list[str], drawn: Collection[str]) -> None:
        """Train has answers, and questions without one where the others have them."""
        kinds = [_kind(row.label) for row in rows[split]]
        if split == "train" and ANSWERABLE not in kinds:
            raise DataError("train has no question with an answer", where="data.label", fix="give rows with answers")
        if not names and (count := kinds.count(UNANSWERABLE)):
            what = f"{split} has {count} questions without an answer, train has none: it cannot be learnt"
            fix = "give train such questions, or leave them out"
            fix += " (or draw another split with data.split_seed)" if split in drawn else ""
            raise DataError(what, where="data.label", fix=fix)

    def counted(self, label: Any) -> Iterable[str]:
        """Its kind."""
        return (_kind(label),)


def _kind(label: tuple[Answer, ...]) -> str:
    return UNANSWERABLE if label[0] == NO_ANSWER else ANSWERABLE


def _pairs(cell: Any, where: str, column: str) -> tuple[Answer, ...]:
    """The answers of a cell, not yet looked up in the context."""
    if isinstance(cell, Mapping) and {"text", "answer_start"} <= cell.keys():
        texts, starts = cell["text"], cell["answer_start"]
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            what = f"column '{column}': text and answer_start are not two lists of one length"
            raise DataError(what, where=where, fix=_FORM)
        found = list(zip(texts, starts, strict=True))
    elif isinstance(cell, list) and all(isinstance(one, Mapping) for one in cell):
        found = [(one.get("text"), one.get("answer_start")) for one in cell]
    else:
        what = f"column '{column}' holds a {type(cell).__name__}, not answers"
        raise DataError(what, where=where, fix=f"{_FORM}, in jsonl, json or parquet")
    for text, start in found:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"column '{column}': an answer's text is {text!r}", where=where, fix=_FORM)
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise DataError(f"column '{column}': an answer's start is {start!r}", where=where, fix=_FORM)
    return tuple(found)


def _check_place(text: str, start: int, context: str, where: str) -> None:
    stands = context[start : start + len(text)]
    if stands == text:
        return
    place = context.find(text)
    what = f"the answer {_short(text)} does not stand at character {start} of the context"
    why = f"there stands {_short(stands)}" if stands else f"the context has {len(context)} characters"
    fix = f"it stands at {place}" if place >= 0 else "it stands nowhere in it: repair the row, or leave it out"
    raise DataError(what, where=where, why=why, fix=f"{fix}; characters are counted from 0")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
