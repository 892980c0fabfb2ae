"""The console command: what it prints, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import registry
from harness.cli import commands
from harness.cli.commands import app
from harness.signing import keys
from harness.signing.keys import Key, keygen, load_key, load_keyring
from harness.signing.ledger import Entry, append
from harness.signing.provenance import seal
from harness.specs import spec
from harness.tracking.stores import Tracking, start
from tests import sealed
from tests.stores import QUIET

pytestmark = QUIET


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without keys, and no tracking server."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "HARNESS_SIGNING_KEY", "HARNESS_SIGNING_KEY_FILE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


class Command:
    """`harness ...`: calls it as the console script does; keeps what it wrote."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        self.out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0)


def finished_run(output: Path, name: str, key: Key | None) -> Path:
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text("rank: 8\n")
    begun = seal(folder, "start", {"runId": name}, key)
    seal(folder, "end", {"runId": name, "prev": begun, "metrics": {"test/f1_macro": 0.5}}, key)
    return folder


# list and show


def test_list_shows_every_experiment_with_the_first_line_of_its_story(harness: Command) -> None:
    assert harness("list") == 0
    lines = dict(line.split(maxsplit=1) for line in harness.out.splitlines())
    assert lines == {name: spec.story(name).splitlines()[0] for name in spec.names()}
    assert {"full_finetune", "lora", "lora_adapter"} <= lines.keys()


def test_list_is_quick_and_imports_nothing_heavy() -> None:
    code = """
import sys, time
from harness.cli import commands
sys.argv = ["harness", "list"]
try:
    commands.main()
finally:
    heavy = {"torch", "transformers", "mlflow", "sklearn", "hydra", "pandas"} & set(sys.modules)
    print(f"{heavy or 'light'} {time.process_time()}", file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    found, seconds = ended.stderr.split()
    assert found == "light"
    assert float(seconds) < 3  # of the processor: the wall clock of a busy machine says little


@pytest.mark.parametrize("name", spec.names())
def test_what_show_prints_can_be_given_as_overrides(harness: Command, name: str) -> None:
    assert harness("show", name) == 0
    printed = re.findall(r"(?m)^[* ] (\S+) = (.*)$", harness.out)
    settings = spec.load(name).flat()
    assert {key for key, _ in printed} == settings.keys() - {"name"}
    assert spec.load(name, [f"{key}={text}" for key, text in printed]).flat() == settings
    assert harness.out.startswith(f"{name}: {spec.story(name)}")


def test_show_marks_what_differs_from_base(harness: Command) -> None:
    assert harness("show", "lora", "train.epochs=7", "data.limit=null", "metrics.calibration.bins=20") == 0
    marked = set(re.findall(r"(?m)^\* (\S+) = ", harness.out))
    assert {"train.epochs", "metrics.calibration.bins", "methods.lora.rank"} <= marked
    assert not {"data.limit", "model.name", "latency.runs", "data.cuts"} & marked
    assert "\x1b" not in harness.out


def test_show_for_programs(harness: Command) -> None:
    assert harness("show", "lora", "train.epochs=7", "--json") == 0
    assert json.loads(harness.out) == spec.load("lora", ["train.epochs=7"]).resolved()


@pytest.mark.parametrize("name", ["lora", "full_finetune"])
def test_every_setting_is_explained(harness: Command, name: str) -> None:
    settings = spec.load(name).flat().keys() - {"name", "methods"}
    assert harness("show", name, *sorted({key.split(".")[0] for key in settings})) == 0
    explained = set(re.findall(r"(?m)^([a-z]\S*) = .+\n    [^\s(].{10,}", harness.out))
    assert explained == settings


def test_show_explains_settings_as_they_would_be(harness: Command) -> None:
    assert harness("show", "lora", "train.nonfinite", "train.max_steps", "~methods.lora", "train.nonfinite=skip") == 0
    first, *rest = harness.out.splitlines()
    assert first == "train.nonfinite = skip"
    assert " ".join(" ".join(rest).split()).endswith(
        "a fault of the machine only. (stop | skip | rollback) "
        "train.max_steps = null Optimizer steps, at most; null: no further limit. (>= 1, or null)"
    )
    assert harness("show", "scratch", "model.architecture.positions") == 0
    assert harness.out.startswith("model.architecture.positions = learned\n    learned: a vector for each place; ")
    assert harness("show", "lora", "data.sentences") == 0
    assert "\ndata.sentences.typos = 0.0\n" in harness.out, "the defaults of what is not used here"
    assert harness("show", "lora", "data") == 0
    assert "data.sentences.typos" not in harness.out
    assert harness("show", "lora", "rank", "--json") == 0
    assert json.loads(harness.out) == {"methods.lora.rank": {"value": 8, "meaning": "Rank R of the update. (>= 1)"}}


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("train.nonfinit", "did you mean 'train.nonfinite'?"),
        ("trian", "did you mean 'train'?"),
        ("zzz", "harness show lora lists them all"),
        ("methods.awp.rule", "it has no methods.awp: look at it with 'methods.awp={}'"),
    ],
)
def test_show_explains_only_what_there_is(harness: Command, word: str, fix: str) -> None:
    assert harness("show", "lora", word) == 2
    assert harness.err == f"error: lora has no setting '{word}'\n  fix: {fix}\n"


def test_an_unknown_experiment_or_setting_is_told_with_the_nearest_name(harness: Command) -> None:
    assert harness("show", "loar") == 2
    assert harness.err == "error: exp=loar: no experiment is called 'loar'\n  fix: did you mean 'lora'?\n"
    assert harness("show", "lora", "train.learing_rate=1", "train.epochs=abc") == 2
    assert "did you mean `learning_rate`" in harness.err
    assert "train.epochs" in harness.err
    assert harness.out == ""


def test_usage(harness: Command) -> None:
    assert harness("frob") == 2
    assert "No such command 'frob'" in harness.err
    assert harness("show") == 2
    assert harness("--help") == 0
    assert all(command in harness.out for command in ("list", "show", "keygen", "verify", "baselines"))


def test_ctrl_c_ends_with_130(harness: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spec, "names", interrupt)
    assert harness("list") == 130


# keygen


def test_keygen_makes_the_key_that_signs_and_never_overwrites_it(harness: Command) -> None:
    assert harness("keygen") == 0
    made = load_key()
    assert made
    assert harness.out.startswith(f"key {made.keyid} in {keys.key_file()}\nRuns are signed with it from now on.\n")
    assert made.text not in harness.out
    assert harness("keygen") == 2
    assert "there is a signing key already" in harness.err
    assert "harness keygen --rotate" in harness.err
    assert [key.keyid for key in load_keyring()] == [made.keyid]


def test_keygen_rotates(harness: Command) -> None:
    old = keygen()
    assert harness("keygen", "--rotate") == 0
    new = load_key()
    assert new
    assert new.keyid in harness.out
    assert {key.keyid for key in load_keyring()} == {old.keyid, new.keyid}
    assert new.keyid != old.keyid


def test_keygen_says_what_it_takes_to_sign_with_a_key_elsewhere(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "my keys" / "one"
    assert harness("keygen", str(place)) == 0
    assert f"export HARNESS_SIGNING_KEY_FILE='{place}'" in harness.out
    assert load_key() is None
    monkeypatch.setenv("HARNESS_SIGNING_KEY", Key(b"k" * 32).text)
    assert harness("keygen") == 0
    assert "still signed with the key in HARNESS_SIGNING_KEY" in harness.out


def test_keygen_where_nothing_can_be_written(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert harness("keygen", str(tmp_path / "file" / "key")) == 5
    assert "cannot write the signing key" in harness.err


# verify


def test_verify_passes_its_exit_code_on(harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keygen()
    signed, unsigned = finished_run(tmp_path, "signed", key), finished_run(tmp_path, "unsigned", None)
    here = ("--output", str(tmp_path))
    assert harness("verify", str(signed), *here) == 0
    assert harness.out.endswith("\nverified: nothing was edited since it was signed\n")
    assert f"ok  end.envelope.json: signed with key {key.keyid}\n" in harness.out
    assert harness("verify", str(unsigned), *here) == 3
    assert "??  end.envelope.json: not signed" in harness.out
    assert harness("verify", str(unsigned), *here, "--chain") == 3
    assert "no key here" not in harness.out and "-  " in harness.out
    assert harness("verify", "signed", *here) == 5
    assert "??  scores in MLflow: MLflow does not know this run" in harness.out
    assert harness("verify", "singed", *here) == 2
    assert harness.err == f"error: {tmp_path / 'runs'}: no run is called 'singed'\n  fix: did you mean 'signed'?\n"
    (signed / "spec.yaml").write_text("rank: 9\n")
    assert harness("verify", str(signed), *here) == 1
    assert "NO  spec.yaml: changed: sha256 " in harness.out
    assert harness.out.splitlines()[-1].startswith("TAMPERED")


def test_verify_compares_with_mlflow(harness: Command, tmp_path: Path) -> None:
    finished_run(tmp_path, "lora-s0", keygen())
    tracker = start(Tracking(), tmp_path, "lora", "lora-s0", tags={"folder": str(tmp_path / "runs/lora-s0")})
    tracker.metrics({"test/f1_macro": 0.75}, 3)
    tracker.finish()
    assert harness("verify", "lora-s0", "--output", str(tmp_path)) == 1
    assert "NO  test/f1_macro: changed in MLflow: signed 0.5, found 0.75\n" in harness.out
    assert "\nTAMPERED" in harness.out


def test_verify_for_programs(harness: Command, tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "signed", keygen())
    assert harness("verify", str(folder), "--output", str(tmp_path), "--json") == 0
    answer = json.loads(harness.out)
    assert answer["exit_code"] == 0
    assert {(check["name"], check["ok"]) for check in answer["checks"]} >= {("chain", True), ("run", True)}


def test_verify_refuses_a_key_that_others_can_read(harness: Command, tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "signed", keygen())
    keys.key_file().chmod(0o644)
    assert harness("verify", str(folder), "--output", str(tmp_path)) == 2
    assert "fix: chmod 600" in harness.err


def test_verify_tells_the_chain(harness: Command, tmp_path: Path) -> None:
    key = keygen()
    folder = str(sealed.finished(tmp_path / "runs" / "lora", key))
    assert harness("verify", folder, "--chain") == 0
    lines = [line.split() for line in harness.out.splitlines()[:6]]
    assert [line[:2] for line in lines] == [["ok", kind] for kind in ("start", *["checkpoint"] * 4, "end")]
    assert [line[3] for line in lines[1:5]] == ["10", "15", "20", "25"]
    assert all(key.keyid in line for line in lines)
    assert "abandoned: the run went on from before it" in harness.out.splitlines()[3]
    assert harness("verify", folder, "--chain", "--json") == 0
    answer = json.loads(harness.out)
    assert answer.keys() == {"exit_code", "verdict", "checks", "chain"}
    assert answer["chain"][1] == {
        "name": "chain/step-0000010.json", "kind": "checkpoint", "step": 10, "attempt": 1,
        "time": "2026-01-02T03:05:00+00:00", "key": key.keyid, "ok": True, "detail": f"signed with key {key.keyid}",
    }  # fmt: skip
    (tmp_path / "runs/lora/chain/step-0000015.json").unlink()
    assert harness("verify", folder, "--chain") == 1
    assert re.search(r"(?m)^NO  checkpoint +step 25 .*the one before it is not here$", harness.out)


def test_verify_a_single_checkpoint(harness: Command, tmp_path: Path) -> None:
    sealed.interrupted(tmp_path / "runs" / "lora", keygen())
    place = tmp_path / "runs/lora/checkpoints/step-0000020"
    assert harness("verify", str(place)) == 0
    assert "ok  chain: follows from the start of its run" in harness.out
    (place / "progress.json").write_text("{}")
    assert harness("verify", str(place)) == 1


def test_verify_the_ledger(harness: Command, tmp_path: Path) -> None:
    folder, here = tmp_path / "runs" / "lora", ("--output", str(tmp_path))
    assert harness("verify", "--ledger", *here) == 2
    begun = sealed.start(folder, keygen(), runId="lora")
    head = append(tmp_path, Entry(begun, "start", "lora"))
    assert harness("verify", "--ledger", *here) == 0
    assert f"ok  ledger: 1 entries in order; head {head}" in harness.out
    assert harness.out.splitlines()[-1].startswith("nothing that was entered is missing or exchanged; what the runs")
    assert harness("verify", "--ledger", "--head", "0" * 64, *here, "--json") == 1
    assert json.loads(harness.out)["checks"][1]["name"] == "head"


@pytest.mark.parametrize(
    "words", [[], ["run", "--ledger"], ["--ledger", "--chain"], ["--ledger", "--deep"], ["run", "--head", "0"]]
)
def test_verify_needs_a_run_or_the_ledger(harness: Command, words: list[str]) -> None:
    assert harness("verify", *words) == 2
    assert "name a run" in harness.err


def test_verify_replicates(harness: Command, tmp_path: Path) -> None:
    key, parent = keygen(), tmp_path / "runs" / "lora-x2-abcd"
    parent.mkdir(parents=True)
    (parent / "spec.yaml").write_text("name: lora\n")
    edited = [finished_run(tmp_path, name, key) for name in ("lora-s0-abcd", "lora-s1-abcd")][1]
    assert harness("verify", str(parent)) == 0
    lines = harness.out.splitlines()
    assert [line for line in lines if line.startswith("lora")] == ["lora-x2-abcd", "lora-s0-abcd", "lora-s1-abcd"]
    assert lines[-1].startswith("verified") and harness.out.count("verified") == 1
    (edited / "spec.yaml").write_text("rank: 9\n")
    assert harness("verify", str(parent), "--chain", "--json") == 1
    answer = json.loads(harness.out)
    assert answer.keys() == {"exit_code", "verdict", "runs"} and answer["exit_code"] == 1
    assert [(run["name"], run["exit_code"]) for run in answer["runs"]] == [
        ("lora-x2-abcd", 0), ("lora-s0-abcd", 0), ("lora-s1-abcd", 1),
    ]  # fmt: skip
    assert [link["kind"] for link in answer["runs"][1]["chain"]] == ["start", "end"]


# runs


def test_runs_are_listed_as_a_table_and_for_programs(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "runs" / "lost").mkdir(parents=True)
    (tmp_path / "runs" / "lost" / "start.envelope.json").touch()
    parent = start(Tracking(), tmp_path, "lora", "lora-x2-abcd", tags={"spec": "lora"})
    child = start(Tracking(), tmp_path, "lora", "lora-s0-abcd", parent=parent.wait_open(30), tags={"spec": "lora"})
    child.params({"early_stopping.metric": "validation/accuracy"})
    child.metrics({"best/validation_accuracy": 0.5}, 1)
    for tracker in (child, parent, start(Tracking(), tmp_path, "reports", "page", tags={"kind": "report"})):
        tracker.finish()
    here = ("--output", str(tmp_path))
    assert harness("runs", "list", *here) == 0
    header, of_all, of_one, lost = harness.out.splitlines()
    assert header.split() == ["run", "status", "began", "score", "folder"]
    assert of_all.startswith("lora-x2-abcd  ") and of_all.endswith("no folder")
    assert of_one.startswith("  lora-s0-abcd  FINISHED  ") and "  validation/accuracy 0.5000  " in of_one
    assert lost == "lost  not in MLflow; it may go on: launch.py --resume lost"
    assert harness("runs", "list", "--json", *here) == 0
    told = json.loads(harness.out)
    assert [(one["name"], one.get("parent"), one.get("score")) for one in told] == [
        ("lora-x2-abcd", None, None), ("lora-s0-abcd", "lora-x2-abcd", 0.5), ("lost", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    ["runs list", "runs reap", "compare", "report", "predict text --run x", "verify x", "verify --ledger", "sync",
     "keys resign x"],
)  # fmt: skip
def test_a_folder_of_runs_that_is_not_there_is_named(words: str, harness: Command, tmp_path: Path) -> None:
    place = tmp_path / "nope"
    assert harness(*words.split(), "--output", str(place)) == 2
    assert harness.err.startswith(f"error: {place}: no folder of runs\n  why: there is no such folder\n  fix: ")
    assert not place.exists()


def test_an_empty_folder_of_runs_is_no_error(harness: Command, tmp_path: Path) -> None:
    assert harness("runs", "list", "--output", str(tmp_path)) == 0
    assert harness.out == f"MLflow knows no run in {tmp_path}\n"
    assert harness("runs", "list", "--output", str(tmp_path), "--json") == 0
    assert json.loads(harness.out) == []


# keys


def test_keys_are_listed_rotated_and_retired(harness: Command) -> None:
    assert harness("keys", "rotate") == 2
    assert "there is no key to rotate" in harness.err
    assert harness("keys", "list") == 0
    assert "No key signs" in harness.out
    old = keygen()
    assert harness("keys", "rotate") == 0
    new = load_key()
    assert new
    assert harness("keys", "list") == 0
    lines = harness.out.splitlines()
    assert lines[0].startswith(f"{new.keyid}  signs and verifies")
    assert lines[1].startswith(f"{old.keyid}  verifies  ")
    assert not any(key.text in harness.out for key in (old, new))
    assert harness("keys", "retire", old.keyid) == 2
    assert harness("keys", "retire", new.keyid) == 0
    assert "unsigned until there is another key" in harness.out
    assert load_key() is None
    assert {key.keyid for key in load_keyring()} == {old.keyid, new.keyid}


def test_keys_sign_a_run_again(harness: Command, tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "signed", keygen())
    new = keygen(rotate=True)
    assert harness("keys", "resign", str(folder)) == 0
    assert harness.out == f"2 signatures added with key {new.keyid}\n"
    assert harness("keys", "resign", "signed", "--output", str(tmp_path)) == 0
    assert harness.out.startswith("0 signatures added")


@pytest.mark.parametrize("name", registry.names("method"))
def test_every_setting_of_a_method_is_explained(name: str) -> None:
    done = CliRunner().invoke(app, ["methods", name])
    assert done.exit_code == 0
    for field in registry.settings_class("method", name).model_fields:
        explained = re.search(rf"^methods\.{name}\.{field} = .+\n    \S.{{10,}}$", done.stdout, flags=re.MULTILINE)
        assert explained, field
    assert "arXiv" in done.stdout or name == "peft"


def test_all_methods_in_one_line_each() -> None:
    lines = CliRunner().invoke(app, ["methods"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == registry.names("method")


@pytest.mark.parametrize("command", ["show", "baselines", "selftest", "compare"])
def test_the_shell_completes_experiments(command: str) -> None:
    """U20."""
    words = {"_HARNESS_COMPLETE": "complete_bash", "COMP_WORDS": f"harness {command} lora_a", "COMP_CWORD": "2"}
    done = CliRunner().invoke(app, [], prog_name="harness", env=words)
    assert done.stdout.split()[0] == "lora_adapter"  # then the runs of this name, where there are any
