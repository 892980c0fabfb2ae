"""Files of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822): articles, paragraphs, questions.

    {"version": ..., "data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...,
        "is_impossible": false, "answers": [{"text": ..., "answer_start": ...}, ...]}, ...]}, ...]}, ...]}

Each question becomes a row with the columns that the data set has on the Hub; `title` is what groups them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import DataError

COLUMNS = ["id", "title", "context", "question", "answers"]


def is_squad(value: object) -> bool:
    """Whether a JSON value is laid out so."""
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and all(isinstance(one, dict) and "paragraphs" in one for one in articles)


def rows(path: Path, value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every question as where it stands and its cells; `answers` is None where nothing is said about them.

    Raises:
        DataError: something is not where it belongs, with its place.
    """
    for article_place, article in _items(path, value, "data", ""):
        for place, paragraph in _items(path, article, "paragraphs", article_place):
            for own, question in _items(path, paragraph, "qas", place):
                if "context" not in paragraph or "question" not in question:
                    missing = "question" if "context" in paragraph else "context"
                    at = f"{path}, {own if missing == 'question' else place}"
                    raise DataError(f"no {missing} here", where=at, fix=f'give it its "{missing}"')
                cells = {"id": question.get("id"), "title": article.get("title")}
                cells |= {"context": paragraph["context"], "question": question["question"]}
                yield f"{path}, {own}", {**cells, "answers": _answers(question)}


def _items(path: Path, of: Mapping[str, Any], key: str, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list and their places, such as `data[3].paragraphs[0]`."""
    own = f"{place}.{key}" if place else key
    found = of.get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        what = f"no list of objects is called '{key}' here"
        raise DataError(what, where=f"{path}, {place or 'top'}", fix="lay the file out as SQuAD does")
    for number, one in enumerate(found):
        yield f"{own}[{number}]", one


def _answers(question: Mapping[str, Any]) -> list[Any] | None:
    """SQuAD 2.0 keeps plausible answers of impossible questions elsewhere: they have none."""
    if question.get("is_impossible"):
        return []
    return question.get("answers") or None
