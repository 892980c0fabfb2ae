from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from harness import provenance, spec, table
from harness.cli import app
from harness.errors import SpecError


def finished(output: Path, name: str, seed: int, f1: float, test: str = "a", **settings: Any) -> Path:
    """The folder of a run as `harness.run` leaves it, as far as the table reads it."""
    folder = output / "runs" / f"{name}-s{seed}-{len(list(output.glob('runs/*')))}"
    folder.mkdir(parents=True)
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    resolved = {**spec.load(name, overrides).resolved(), "seeds": [seed]}
    (folder / "spec.yaml").write_text(yaml.safe_dump(resolved))
    (folder / "parameters.json").write_text(json.dumps({"trainable": 1234, "share_of_full_fine_tuning": 0.5}))
    scores = {"test/f1_macro": f1, "test/accuracy": 0.9, "time/train_s": 10.0 + seed, "memory/peak_gib": 1.5 + seed}
    data = [{"split": "test", "sha256": f"sha256:{test * 64}", "rows": 7}]
    predicate = {"runId": folder.name, "seeds": [str(seed)], "data": data, "metrics": scores}
    provenance.seal(folder, "end", predicate, None)
    return folder


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_spreads_and_the_difference_on_common_seeds(tmp_path: Path) -> None:
    for seed, full, lora in ((0, 0.7, 0.6), (1, 0.8, 0.9)):
        finished(tmp_path, "full_finetune", seed, full)
        finished(tmp_path, "lora", seed, lora)
    finished(tmp_path, "lora", 2, 0.9)
    text = table.render(table.read(tmp_path))
    assert text.startswith("7 test rows, sha256:aaaa")
    assert cells(text, "full_finetune")[1:4] == ["2", "0.750 ± 0.071", ""]
    assert cells(text, "lora")[1:] == [
        "3", "0.800 ± 0.173", "+0.000 ± 0.141", "0.900 ± 0.000", "1,234", "50.00%", "11", "3.50",
    ]  # fmt: skip
    assert text.index("`lora`") < text.index("`full_finetune`")


def test_other_settings_are_another_row_and_say_so(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.7)
    finished(tmp_path, "lora", 0, 0.6, methods__lora__rank=4, latency__measure=False)
    found = {row.experiment: row.f1_macro for row in table.read(tmp_path)}
    assert found == {"lora": 0.7, "lora methods.lora.rank=4": 0.6}


def test_full_fine_tuning_under_the_same_settings_is_the_reference(tmp_path: Path) -> None:
    finished(tmp_path, "full_finetune", 0, 0.5)
    finished(tmp_path, "full_finetune", 0, 0.6, train__epochs=2)
    finished(tmp_path, "lora", 0, 0.7, train__epochs=2)
    finished(tmp_path, "lora", 0, 0.8, methods__lora__rank=4)
    text = table.render(table.read(tmp_path))
    assert cells(text, "lora train.epochs=2")[3] == "+0.100"
    assert cells(text, "lora methods.lora.rank=4")[3] == "+0.300"
    assert cells(text, "full_finetune train.epochs=2")[3] == ""


def test_other_test_rows_are_another_table(tmp_path: Path) -> None:
    finished(tmp_path, "full_finetune", 0, 0.5, test="a")
    finished(tmp_path, "lora", 0, 0.7, test="b")
    text = table.render(table.read(tmp_path))
    assert len(text.split("test rows")) == 3
    assert cells(text, "lora")[3] == ""


def test_a_run_that_did_not_finish_or_was_edited_is_left_out(tmp_path: Path) -> None:
    whole = finished(tmp_path, "lora", 0, 0.7)
    (finished(tmp_path, "lora", 1, 0.7) / "end.envelope.json").unlink()
    edited = finished(tmp_path, "lora", 2, 0.7) / "end.envelope.json"
    edited.write_text(edited.read_text().replace("payload", "pay"))
    assert [row.run for row in table.read(tmp_path)] == [whole.name]


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    finished(tmp_path, "lora", 0, 0.7)
    with pytest.raises(SpecError, match=r"no finished run of awp in .*\n.*exp=awp seeds="):
        table.read(tmp_path, ["lora", "awp"])
    done = CliRunner().invoke(app, ["table", "lora", "--csv", "--output", str(tmp_path)])
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["experiment"], row["seed"], row["f1_macro"], row["peak_gib"]) == ("lora", "0", "0.7", "1.5")
