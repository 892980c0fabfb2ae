"""`--quiet`, `--json`, `--debug` and NO_COLOR, of `launch.py` and of `harness`, as a person or a program calls them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import commands
from harness.cli.launching import SMOKE, main
from harness.storage import PROJECT
from tests.stores import QUIET

pytestmark = QUIET

ARGUMENTS = ["exp=lora", *SMOKE, "latency.measure=false"]
RUN = "from harness.cli.commands import main; import sys; sys.argv[0] = 'harness'; main()"


def launched(tiny: list[str], output: Path, *more: str) -> list[str]:
    return ["exp=full_finetune", *SMOKE, *tiny, "latency.measure=false", f"output={output}", *more]


def test_json_is_one_object_on_stdout_and_the_rest_on_stderr(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(launched(tiny, tmp_path, "--json")) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert list(found) == ["name", "id", "folder", "seeds", "scores"]
    assert Path(found["folder"]) == tmp_path / "runs" / found["name"] and Path(found["folder"]).is_dir()
    assert len(found["id"]) == 32 and found["seeds"] == [42] and 0 <= found["scores"]["test/f1_macro"] <= 1
    assert f"run     {found['name']}, MLflow id {found['id']}" in told.err and "Ctrl-C" in told.err


def test_json_of_replicates_that_are_quiet(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(launched(tiny, tmp_path, "--json", "--quiet", "seeds=[0,1]")) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["seeds"] == [0, 1] and [one["seeds"] for one in found["runs"]] == [[0], [1]]
    assert "test/f1_macro_sd" in found["scores"] and found["id"] not in {one["id"] for one in found["runs"]}
    assert (Path(found["folder"]) / "replicates.json").is_file()
    assert all(line.startswith("NOTE") for line in told.err.splitlines())


def test_quiet_is_the_score_alone(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(launched(tiny, tmp_path, "--quiet", "precision=fp16")) == 0
    told = capsys.readouterr()
    (name,) = [path.name for path in (tmp_path / "runs").iterdir()]
    assert told.out.startswith(f"{name}  test/f1_macro 0.") and told.out.count("\n") == 1
    assert "NOTE precision=fp16 needs a GPU" in told.err
    assert all(line.startswith("NOTE") for line in told.err.splitlines())


def test_a_quiet_run_that_breaks_says_how_it_goes_on(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARNESS_FAULT", "step.end:term@step=1")
    assert main(launched(tiny, tmp_path, "--quiet", "train.max_steps=4")) == 143
    told = capsys.readouterr()
    assert told.out == ""
    assert " launch.py --resume full_finetune-s42-" in told.err and "score" not in told.err


def test_a_run_that_is_stopped_says_what_it_was_and_how_it_goes_on(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARNESS_FAULT", "step.end:term@step=1")
    assert main(launched(tiny, tmp_path, "train.max_steps=4")) == 143
    lines = [line.partition("  ") for line in capsys.readouterr().out.splitlines()]
    told = {first: rest.strip() for first, _, rest in lines}
    (name,) = [path.name for path in (tmp_path / "runs").iterdir()]
    assert re.fullmatch(rf"{name}, KILLED, MLflow id ([0-9a-f]{{32}}|none: not recorded)", told["run"])
    assert told["folder"] == str(tmp_path / "runs" / name)
    assert told["resume"] == f"{sys.orig_argv[0]} launch.py --resume {name} output={tmp_path}"


@pytest.mark.parametrize("flag", ["--plan", "--plan --json"])
def test_a_plan_is_not_quiet(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp=lora", "--quiet", *flag.split()]) == 2
    assert "error: --quiet: does not go with --plan" in capsys.readouterr().err


def test_the_plan_of_a_study_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp=lora", "sweep=lora_rank", "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["study"] == "lora_rank-lora" and set(found["sizes"]) == {"search", "baseline"}


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exp=nope"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["exp=nope", "--debug"]) == 2
    told = capsys.readouterr().err
    assert "error: exp=nope" in told and "Traceback" in told


@pytest.mark.parametrize("arguments", [["--debug", "show", "nope"], ["show", "nope", "--debug"], ["show", "nope"]])
def test_debug_of_the_command_harness(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "error: exp=nope" in told
    assert ("Traceback" in told) == ("--debug" in arguments)


def coloured(command: list[str], **variables: str) -> bool:
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**known, "PYTHONPATH": str(PROJECT), "TERM": "xterm-256color", "FORCE_COLOR": "1", **variables}
    done = subprocess.run(
        [sys.executable, *command], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr
    return "\x1b" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "has_colours"),
    [
        (["-c", RUN, "--help"], True),
        (["-c", RUN, "keys", "--help"], True),
        (["-c", RUN, "show", "lora"], True),
        (["-c", RUN, "no-such-command"], True),
        (["-c", RUN, "show", "nope", "--debug"], False),
        (["-c", RUN, "list"], False),
        (["launch.py", "--help"], False),
        (["launch.py", "exp=nope", "--debug"], False),
    ],
    ids=lambda of: " ".join(of[1 + (of[0] == "-c") :]) if isinstance(of, list) else "",
)
def test_no_color_leaves_no_escape_code(command: list[str], has_colours: bool) -> None:
    assert coloured(command) == has_colours
    assert not coloured(command, NO_COLOR="1")


@pytest.mark.slow
def test_no_color_holds_for_a_whole_run(tiny: list[str], tmp_path: Path) -> None:
    assert coloured(["launch.py", *launched(tiny, tmp_path)])
    assert not coloured(["launch.py", *launched(tiny, tmp_path)], NO_COLOR="1")


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--json", "--quiet"])
def test_of_two_processes_the_first_alone_answers(flag: str, tiny: list[str], tmp_path: Path) -> None:
    from tests.test_launch import TWO, launch

    done = launch(TWO, tmp_path, *launched(tiny, tmp_path, flag)[:-2], flag)
    assert done.returncode == 0, done.stderr
    (name,) = [path.name for path in (tmp_path / "runs").iterdir()]
    if flag == "--json":
        assert json.loads(done.stdout)["name"] == name
    else:
        assert done.stdout.startswith(f"{name}  test/f1_macro 0.") and done.stdout.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--json"], ["--quiet"]])
def test_a_study_that_is_quiet_or_for_programs(
    flags: list[str], tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["exp=lora", "sweep=lora_rank", "trials=1", "~confirm", *tiny, *SMOKE]
    assert main([*words, "latency.measure=false", f"output={tmp_path}", *flags]) == 0
    told = capsys.readouterr()
    if flags == ["--json"]:
        found = json.loads(told.out)
        assert found["study"] == "lora_rank-lora" and "verdict" in found
        assert json.loads((Path(found["folder"]) / "report.json").read_text()).items() <= found.items()
    else:
        assert told.out.startswith("lora_rank-lora  ") and told.out.count("\n") == 1
        assert all(line.startswith("NOTE") for line in told.err.splitlines())
