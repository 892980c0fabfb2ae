from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness import registry
from harness.assembly import Assembled
from harness.cli.launching import SMOKE, main
from harness.compression import prune
from harness.console import Terminal
from harness.errors import Interrupted
from harness.method import Method
from harness.models import surgery
from harness.predictions import Classified
from harness.results.variants import Bench, Judged, compare, judge
from harness.specs import spec
from harness.specs.schema import Spec
from tests.toys import ToyTask, classifier, deviation, random_batch

NAMES = ["a", "b", "c"]
TRAIN = spec.load("full_finetune").train


class RealTask(ToyTask):
    """Predicts the labels of its batches."""

    def predict(self, model: nn.Module, split: str, rows: range, budget: int) -> Classified:
        (batch,) = self._batches
        inputs = {name: tensor for name, tensor in batch.per_token.items() if name != "labels"}
        with torch.inference_mode():
            scores = model(**inputs).logits.double().numpy()
        return Classified(batch.per_example["labels"].numpy(), scores, NAMES, [])


def assembled(methods: dict[str, Any]) -> Assembled:
    model, built = classifier().float(), dict[str, Method]()
    for name, settings in methods.items():
        built[name] = registry.build("method", name, settings)
        model = built[name].edit_model(model)
    for method in built.values():
        method.prepare(model, TRAIN, 1)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b") or name.startswith("classifier"):
                parameter.normal_()
    return Assembled(model, built, set(), surgery.count_parameters(model, 1), {}, {})


def asked(*overrides: str) -> Spec:
    quick = ["latency.batch_sizes=[1,2]", "latency.lengths=[4,8]", "latency.runs=10", "latency.warmup=0"]
    return spec.load("lora", [*quick, *overrides])


def judged(folder: Path, chosen: Spec, run: Assembled, precision: str = "no") -> Judged:
    machine: Any = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision, autocast=nullcontext)
    task = RealTask().with_batches([random_batch([7, 5, 2, 9])])
    return judge(chosen, task, run, {"f1": registry.build("metric", "f1", {})}, machine, folder, Terminal())


BOTH = ("compression.int8=true", "compression.prune=[0.3,0.5]")


def test_nothing_is_done_unless_asked_for(tmp_path: Path) -> None:
    found = judged(tmp_path, asked(), assembled({}))
    assert (found.rows, found.scores, found.section, list(tmp_path.iterdir())) == ([], {}, "", [])


def test_every_variant_is_judged_and_the_model_of_the_run_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = assembled({"lora": {"rank": 2}})
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    found = judged(tmp_path, asked(*BOTH), run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    plain, small, half, int8 = found.rows
    assert [row.variant for row in found.rows] == ["plain", "prune_0.3", "prune_0.5", "int8"]
    assert (plain.max_logit_difference, plain.label_flips) == (0, 0)
    assert half.zeros > small.zeros > plain.zeros
    assert half.max_logit_difference > 0 < int8.max_logit_difference
    assert int8.size_mib < plain.size_mib == pytest.approx(half.size_mib, rel=0.05)
    assert {row.reference for row in found.rows} == {"plain"}
    keys = {"f1_macro", "accuracy", "size_mib", "zipped_mib", "max_logit_difference", "label_flips", "p50_ms", "p95_ms"}
    assert found.scores.keys() == {f"compression/{row.variant}_{key}" for row in found.rows for key in keys}
    content = json.loads((tmp_path / "compression" / "compression.json").read_text())
    assert [row["variant"] for row in content["variants"]] == [row.variant for row in found.rows]
    assert len(content["latency"]) == 4 * 2 * 2
    timed = next(r for r in found.times if (r.variant, r.batch_size, r.length) == ("int8", 1, 8))
    assert (int8.p50_ms, int8.p95_ms) == (timed.p50_ms, timed.p95_ms)
    told = capsys.readouterr().out
    for words in ("1 x 8 tokens", "only the zipped file is smaller", "prune_0.5"):
        assert words in told
        assert words in (tmp_path / "compression" / "compression.md").read_text()
    assert {path.name for path in (tmp_path / "compression").iterdir()} == {
        f"compression.{ending}" for ending in ("json", "md", "html", "png")
    }


def test_mixout_which_merges_nothing_is_compressed_as_well(tmp_path: Path) -> None:
    found = judged(tmp_path, asked(*BOTH, "latency.measure=false"), assembled({"mixout": {"layers": "all"}}))
    plain, _, half, int8 = found.rows
    assert half.zeros > plain.zeros + 0.1
    assert int8.size_mib < plain.size_mib
    assert int8.p50_ms is None
    assert not any(key.endswith("_ms") for key in found.scores)
    assert "p50" not in found.section


def test_where_the_run_is_not_in_float32_on_the_cpu_int8_has_a_plain_model_there(tmp_path: Path) -> None:
    found = judged(tmp_path, asked(*BOTH, "latency.measure=false"), assembled({}), "bf16")
    pairs = [(row.variant, row.reference) for row in found.rows]
    assert pairs[:3] == [("plain", "plain"), ("prune_0.3", "plain"), ("prune_0.5", "plain")]
    assert pairs[3:] == [("plain_cpu", "plain_cpu"), ("int8", "plain_cpu")]
    assert found.rows[0].device.endswith(", bf16")
    assert found.rows[-1].device.endswith(", float32")
    assert "compare it with plain_cpu" in found.section


def failing(error: BaseException) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        raise error

    return make


def bench() -> Bench:
    task = RealTask().with_batches([random_batch([3, 4])])
    return Bench(
        "here", lambda m: task.predict(m, "test", range(2), 1), lambda p: {"f1_macro": 0, "accuracy": 0}, lambda m: []
    )


def test_a_variant_that_fails_is_left_out_with_a_notice() -> None:
    model, said = classifier(), list[str]()
    makers = {
        "plain": lambda: model,
        "odd": failing(ValueError("it broke\nat length")),
        "half": lambda: prune(model, 0.5),
    }
    rows, _ = compare(makers, bench(), said.append)
    assert [row.variant for row in rows] == ["plain", "half"]
    assert said == ["NOTE no variant 'odd' here: it broke"]
    assert compare({"plain": failing(ValueError())}, bench(), said.append) == ([], [])


def test_being_stopped_is_not_a_failing_variant() -> None:
    with pytest.raises(Interrupted):
        compare({"plain": failing(Interrupted(143))}, bench(), print)


def test_differences_are_those_to_the_plain_logits() -> None:
    model = classifier()
    found = compare({"plain": lambda: model, "half": lambda: prune(model, 0.5)}, bench(), print)[0][1]
    task = RealTask().with_batches([random_batch([3, 4])])
    one, two = (task.predict(m, "test", range(2), 1) for m in (model, prune(model, 0.5)))
    assert found.max_logit_difference == deviation(torch.from_numpy(one.scores), torch.from_numpy(two.scores))
    assert found.label_flips == int(np.count_nonzero(one.predicted != two.predicted))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*noload.*")  # SQLAlchemy, at MLflow's mapper configuration
def test_a_run_leaves_them_in_its_folder_its_card_and_mlflow(tmp_path: Path) -> None:
    quick = ["latency.batch_sizes=[1]", "latency.lengths=[8]", "compression.int8=true", "compression.prune=[0.4]"]
    assert main(["exp=lora", *SMOKE, *quick, f"output={tmp_path}"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        logged = dict(database.execute("select key, value from latest_metrics").fetchall())
    assert logged["compression/plain_f1_macro"] == pytest.approx(logged["test/f1_macro"])
    assert logged["compression/int8_size_mib"] < 0.7 * logged["compression/plain_size_mib"]
    assert logged["compression/prune_0.4_zipped_mib"] < 0.9 * logged["compression/plain_zipped_mib"]
    assert logged["compression/int8_max_logit_difference"] < 0.5
    assert logged["compression/int8_p50_ms"] > 0
    section = (folder / "compression" / "compression.md").read_text().removeprefix("# Compressed")
    assert section.strip() in (folder / "model_card.md").read_text()
    artifacts = {path.name for path in (tmp_path / "artifacts").rglob("compression.*")}
    assert artifacts == {f"compression.{ending}" for ending in ("json", "md", "html", "png")}
