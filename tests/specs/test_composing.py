from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.specs import composing

WORDS = ["true", "False", "null", "NULL", "nan", "inf", "-inf", "1", "1e5", "-0.5", "1_000", "0x10", "~", "", "???"]
TRICKY = [
    "'",
    '"',
    "\\",
    "\\'",
    "a\\",
    " a ",
    "a,b",
    "a=b",
    "{a:1}",
    "[1]",
    "(x)",
    "$x",
    "choice(1,2)",
    "#",
    "ä",
    "%\t",
]
texts = st.one_of(
    st.sampled_from(WORDS + TRICKY),
    st.text(alphabet=st.sampled_from(list("aZ0_./-:,='\"\\ ()[]{}$#%@!?*&|<>~+")), max_size=12),
    st.text(alphabet=st.characters(exclude_categories=["C"]), max_size=12),
).filter(lambda text: "${" not in text)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), texts
)
keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda key: key.lower() not in ("true", "false", "null", "nan", "inf")
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("specs")
    (found / "empty.yaml").write_text("a: {}\n")
    return found


def _typed(value: Any) -> Any:
    """The value with its types: 1, 1.0 and True are not the same."""
    if isinstance(value, list):
        return [_typed(one) for one in value]
    return {k: _typed(v) for k, v in value.items()} if isinstance(value, dict) else (type(value), value)


@given(st.lists(values, min_size=1, max_size=8))
@example([{"yes": "no"}, [["\\", "'"], {"a": "\\'"}]])
@example([*WORDS, *TRICKY])
@settings(max_examples=50, deadline=None)
def test_an_override_is_read_back_as_it_was_written(folder: Path, several: list[Any]) -> None:
    overrides = [composing.override(f"a.b{i}", value) for i, value in enumerate(several)]
    composed = composing.compose(folder, "empty", overrides)
    assert [_typed(value) for value in composed["a"].values()] == [_typed(value) for value in several]


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a ${b}", ["${a}"], {"a": "\\${b}"}])
def test_what_refers_to_something_else_is_refused(folder: Path, value: Any) -> None:
    with pytest.raises(SpecError, match="cannot refer to the environment or to other keys"):
        composing.compose(folder, "empty", [composing.override("a.b", value)])
