"""A sealed run that MLflow knows, and every way in which folder, statements and MLflow can come to disagree."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from harness.checks.verification import compare_scores, resign_run, sentence, verify_ledger, verify_run, verify_runs
from harness.errors import StorageError, UserError
from harness.signing import ledger
from harness.signing.chain import links as links_of
from harness.signing.keys import Key
from harness.signing.ledger import Entry
from harness.signing.provenance import PAYLOAD_TYPE, Verification, pae, seal
from harness.tracking.stores import Tracking, start
from tests import sealed
from tests.stores import QUIET, closed_port, run_id

pytestmark = QUIET
KEY = Key(b"k" * 32)
SCORES = {"test/f1_macro": 0.1 + 0.2, "test/accuracy": 1.0, "best/step": 40.0, "time/total_s": 1e-7}
NUMBERS = count()


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    name: str
    output: Path
    folder: Path
    mlflow_id: str

    def verify(self) -> Verification:
        return verify_run(self.name, self.output)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for most tests: creating it takes over a second."""
    return tmp_path_factory.mktemp("my runs")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The key of the runs and no other, no tracking server."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HARNESS_SIGNING_KEY", KEY.text)
    for name in ("XDG_CONFIG_HOME", "HARNESS_SIGNING_KEY_FILE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture
def run(output: Path) -> Run:
    return make(output)


def make(output: Path, key: Key | None = KEY, sent: dict[str, float] | None = None) -> Run:
    """A run as `harness.run` leaves it; `sent` are the scores MLflow got, if others than were signed."""
    name = f"lora-s{next(NUMBERS)}-ab12"
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text("rank: 8\n")
    tracker = start(Tracking(), output, "lora", name, tags={"folder": str(folder)})
    begun = seal(folder, "start", {"runId": name}, key, subjects=["spec.yaml"])
    (folder / "card.md").write_text("# lora\n")
    tracker.metrics({"train/loss": 0.5, "validation/f1_macro": 0.4}, 1)
    tracker.metrics(SCORES if sent is None else sent, 40)
    seal(folder, "end", {"runId": name, "prev": begun, "metrics": SCORES}, key)
    tracker.finish()
    return Run(name, output, folder, run_id(tracker))


def edit_store(run: Run, *statements: tuple[str, tuple[object, ...]]) -> None:
    with closing(sqlite3.connect(run.output / "mlflow.db")) as connection, connection:
        for statement, values in statements:
            assert connection.execute(statement, values).rowcount > 0


def set_score(run: Run, key: str, value: float) -> None:
    rows = [f"UPDATE {table} SET value = ? WHERE run_uuid = ? AND key = ?" for table in ("metrics", "latest_metrics")]
    edit_store(run, *((row, (value, run.mlflow_id, key)) for row in rows))


def problems(verdict: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in verdict.checks if not check.ok}


def rewrite_end(run: Run, key: Key | None, **claims: object) -> None:
    """Put an end statement in place that claims something else; None takes a claim away."""
    path = run.folder / "end.envelope.json"
    envelope = json.loads(path.read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    predicate = {**statement["predicate"], **claims, "keyId": key.keyid if key else None}
    statement["predicate"] = {name: value for name, value in predicate.items() if name not in claims or value != "-"}
    payload = json.dumps(statement).encode()
    sign = [{"keyid": key.keyid, "sig": base64.b64encode(key.mac(pae(PAYLOAD_TYPE, payload))).decode()}] if key else []
    content = {**envelope, "payload": base64.b64encode(payload).decode(), "signatures": sign}
    path.write_text(json.dumps(content))


# Found and verified


def test_a_run_verifies_by_name_by_id_and_by_folder(run: Run, tmp_path: Path) -> None:
    for way in (run.name, run.mlflow_id, str(run.folder)):
        verdict = verify_run(way, run.output)
        assert verdict.exit_code == 0, problems(verdict)
        details = {check.name: check.detail for check in verdict.checks}
        assert details["scores in MLflow"] == "4 as signed"
        assert details["run"] == f"the statements are about '{run.name}'"
    assert sentence(0).startswith("verified")


def test_a_renamed_folder_is_still_compared_with_its_run(run: Run, tmp_path: Path) -> None:
    moved = shutil.copytree(run.folder, tmp_path / "for a paper")
    assert verify_run(str(moved), run.output).exit_code == 0
    set_score(run, "test/accuracy", 0.5)
    assert set(problems(verify_run(str(moved), run.output))) == {"test/accuracy"}


def test_a_folder_verifies_where_mlflow_never_heard_of_it(run: Run, tmp_path: Path) -> None:
    moved = shutil.copytree(run.folder, tmp_path / "elsewhere")
    verdict = verify_run(str(moved), tmp_path / "no runs here")
    assert verdict.exit_code == 0
    assert "scores in MLflow" not in {check.name for check in verdict.checks}


def test_a_folder_is_compared_with_the_database_that_lies_beside_it(run: Run, tmp_path: Path) -> None:
    """Also when the folder of runs is not the default one, and none is named."""
    set_score(run, "test/accuracy", 0.5)
    verdict = verify_run(str(run.folder), tmp_path / "default")
    set_score(run, "test/accuracy", 1.0)
    assert verdict.exit_code == 1
    assert "test/accuracy" in problems(verdict)


def test_a_folder_that_was_compared_with_nothing_says_so(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    verdict = verify_run(str(tmp_path / "copy"), tmp_path / "nothing here")
    assert verdict.exit_code == 0
    assert "no scores there were compared" in str(verdict.checks)


def test_moved_runs_are_found_by_name_below_the_output_folder(run: Run, tmp_path: Path) -> None:
    shutil.move(run.folder, tmp_path / "runs" / run.name)
    old, new = (sqlite3.connect(folder / "mlflow.db") for folder in (run.output, tmp_path))
    with closing(old), closing(new):
        old.backup(new)
    assert verify_run(run.mlflow_id, tmp_path).exit_code == 0
    with pytest.raises(UserError, match=r"(?s)folder of run 'lora-.*' is not there.*if it was moved: harness verify"):
        run.verify()


def test_no_such_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"(?s)no run is called '{run.name}x'.*did you mean 'lora-"):
        verify_run(f"{run.name}x", run.output)
    for name in ("zzz", "f" * 32, "' OR '1' = '1"):
        with pytest.raises(UserError, match=r"(?s)no run is called.*MLflow id, or its folder"):
            verify_run(name, tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_by_name_mlflow_is_expected_to_know_the_run(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "runs" / run.name)
    verdict = verify_run(run.name, tmp_path)
    assert verdict.exit_code == 5
    assert "set MLFLOW_TRACKING_URI" in problems(verdict)["scores in MLflow"]


def test_two_runs_of_one_name_in_mlflow_do_not_hide_the_folder(run: Run) -> None:
    """A run that was killed and went on as another run of MLflow: which scores are its own cannot be told."""
    start(Tracking(), run.output, "lora", run.name).finish()
    for way in (run.name, str(run.folder)):
        verdict = verify_run(way, run.output)
        assert verdict.exit_code == 3
        assert "2 runs are called" in problems(verdict)["scores in MLflow"]
    assert verify_run(run.mlflow_id, run.output).exit_code == 0
    (run.folder / "card.md").write_text("")
    assert run.verify().exit_code == 1


def test_a_store_that_cannot_be_read_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed_port()}")
    for way in (run.name, str(run.folder)):
        verdict = verify_run(way, run.output)
        assert verdict.exit_code == 5
        assert "nothing answers" in problems(verdict)["scores in MLflow"]
        assert "secret" not in str(verdict)
    with pytest.raises(UserError, match=r"(?s)no run is called 'absent'.*why: .*nothing answers"):
        verify_run("absent", run.output)


# Scores


def test_an_edited_score_is_named_with_both_values(run: Run) -> None:
    set_score(run, "test/f1_macro", 0.99)
    set_score(run, "time/total_s", 1e-6)
    for way in (run.name, run.mlflow_id, str(run.folder)):
        verdict = verify_run(way, run.output)
        assert verdict.exit_code == 1
        assert problems(verdict) == {
            "test/f1_macro": "changed in MLflow: signed 0.30000000000000004, found 0.99",
            "time/total_s": "changed in MLflow: signed 1e-07, found 1e-06",
        }


def test_curves_may_be_edited_and_test_scores_not_added(run: Run) -> None:
    set_score(run, "train/loss", 0.1)
    assert run.verify().exit_code == 0
    names = "key, value, timestamp, step, is_nan, run_uuid"
    added = (f"INSERT INTO latest_metrics ({names}) VALUES ('test/foo', 0.9, 0, 0, 0, ?)", (run.mlflow_id,))
    edit_store(run, added)
    verdict = run.verify()
    assert (verdict.exit_code, problems(verdict)) == (1, {"test/foo": "added to MLflow: signed nothing, found 0.9"})


def test_a_removed_score_is_named(run: Run) -> None:
    row = "DELETE FROM latest_metrics WHERE run_uuid = ? AND key = 'test/accuracy'"
    edit_store(run, (row, (run.mlflow_id,)))
    verdict = run.verify()
    assert (verdict.exit_code, problems(verdict)) == (
        1,
        {"test/accuracy": "removed from MLflow: signed 1.0, found nothing"},
    )


def test_scores_that_never_arrived_are_not_called_tampered(output: Path) -> None:
    verdict = make(output, sent={}).verify()
    assert verdict.exit_code == 3
    assert "never sent, or all removed" in problems(verdict)["scores in MLflow"]


def test_compare_scores() -> None:
    signed = {"test/f1": 0.5, "test/accuracy": 0.25, "train/loss": 1e-07, "validation/f1": 1.0}
    found = {"test/f1": 0.6, "train/loss": 1e-07, "validation/f1": 1, "test/mcc": 0.1, "train/extra": 2.0}
    assert [(check.name, check.ok, check.detail) for check in compare_scores(signed, found)] == [
        ("test/accuracy", False, "removed from MLflow: signed 0.25, found nothing"),
        ("test/f1", False, "changed in MLflow: signed 0.5, found 0.6"),
        ("test/mcc", False, "added to MLflow: signed nothing, found 0.1"),
    ]
    assert [check.ok for check in compare_scores(signed, {**signed, "latency/p50_ms": 3.0})] == [True]
    assert [check.ok for check in compare_scores(signed, {**signed, "test/f1": float("nan")})] == [False]


# Files and statements


def test_an_edited_file_is_named(run: Run) -> None:
    (run.folder / "card.md").write_text("# better\n")
    verdict = run.verify()
    assert (verdict.exit_code, list(problems(verdict))) == (1, ["card.md"])


def test_unsigned_runs_cannot_be_told_but_edits_of_them_show(output: Path) -> None:
    run = make(output, key=None)
    verdict = run.verify()
    assert verdict.exit_code == 3
    assert set(problems(verdict)) == {"start.envelope.json", "end.envelope.json"}
    assert "as signed" not in str(verdict.checks) and "4 as stated" in str(verdict.checks)
    set_score(run, "test/accuracy", 0.5)
    (run.folder / "card.md").write_text("")
    verdict = run.verify()
    assert verdict.exit_code == 1
    assert problems(verdict)["test/accuracy"] == "changed in MLflow: stated 1.0, found 0.5"
    assert "... stated, " in problems(verdict)["card.md"]


@pytest.mark.parametrize("known", [None, Key(b"o" * 32)], ids=["no key", "another key"])
def test_without_the_key_what_contradicts_the_statements_is_told(
    known: Key | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_SIGNING_KEY", known.text if known else "")
    assert run.verify().exit_code == 3
    set_score(run, "test/accuracy", 0.5)
    (run.folder / "card.md").write_text("# better\n")
    verdict = run.verify()
    set_score(run, "test/accuracy", 1.0)
    assert verdict.exit_code == 1
    assert problems(verdict).keys() == {"start.envelope.json", "end.envelope.json", "card.md", "test/accuracy"}


def test_unfinished_runs_cannot_be_told(run: Run) -> None:
    (run.folder / "end.envelope.json").unlink()
    (run.folder / "card.md").unlink()
    verdict = run.verify()
    assert verdict.exit_code == 3
    assert "run not finished" in problems(verdict)["end.envelope.json"]


@pytest.mark.parametrize(
    "metrics", ["-", None, [], "0.9", 0.9, {"test/f1_macro": "0.3"}, {"test/f1_macro": None}, {"a": [1]}, {"a": True}]
)
@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
def test_an_end_statement_without_a_table_of_scores_is_no_traceback(run: Run, metrics: Any, key: Key | None) -> None:
    rewrite_end(run, key, metrics=metrics)
    for way in (run.name, str(run.folder)):
        verdict = verify_run(way, run.output)
        assert verdict.exit_code == 3
        assert "no table of scores" in problems(verdict)["scores in MLflow"]


def test_an_end_statement_that_names_no_run(run: Run) -> None:
    begun = seal(run.folder, "start", {}, KEY, subjects=["spec.yaml"])
    seal(run.folder, "end", {"prev": begun, "metrics": SCORES, "runId": 7}, KEY)
    for way in (run.name, str(run.folder)):
        verdict = verify_run(way, run.output)
        assert verdict.exit_code == 3
        assert problems(verdict) == {"run": "the statements do not say which run they are about"}


def test_another_run_in_the_place_of_this_one_does_not_verify(output: Path) -> None:
    """Folder and scores may both be taken from a better run: all of that is signed, but not as this run."""
    worse, better = make(output), make(output)
    shutil.rmtree(worse.folder)
    shutil.copytree(better.folder, worse.folder)
    verdict = worse.verify()
    assert verdict.exit_code == 3
    assert problems(verdict) == {
        "run": f"the statements are about '{better.name}', not '{worse.name}': renamed, copied, or exchanged"
    }


# Ledger


@pytest.fixture
def entered(tmp_path: Path) -> Path:
    """Two runs that are in the ledger of their folder; MLflow never heard of them."""
    for name in ("lora-s1-aaaa", "lora-s2-bbbb"):
        enter(tmp_path, name)
    return tmp_path


def enter(output: Path, name: str, key: Key | None = KEY) -> Path:
    folder = output / "runs" / name
    begun = sealed.start(folder, key, runId=name)
    ledger.append(output, Entry(begun, "start", name))
    ledger.append(output, Entry(sealed.end(folder, begun, key, runId=name), "end", name))
    return folder


def about_ledger(verdict: Verification) -> tuple[bool | None, str]:
    (found,) = (check for check in verdict.checks if check.name == "ledger")
    return found.ok, found.detail


def test_a_run_is_looked_up_in_the_ledger(entered: Path) -> None:
    verdict = verify_run(str(entered / "runs/lora-s1-aaaa"), entered)
    assert verdict.exit_code == 0
    assert about_ledger(verdict) == (True, "start and end entered; 4 entries in order")
    whole = verify_ledger(entered)
    assert whole.exit_code == 0
    assert [check.name for check in whole.checks] == ["ledger", "lora-s1-aaaa", "lora-s2-bbbb"]
    assert whole.checks[1].detail == f"start and end as entered, signed with key {KEY.keyid}"


def test_what_a_ledger_cannot_tell_is_not_said_to_be_verified(entered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (entered / "runs/lora-s1-aaaa/card.md").write_text("# better\n")
    assert verify_ledger(entered).exit_code == 0
    assert "what the runs hold was not checked" in sentence(0, of_ledger=True)
    enter(entered, "lora-s3-cccc", None)
    verdict = verify_ledger(entered)
    assert verdict.exit_code == 3
    assert problems(verdict) == {"lora-s3-cccc": "start and end as entered, not signed: anyone could have written it"}
    monkeypatch.setenv("HARNESS_SIGNING_KEY", Key(b"o" * 32).text)
    assert "unknown key" in problems(verify_ledger(entered))["lora-s1-aaaa"]


def test_without_a_ledger_the_run_verifies_and_this_is_said(run: Run) -> None:
    assert about_ledger(run.verify()) == (True, "there is none here: it cannot be shown that no run was left out")
    with pytest.raises(UserError, match="there is no ledger"):
        verify_ledger(run.output)


def test_a_run_that_was_taken_out_of_the_ledger_or_never_entered(entered: Path) -> None:
    claims: dict[str, Any] = {"runId": "better", "startedAt": "2999-01-01T00:00:00+00:00"}
    begun = sealed.start(entered / "runs/better", KEY, **claims)
    sealed.end(entered / "runs/better", begun, KEY, **claims)
    verdict = verify_run(str(entered / "runs/better"), entered)
    assert verdict.exit_code == 3
    assert about_ledger(verdict) == (
        None, "the start and the end statement is not in it: copied here, or taken out of it",
    )  # fmt: skip
    shutil.copytree(entered / "runs/better", entered / "copy")
    assert verify_run(str(entered / "copy"), entered).exit_code == 0


def test_a_run_that_is_older_than_the_ledger(entered: Path) -> None:
    sealed.end(entered / "runs/old", sealed.start(entered / "runs/old", KEY), KEY)
    assert about_ledger(verify_run(str(entered / "runs/old"), entered)) == (True, "the run is older than the ledger")


def test_a_ledger_that_was_edited_shows_with_every_run(entered: Path) -> None:
    path = entered / ledger.NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]))
    for verdict in (verify_run(str(entered / "runs/lora-s1-aaaa"), entered), verify_ledger(entered)):
        assert verdict.exit_code == 1
        assert "line 2 does not follow the line before it" in about_ledger(verdict)[1]


def test_runs_that_are_gone_are_listed(entered: Path) -> None:
    shutil.rmtree(entered / "runs/lora-s1-aaaa")
    verdict = verify_ledger(entered)
    assert verdict.exit_code == 3
    assert problems(verdict) == {"lora-s1-aaaa": "entered (start and end), but its folder is gone"}


def test_another_statement_than_the_one_that_was_entered(entered: Path) -> None:
    """Whoever holds the key can sign a better run under the same name; the ledger still has the first."""
    folder = entered / "runs/lora-s2-bbbb"
    shutil.rmtree(folder)
    begun = sealed.start(folder, KEY, runId="lora-s2-bbbb", note="second try")
    assert problems(verify_ledger(entered)) == {"lora-s2-bbbb": "its start statement is not the one that was entered"}
    sealed.end(folder, begun, KEY, runId="lora-s2-bbbb")
    assert verify_ledger(entered).exit_code == 1
    folder = entered / "runs/lora-s1-aaaa"
    (folder / "end.envelope.json").unlink()
    assert problems(verify_ledger(entered))["lora-s1-aaaa"] == "its end statement is gone"


def test_a_head_that_was_kept_shows_a_ledger_that_was_cut_or_written_anew(entered: Path) -> None:
    before = ledger.check(entered)
    assert before is not None
    enter(entered, "lora-s3-cccc")
    assert verify_ledger(entered, before.head).exit_code == 0
    path = entered / ledger.NAME
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert verify_ledger(entered).exit_code == 0
    verdict = verify_ledger(entered, before.head)
    assert verdict.exit_code == 1
    assert "rewritten or cut off" in problems(verdict)["head"]


def test_a_ledger_that_cannot_be_read(entered: Path) -> None:
    (entered / ledger.NAME).unlink()
    (entered / ledger.NAME).mkdir()
    assert verify_run(str(entered / "runs/lora-s1-aaaa"), entered).exit_code == 5
    with pytest.raises(StorageError, match="cannot read"):
        verify_ledger(entered)


# Signing again


def test_a_run_is_signed_again_after_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Key(b"n" * 32)
    done, stopped = sealed.finished(tmp_path / "runs/done", KEY), tmp_path / "runs/stopped"
    sealed.interrupted(stopped, KEY)
    ring = tmp_path / "home/.config/harness/keys/keyring"
    ring.mkdir(parents=True)
    (ring / "old.key").write_text(KEY.text)
    (ring / "old.key").chmod(0o600)
    monkeypatch.setenv("HARNESS_SIGNING_KEY", new.text)
    assert resign_run(str(done), tmp_path)[1] == 2
    assert resign_run(str(stopped), tmp_path)[1] == 5
    assert resign_run("done", tmp_path)[1] == 0
    (ring / "old.key").unlink()
    assert verify_run(str(done), tmp_path).exit_code == 0
    assert all(link.ok for link in links_of(stopped, [new]))
    assert verify_run(str(stopped / "checkpoints/step-0000020"), tmp_path).exit_code == 0


def test_what_it_takes_to_sign_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no statement in this folder"):
        resign_run(str(tmp_path), tmp_path)
    monkeypatch.delenv("HARNESS_SIGNING_KEY")
    with pytest.raises(UserError, match="no signing key"):
        resign_run(str(tmp_path), tmp_path)


def test_of_the_parent_of_replicates_each_is_verified(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    parent, *names = "lora-x2-abcd", "lora-s0-abcd", "lora-s1-abcd"
    (runs / parent).mkdir(parents=True)
    (runs / parent / "spec.yaml").write_text("name: lora\n")
    for name in names:
        sealed.end(runs / name, sealed.start(runs / name, KEY, runId=name), KEY, runId=name)
    for way, code in ((str(runs / parent), 0), (parent, 5)):  # by name, MLflow is expected to know them
        found = verify_runs(way, tmp_path)
        assert [one.exit_code for one in found] == [0, code, code]
        assert [one.folder and one.folder.name for one in found] == [parent, *names]
    (runs / names[1] / "card.md").write_text("# better\n")
    assert [one.exit_code for one in verify_runs(str(runs / parent), tmp_path)] == [0, 0, 1]
    shutil.rmtree(runs / names[1])
    assert problems(verify_runs(str(runs / parent), tmp_path)[0]) == {"replicates": "1 of 2 have their folder here"}
    (only,) = verify_runs(str(runs / names[0]), tmp_path)
    assert only.exit_code == 0
