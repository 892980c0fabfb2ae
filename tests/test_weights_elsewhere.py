"""The README's code without the harness: Transformers and PEFT load a run and say what the run said."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli.launching import SMOKE, main
from harness.storage import PROJECT
from tests.stores import QUIET

pytestmark = QUIET


def code() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), flags=re.DOTALL)
    (found,) = (block for block in blocks if "PeftModel" in block)
    return str(found)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("exp", ["lora", "full_finetune"])
def test_a_run_loads_without_the_harness(
    exp: str, tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"exp={exp}", *SMOKE, *tiny, "latency.measure=false", f"output={tmp_path}"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    model = next(word.removeprefix("model.name=") for word in tiny if word.startswith("model.name="))
    capsys.readouterr()
    scope: dict[str, Any] = {}
    shown = code().replace("mlruns/runs/lora-s42-3f9a", str(run)).replace("distilbert/distilbert-base-uncased", model)
    exec(shown, scope)  # noqa: S102 - the README's own
    assert capsys.readouterr().out.strip() in ("a", "b")
    with (run / "test" / "predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            with torch.no_grad():
                logits = scope["model"](**scope["tokenizer"](row["text"], return_tensors="pt")).logits
            shares = logits.softmax(dim=-1)[0].tolist()
            assert shares == pytest.approx([float(row["probability_a"]), float(row["probability_b"])], abs=1e-5)
