"""What docs/adding.md shows is put into a copy of the project, where it says, and held to what the page promises."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.storage import PROJECT
from tests import pages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEXT = (PROJECT / "docs" / "adding.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"^`([\w/]+\.(?:py|yaml))`\n\n```\w+\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL))
COPIED = ("harness", "tests", "experiments", "search_spaces", "docs", "launch.py", "pyproject.toml", "README.md")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, with the files of the page."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, folder / name)
    for path, content in SHOWN.items():
        assert not (folder / path).exists()
        (folder / path).write_text(content, encoding="utf-8")
    return folder


def python(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run in the copy, which is then what `harness` means."""
    return subprocess.run(
        [sys.executable, *words], cwd=copy, env={**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def harness(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(copy, "-c", "from harness.cli.commands import main; main()", *words)


def test_there_is_one_file_of_each_kind() -> None:
    assert [*SHOWN] == [
        "harness/metrics/mcc.py",
        "tests/metrics/test_mcc.py",
        "harness/methods/bitfit.py",
        "experiments/bitfit.yaml",
        "search_spaces/bitfit_rate.yaml",
        "harness/tasks/mean_pooling.py",
    ]
    assert len(SHOWN) == len(pages.blocks(TEXT, "python")) + len(pages.blocks(TEXT, "yaml"))


def test_its_commands_are_accepted(copy: Path) -> None:
    lines = pages.launches(TEXT)
    assert len(lines) == 6
    done = python(copy, "-c", f"from tests import pages\nfor line in {lines!r}: pages.accept(line)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in pages.commands(TEXT) if line.startswith("python -m pytest")])
def test_its_tests_pass(line: str, copy: Path) -> None:
    """The contract suites of metrics and methods among them."""
    done = python(copy, *shlex.split(line)[1:], "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert "no tests ran" not in done.stdout


def test_its_files_keep_the_layers_and_the_style(copy: Path) -> None:
    files = [path for path in SHOWN if path.startswith("harness/")]
    done = python(copy, "-m", "pytest", "tests/test_layers.py", "-p", "no:cacheprovider", "-k", " or ".join(
        Path(path).stem for path in files
    ))  # fmt: skip
    assert done.returncode == 0, done.stdout
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        checked = python(copy, "-m", *tool, *(path for path in SHOWN if path.endswith(".py")))
        assert checked.returncode == 0, checked.stdout


def test_the_method_is_explained(copy: Path) -> None:
    done = harness(copy, "methods", "bitfit")
    assert 'methods.bitfit.of = "all"' in done.stdout, done.stderr


def test_a_run_monitors_the_metric(copy: Path, tiny: list[str], tmp_path: Path) -> None:
    (line,) = (line for line in pages.launches(TEXT) if "metrics.mcc" in line)
    done = python(
        copy, "launch.py", *shlex.split(line), "--smoke", *tiny, "latency.measure=false", f"output={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    assert "validation/mcc" in done.stdout


def test_a_run_trains_the_biases_alone(copy: Path, tiny: list[str], tmp_path: Path) -> None:
    done = python(copy, "launch.py", "exp=bitfit", "--smoke", *tiny, "latency.measure=false", f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    (weights,) = tmp_path.glob("runs/*/weights/trained.safetensors")
    trained = {name for name in load_file(weights) if not name.startswith(("classifier.", "bert.pooler."))}
    assert trained
    assert all(name.endswith(".bias") for name in trained)


def test_a_study_of_the_search_space(copy: Path, tiny: list[str], tmp_path: Path) -> None:
    line = next(line for line in pages.launches(TEXT) if "sweep=" in line and "--smoke" in line)
    done = python(copy, "launch.py", *shlex.split(line), *tiny, "latency.measure=false", f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"bitfit - full_finetune: [+-]0\.\d{4} f1_macro on the test split", done.stdout)


def test_a_run_of_the_task_and_a_prediction(copy: Path, tiny: list[str], tmp_path: Path) -> None:
    (line,) = (line for line in pages.launches(TEXT) if "mean_pooling" in line)
    done = python(copy, "launch.py", *shlex.split(line), *tiny, "latency.measure=false", f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    told = harness(copy, "predict", "--run", str(run), "--output", str(tmp_path), "was never good")
    assert told.returncode == 0, told.stderr


def test_the_engine_keeps_its_promises_with_the_task(copy: Path, tiny: list[str]) -> None:
    (line,) = (line for line in pages.commands(TEXT) if line.startswith("harness selftest lora"))
    done = harness(copy, *shlex.split(line)[1:], *tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 FAILED, 0 not made" in done.stdout
