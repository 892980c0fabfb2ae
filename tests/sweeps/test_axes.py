from __future__ import annotations

import math
from typing import Any

import pytest

from harness.sweeps.axes import Axis, axis, brief, label, round_numbers, round_steps, short


def test_numbers_come_by_size_and_before_words() -> None:
    assert axis("rank", "choice", [16, 2, 8, 2]).choices == ("2", "8", "16")
    assert axis("rank", "choice", ["b", 16, "a", None, 2, True]).choices == ("2", "16", "a", "b", "null", "true")


@pytest.mark.parametrize(
    ("scale", "values", "kind"),
    [
        ("log", [1e-5, 1e-3], "log"),
        ("linear", [0.0, 0.5], "linear"),
        ("choice", [1, 2], "choice"),
        ("log", [0.0, 0.5], "linear"),
        ("linear", [0.1, "off"], "choice"),
        ("log", [[1, 2], {"a": 1}], "choice"),
        ("linear", [math.inf, 1.0], "choice"),
    ],
)
def test_a_scale_that_the_values_do_not_admit_gives_way(scale: str, values: list[Any], kind: str) -> None:
    assert axis("key", scale, values).kind == kind


def test_a_place_is_a_logarithm_a_number_or_the_number_of_a_choice() -> None:
    assert axis("key", "log", [1e-5, 1e-3]).place(1e-4) == pytest.approx(-4)
    assert axis("key", "linear", [0, 1]).place(0.25) == 0.25
    assert axis("key", "choice", ["x", "y", [1]]).place([1]) == 0


def test_only_numbers_can_be_ordered() -> None:
    assert axis("rank", "choice", [1, 2, 4]).ordered
    assert not axis("rank", "choice", [1, 2, "all"]).ordered
    assert not axis("rank", "choice", [8, 8]).ordered
    assert not axis("flag", "choice", [True, False]).ordered


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2, 4, 8, 16], "log"), ([0, 0.1, 0.9], "linear"), ([0.1, 0.3, 0.5, 0.7, 0.9], "linear"), ([8, 16], "linear")],
)
def test_choices_that_grow_by_factors_get_a_logarithm(values: list[float], kind: str) -> None:
    assert axis("rank", "choice", values).as_number().kind == kind
    assert axis("p", "linear", [0, 1]).as_number().kind == "linear"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e-5, 1e-3, [1e-5, 1e-4, 1e-3]),
        (2e-5, 1e-3, [3e-5, 1e-4, 3e-4, 1e-3]),
        (1, 9, [1, 2, 5]),
        (3.1, 4.2, [3.1, 4.2]),
        (0.7, 0.7, [0.7]),
    ],
)
def test_ticks_of_a_logarithm_are_round(low: float, high: float, expected: list[float]) -> None:
    assert round_numbers(low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.61, 0.72, [0.62, 0.64, 0.66, 0.68, 0.7, 0.72]),
        (-30, 30, [-30, -20, -10, 0, 10, 20, 30]),
        (5, 5, [5]),
    ],
)
def test_ticks_of_a_number_are_round(low: float, high: float, expected: list[float]) -> None:
    assert round_steps(low, high) == expected


def test_ticks_are_named() -> None:
    assert axis("key", "choice", ["b", "a"]).ticks() == {0.0: "a", 1.0: "b"}
    assert list(axis("key", "log", [1e-5, 1e-3]).ticks().values()) == ["1e-5", "0.0001", "0.001"]
    assert Axis("key", "linear", numbers=(0.0, 3.0)).ticks()[0.5] == "0.5"


def test_values_read_as_in_a_spec() -> None:
    assert [label(one) for one in (8, 3e-5, 1e6, 8.0, True, None, "lora", [1, "a"])] == [
        "8", "3e-5", "1000000", "8", "true", "null", "lora", '[1, "a"]',
    ]  # fmt: skip
    assert [brief(one) for one in (0.000123456, 0.81239, 123456)] == ["0.0001235", "0.8124", "123456"]


def test_what_is_too_long_loses_its_middle() -> None:
    assert short("abcdefghij", 10) == "abcdefghij"
    assert short("abcdefghijk", 6) == "abc…jk"
