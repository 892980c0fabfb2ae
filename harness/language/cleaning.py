"""What of a text a language model is to learn from: characters, broken lines, lines of other languages; all counted.

A line is what stands between two line breaks. Nothing goes without being counted: `clean` returns what it did.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Literal

STOP_WORDS = {
    "english": "the of and to in a is that for it was on with as at by be this are from not have but an they or his "
    "he she which will has we you had been were their its who would there more said",
    "spanish": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este sí "
    "porque esta entre cuando muy sin sobre también me hasta hay donde",
    "german": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus "
    "er hat dass sie nach wird bei einer um am sind noch wie einem über",
    "french": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont la avec "
    "ou son mais comme on tout nous sa être cette aux deux",
}
"""Some of the most frequent words of a language: about four in ten words of its running text are among them."""
_WORD = re.compile(r"[^\W\d_]+")
_MISREAD = re.compile(
    "[ÂÃâ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
)
"""UTF-8 that was read as Windows-1252: `â€™`, `Ã©`."""
_CUT_QUOTE = re.compile(r'(?<=\S)"\?(?=[^\s"\')\]])')
"""A closing quote or a dash of which a byte and the space after it were lost, `said,"?he`; `"yes"? he` is none."""
_LOST_IN_WORD = re.compile("(?<=[^\\W\\d_])\ufffd(?=[^\\W\\d_])")


@dataclass(frozen=True)
class Cleaning:
    """What is done to a text."""

    mojibake: Literal["keep", "repair", "drop"]
    """Lines with characters that were decoded wrongly. repair: UTF-8 that was read as Windows-1252 is read again, a
    quote that lost its end gets a space, a character lost inside a word becomes an apostrophe, others go."""
    characters: Literal["all", "text"]
    """text: letters, marks, digits, punctuation, currency and mathematical signs of every script; others go."""
    script: str
    """`latin`, `cyrillic`, ...: the first word of the names that Unicode gives its letters; `any`."""
    max_foreign: float
    """The largest share of a line's letters that may be of other scripts."""
    language: str
    """One of `STOP_WORDS`; `any`."""
    min_stop_words: float
    """The smallest share of a line's words that are among them; lines of fewer than ten words are not judged."""


def clean(text: str, rules: Cleaning) -> tuple[str, Counter[str]]:
    """The text as it is learnt, and how many lines and characters were changed or left out, by reason."""
    kept, counts = [], Counter[str]()
    for line in unicodedata.normalize("NFC", text).split("\n"):
        counts["lines"] += bool(line.strip())
        repaired = _repaired(line) if rules.mojibake != "keep" else line
        if repaired != line:
            counts["lines_dropped_mojibake" if rules.mojibake == "drop" else "lines_repaired"] += 1
            if rules.mojibake == "drop":
                continue
        filtered = repaired.translate(_TEXT) if rules.characters == "text" else repaired
        counts["characters_removed"] += len(repaired) - len(filtered)
        if reason := _foreign(filtered, rules):
            counts[reason] += 1
        else:
            kept.append(filtered)
    return "\n".join(kept).strip(), +counts


def _repaired(line: str) -> str:
    """The line as it was before it was decoded wrongly, as far as that can be told."""
    if _MISREAD.search(line):
        line = _MISREAD_RUN.sub(_read_again, line)
    return _LOST_IN_WORD.sub("'", _CUT_QUOTE.sub('" ', line)).replace("\ufffd", "")


_MISREAD_RUN = re.compile("[\u0080-\uffff]+")


def _read_again(run: re.Match[str]) -> str:
    """Characters beyond ASCII as the UTF-8 that they are, if they are."""
    try:
        return bytes(_byte(character) for character in run[0]).decode("utf-8")
    except ValueError:  # UnicodeError among them
        return run[0]


def _byte(character: str) -> int:
    """Its byte in Windows-1252, whose five holes are those of Latin-1."""
    try:
        return character.encode("cp1252")[0]
    except UnicodeEncodeError:
        return character.encode("latin-1")[0]


class _Text(dict[int, str | None]):
    """For `str.translate`: what is no text goes, tabs and odd spaces become spaces; looked up once a character."""

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))
        is_space = category == "Zs" or chr(code) == "\t"
        kept = category[0] in "LMNP" or category in ("Sc", "Sm") or chr(code) in "^`~|"
        self[code] = " " if is_space else chr(code) if kept else None
        return self[code]


_TEXT = _Text()


def _foreign(line: str, rules: Cleaning) -> str:
    """Why a line is not in the language that is wanted; "" if it is, or nobody asked."""
    if rules.script != "any":
        letters = {character: count for character, count in Counter(line).items() if character.isalpha()}
        foreign = sum(count for character, count in letters.items() if script_of(character) != rules.script)
        if letters and foreign > rules.max_foreign * sum(letters.values()):
            return "lines_dropped_script"
    if rules.language != "any":
        words = _WORD.findall(line.casefold())
        known = _stop_words(rules.language)
        if len(words) >= 10 and sum(word in known for word in words) < rules.min_stop_words * len(words):
            return "lines_dropped_language"
    return ""


@functools.cache
def _stop_words(language: str) -> frozenset[str]:
    return frozenset(STOP_WORDS[language].split())


@functools.cache
def script_of(letter: str) -> str:
    """The script of a letter: the first word of its name in Unicode, `latin` of LATIN SMALL LETTER A, `cjk`, ..."""
    return unicodedata.name(letter, "unnamed").split()[0].split("-")[0].lower()
