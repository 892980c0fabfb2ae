from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StorageError
from harness.sweeps import figures as study_figures
from harness.sweeps.trial_figures import Study
from tests.studies import SCALES, TWO, confirmed, study, trial, trials

PAGES = [
    "history.html",
    "learning.html",
    "importances.html",
    "slices.html",
    "parallel.html",
    "pareto.html",
    "curve.html",
]


def _write(folder: Path, one: Study) -> list[str]:
    return study_figures.write(folder, one.trials, one.confirmed, one.objectives, one.scales, one.importances)


class _Loads(HTMLParser):
    """What a page would fetch, and which tags it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attributes if name in ("src", "href")]


def test_every_page_is_written_and_loads_nothing(tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    named = [replace(one, params=one.params | {bad: bad}, reason=bad, run=bad) for one in trials()]
    objectives = [*TWO[:1], (bad, "minimize")]
    one = study(trials=named, objectives=objectives, scales=SCALES | {bad: "choice"}, importances={bad: 0.5, "b": 0.5})
    assert _write(tmp_path, one) == PAGES == [name for name in PAGES if (tmp_path / name).is_file()]
    for name in PAGES:
        text = (tmp_path / name).read_text(encoding="utf-8")
        page = _Loads(text)
        assert page.addresses == []
        assert {"html", "head", "meta", "style", "body", "div", "script"} >= set(page.tags)
        assert "<script src=" not in text
        assert "<img src=x" not in text
        drawn = text[text.rindex("Plotly.newPlot") :]
        if name != "parallel.html":  # its ticks are text, which plotly never reads as HTML
            assert set(re.findall(r"\\u003c.{2}", drawn)) <= {"\\u003cbr"}


def test_pareto_needs_two_objectives_and_importances_two_keys(tmp_path: Path) -> None:
    assert _write(tmp_path, study()) == [name for name in PAGES if name != "pareto.html"]
    one = study(importances={"a": 1.0, "b": math.nan})
    assert study_figures.importances(one) is None
    bars = study_figures.importances(study(importances={"a": 0.2, "b<i>": 0.7, "c": 0.1})).data[0]
    assert (list(bars.y), list(bars.x)) == (["c", "a", "b&lt;i&gt;"], [0.1, 0.2, 0.7])
    assert bars.orientation == "h"


def test_parallel_lines_pass_every_key() -> None:
    (lines,) = study_figures.parallel(study()).data
    found = {one.label: one for one in lines.dimensions}
    assert list(found) == ["arm", *SCALES, "validation/f1_macro"]
    assert all(len(one["values"]) == 16 for one in lines.dimensions)
    assert min(found["train.learning_rate"]["values"]) == pytest.approx(
        math.log10(min(one.params["train.learning_rate"] for one in trials() if one.state == "complete"))
    )
    assert "0.0001" in found["train.learning_rate"].ticktext
    assert list(found["methods"].ticktext) == ["none", "lora", "mixout"]
    none = found["methods.lora.rank"].tickvals[0]
    assert found["methods.lora.rank"].ticktext == ("none", "1", "2", "16", "32")
    assert list(found["methods.lora.rank"]["values"]).count(none) == 12
    for one in lines.dimensions:
        assert one.range[0] < min(one["values"]) <= max(one["values"]) < one.range[1]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_better_the_darker(direction: str) -> None:
    some = [trial(n, value, params={"p": n}) for n, value in enumerate([0.5, 0.7, 0.6])]
    (lines,) = study_figures.parallel(study(trials=some, objectives=[("f1", direction)], scales={"p": "linear"})).data
    assert list(lines.line.color) == ([0, 2, 1] if direction == "maximize" else [2, 0, 1])
    assert [one.label for one in lines.dimensions] == ["p", "f1"]


def _same(value: float) -> list[Any]:
    return [trial(n, value, params={"train.learning_rate": 1e-4, "methods": "lora"}) for n in range(3)]


ONE_OBJECTIVE = [name for name in PAGES if name != "pareto.html"]
WITHOUT_CURVE = ["history.html", "slices.html", "parallel.html"]
BARE: dict[str, Any] = {"confirmed": [], "importances": {}}
RATES = [confirmed(n, [0.5, 0.5], params={"train.learning_rate": 10.0**-n}) for n in (3, 4)]
PRUNED = [trial(n, 0.3, state="pruned", intermediate={1: 0.3}) for n in range(3)]
NANS = {"importances": {"a": math.nan, "b": math.inf}, "confirmed": [confirmed(0, [math.nan])]}
EDGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing at all": (BARE | {"trials": []}, []),
    "no objective": ({"objectives": []}, []),
    "no key": ({"scales": {}}, ["history.html", "learning.html", "importances.html"]),
    "only waiting": (BARE | {"trials": [trial(0, state="waiting")]}, []),
    "all failed": (BARE | {"trials": [trial(n, state="failed") for n in range(3)]}, ["history.html"]),
    "all pruned": (BARE | {"trials": PRUNED}, ["history.html", "learning.html", "slices.html"]),
    "one trial": (BARE | {"trials": [trial(0, 0.5)]}, WITHOUT_CURVE),
    "constant": (BARE | {"trials": _same(0.5)}, WITHOUT_CURVE),
    "zero": (BARE | {"trials": _same(0.0)}, WITHOUT_CURVE),
    "constant, confirmed": (BARE | {"trials": _same(0.5), "confirmed": RATES}, [*WITHOUT_CURVE, "curve.html"]),
    "no importance": ({"importances": {"a": 0.0, "b": 0.0}}, ONE_OBJECTIVE),
    "no baseline": ({"trials": [one for one in trials() if one.arm == "search"], "confirmed": []}, ONE_OBJECTIVE),
    "only the baseline": (
        {"trials": [one for one in trials() if one.arm == "baseline"], "confirmed": []},
        ["history.html", "learning.html", "importances.html", "slices.html", "parallel.html"],
    ),
    "NaN": (NANS | {"trials": [trial(n, math.nan, intermediate={1: math.nan}) for n in range(2)]}, ["history.html"]),
    "NaN in one of two": (
        {"trials": [trial(0, math.nan), *trials()], **NANS},
        [*ONE_OBJECTIVE[:2], *ONE_OBJECTIVE[3:]],
    ),
    "no seed": ({"confirmed": [confirmed(0, [])]}, ONE_OBJECTIVE),
}


@pytest.mark.parametrize("case", EDGES)
def test_what_is_missing_leaves_pages_out_and_raises_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields, expected = EDGES[case]
    pages: dict[str, str] = {}
    monkeypatch.setattr("harness.figures.save_html", lambda figure, path: pages.update({path.name: figure.to_json()}))
    assert _write(Path("folder"), study(**fields)) == list(pages) == expected
    for text in pages.values():
        data = text[: text.index('"layout"')]
        assert not re.search(r"NaN|Infinity|null", data)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        _write(tmp_path / "missing", study())
