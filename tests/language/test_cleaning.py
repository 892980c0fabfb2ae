"""Cleaning: what goes, what stays in any language, and that every change is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.language.cleaning import STOP_WORDS, Cleaning, clean, script_of

NONE = Cleaning("keep", "all", "any", 0.3, "any", 0.1)
REPAIR = replace(NONE, mojibake="repair")


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ('"on it,"?shark Herjavec told', '"on it," shark Herjavec told'),
        ('DeVos"?highly contentious', 'DeVos" highly contentious'),
        ("don\ufffdt", "don't"),
        ("the \ufffd end", "the  end"),
        ("Itâ€™s a cafÃ©", "It’s a café"),
        ("EspaÃ±a â€“ niÃ±o", "España – niño"),
    ],
)
def test_mojibake_is_repaired_and_counted(broken: str, whole: str) -> None:
    text, counts = clean(f"as it is\n{broken}", REPAIR)
    assert text == f"as it is\n{whole}"
    assert counts == {"lines": 2, "lines_repaired": 1}
    dropped, counts = clean(f"as it is\n{broken}", replace(NONE, mojibake="drop"))
    assert dropped == "as it is"
    assert counts == {"lines": 2, "lines_dropped_mojibake": 1}
    assert clean(broken, NONE) == (broken, {"lines": 1})


@pytest.mark.parametrize(
    "line",
    [
        'did he say "yes"? he did',
        '("really"?)',
        "«Él está aquí», dijo Ñoño.",
        "Ângela é âncora",
        "Größe, Maß, Ärger",
        "naïve café",
    ],
)
def test_what_is_whole_is_left(line: str) -> None:
    assert clean(line, REPAIR) == (line, {"lines": 1})


def test_letters_digits_and_punctuation_of_all_scripts_stay() -> None:
    line = "¿Qué? «Straße» Ἑλλάς Москва नमस्ते 東京 ١٢٣ €5 + 3 = 8 – „so“ it’s x^2 `a|b`~"
    assert clean(line, replace(NONE, characters="text"))[0] == line


def test_other_characters_go_and_are_counted() -> None:
    text, counts = clean("a\u200bb\x07c 😀 ★ d\u00a0e\tf", replace(NONE, characters="text"))
    assert text == "abc   d e f"
    assert counts == {"lines": 1, "characters_removed": 4}


def test_forms_are_composed() -> None:
    assert clean("cafe\u0301", NONE)[0] == "café"


def test_lines_of_other_scripts_are_dropped_at_the_share_that_is_given() -> None:
    latin = replace(NONE, script="latin", max_foreign=0.5)
    assert clean("ab вг", latin) == ("ab вг", {"lines": 1})
    assert clean("ab вгд", latin) == ("", {"lines": 1, "lines_dropped_script": 1})
    assert clean("1234 !", latin) == ("1234 !", {"lines": 1}), "no letters are of no script"
    assert clean("ñandú Łódź", replace(latin, max_foreign=0.0))[0] == "ñandú Łódź"


def test_lines_of_other_languages_are_dropped() -> None:
    english = "the man who was in the house said that he had not been there"
    spanish = "el hombre que estaba en la casa dijo que no había estado allí con los demás"
    rules = replace(NONE, language="english")
    text, counts = clean(f"{english}\n{spanish}\nSeparate nine words are never judged by any rule", rules)
    assert text.split("\n") == [english, "Separate nine words are never judged by any rule"]
    assert counts == {"lines": 3, "lines_dropped_language": 1}
    assert clean(spanish, replace(rules, language="spanish"))[0] == spanish


def test_blank_lines_are_no_lines() -> None:
    assert clean("\n a \n\n", NONE) == ("a", {"lines": 1})


def test_every_list_of_stop_words_has_its_words_once() -> None:
    for words in STOP_WORDS.values():
        assert len(set(words.split())) > 30


def test_scripts_have_the_names_of_unicode() -> None:
    assert [script_of(letter) for letter in "añжλ中あ"] == ["latin", "latin", "cyrillic", "greek", "cjk", "hiragana"]
