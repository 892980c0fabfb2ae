"""The values that a setting may take; mistakes in them are told in test_space.py, with their lines."""

from __future__ import annotations

from typing import Any

import pytest

from harness.sweeps.distribution import Distribution, Parameter


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"int_uniform": [1, 4]}, [1, 2, 3, 4]),
        ({"int_uniform": [1, 4], "step": 2}, [1, 3]),
        ({"uniform": [0.0, 0.3], "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
        ({"uniform": [0.0, 0.35], "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
        ({"int_log_uniform": [2, 4]}, [2, 3, 4]),
        ({"choice": ["a", [1], None]}, ["a", [1], None]),
        ({"log_uniform": [0.1, 1.0]}, None),
    ],
)
def test_values(settings: dict[str, Any], values: Any) -> None:
    assert Distribution.model_validate(settings).values == values


@pytest.mark.parametrize(
    ("settings", "kind", "scale", "extremes"),
    [
        ({"choice": [3, 1, 2]}, "choice", "choice", [3, 1, 2]),
        ({"uniform": [0.0, 1.0]}, "uniform", "linear", [0.0, 1.0]),
        ({"int_log_uniform": [1, 64]}, "int_log_uniform", "log", [1, 64]),
    ],
)
def test_what_lies_between_is_right_if_the_extremes_are(
    settings: dict[str, Any], kind: str, scale: str, extremes: list[Any]
) -> None:
    made = Distribution.model_validate(settings)
    assert (made.kind, made.scale, made.extremes) == (kind, scale, extremes)


def test_lists_and_maps_among_the_choices_have_a_label_and_scalars_are_their_own() -> None:
    made = Distribution.model_validate({"choice": ["a", 1, None, [1, 2], {"b": 1, "a": 2}]})
    assert made.labels == {"a": "a", 1: 1, None: None, "[1, 2]": [1, 2], '{"a": 2, "b": 1}': {"b": 1, "a": 2}}


def test_a_parameter_applies_where_all_of_its_conditions_hold() -> None:
    made = Distribution.model_validate({"choice": [1], "when": {"rule": ["box", "sam"], "size": 3}})
    parameter = Parameter("key", "key", made)
    assert parameter.applies({"rule": "sam", "size": 3})
    assert not parameter.applies({"rule": "sam", "size": 4})
    assert not parameter.applies({"rule": "sam"})
