"""The README cannot rot: its tree is the disk's, and its commands are accepted."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from harness.errors import SpecError
from harness.models import transformer
from harness.specs import spec, yaml_source
from harness.storage import PROJECT
from harness.sweeps import space
from tests import pages
from tests.toys import classifier, deviation, random_batch

TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_tree_names_every_module_once() -> None:
    tree = TEXT[TEXT.index("\nharness/  ") : TEXT.index("```", TEXT.index("\nharness/  "))]
    named = re.findall(r"[a-z_0-9]+\.py", tree)
    on_disk = [path.name for path in (PROJECT / "harness").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(on_disk)


def test_the_tree_names_every_benchmark_once() -> None:
    tree = TEXT[TEXT.index("\nbenchmarks/  ") : TEXT.index("\ntests/  ")]
    on_disk = [path.name for path in (PROJECT / "benchmarks").glob("*.py")]
    assert sorted(re.findall(r"^  ([a-z_]+\.py)", tree, flags=re.MULTILINE)) == sorted(on_disk)


def test_the_tree_stands_in_the_order_of_the_layers() -> None:
    from tests.test_layers import LAYER

    tree = TEXT[TEXT.index("\nharness/  ") : TEXT.index("```", TEXT.index("\nharness/  "))]
    rooms = re.findall(r"^  ([a-z_]+)(?:\.py|/)", tree, flags=re.MULTILINE)
    assert [LAYER[room] for room in rooms] == sorted(LAYER[room] for room in rooms)


def test_no_line_of_it_begins_twice() -> None:
    """Such as a paragraph whose old wording was left in."""
    begins = [line[:40] for line in TEXT.splitlines() if re.match(r"[A-Z*]", line)]
    assert [begin for begin, count in Counter(begins).items() if count > 1] == []


@pytest.mark.parametrize("name", ["scratch", "pretrain_clm", "pretrain_mlm"])
def test_the_parameters_of_own_models_are_those_that_train(name: str) -> None:
    chosen = spec.load(name)
    (kind,) = chosen.task
    vocabulary, labels = chosen.model.sizes.vocabulary, 3 if kind == "sequence_classification" else 0
    model = transformer.build(chosen.model, kind, vocab_size=vocabulary, num_labels=labels, pad_token_id=0)  # type: ignore[arg-type]
    number = sum(parameter.numel() for parameter in model.parameters())
    (row,) = re.findall(rf"^\| `{name}` \|.*$", TEXT, flags=re.MULTILINE)
    assert f"| {number:,} (100 %) |" in row
    told = re.search(r"([\d.]+) million parameters", spec.story(name))
    assert told is None or told[1] == f"{number / 1e6:.1f}"


@pytest.mark.parametrize("line", pages.launches(TEXT))
def test_launch_commands_are_accepted(line: str) -> None:
    with pytest.raises(SpecError) if "learing_rate" in line else nullcontext():
        pages.accept(line)


def test_the_search_space_in_it_is_a_shipped_one() -> None:
    """Comments aside."""
    (shown,) = pages.blocks(TEXT, "yaml")
    shipped = yaml_source.load(PROJECT / "search_spaces" / "lora_rank.yaml")
    assert yaml.safe_load(shown) == shipped


def test_there_are_such_commands() -> None:
    assert len(pages.launches(TEXT)) >= 8


def test_console_commands_exist() -> None:
    assert pages.harness_commands(TEXT) == pages.known_commands()


def test_make_targets_exist() -> None:
    assert set(re.findall(r"`?make ([a-z]+)", TEXT)) <= pages.make_targets()


def test_every_experiment_is_in_the_table_with_its_score() -> None:
    for name in spec.names():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}`"))
        assert any(word in row for word in ("±", "one seed", "not measured"))


def test_every_search_space_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|(?: `exp=\w+`)? \|", TEXT, flags=re.MULTILINE)) >= set(space.names())


def test_the_python_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"model": classifier(), "pretrained": classifier()}
    snippet, _ = pages.blocks(TEXT, "python")  # the other: test_weights_elsewhere.py
    exec(snippet, names)  # noqa: S102 - the README's own
    inputs = random_batch([5, 3]).per_token
    assert deviation(names["pretrained"](**inputs).logits, names["model"](**inputs).logits) < 1e-12
