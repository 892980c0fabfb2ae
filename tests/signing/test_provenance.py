"""Fingerprints, against published vectors, a second implementation, and every way of editing a sealed run."""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import checkpoint, fingerprint
from harness.checks import origins, verification
from harness.errors import StorageError, UserError
from harness.signing import chain, digests, keys, ledger, provenance
from harness.signing.chain import verify
from harness.signing.digests import identity
from harness.signing.keys import Key
from harness.signing.provenance import Check, Verification, open_envelope, pae, seal

GOLDEN = Path(__file__).parents[1] / "fixtures" / "fingerprint_v1"
KEY, OTHER = Key(b"k" * 32), Key(b"o" * 32)
GOLDEN_IDS = {
    "start": "harness1:2d369a4c7c8cac17a47200324feca0ad8834bd58cef8c5f4dcb4eeb14413a24e",
    "end": "harness1:495faeb1c95a1fe18becbb27eaf6b48bb4368bbb1c2e85344c510a85ebc6abd5",
}
RUN = {"runId": "run-1", "specId": "sha256:" + "0" * 64}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, signed with KEY."""
    return make_run(tmp_path / "run", KEY)


def make_run(folder: Path, key: Key | None) -> Path:
    folder.mkdir()
    (folder / "spec.yaml").write_text("rank: 8\n")
    start = seal(folder, "start", {**RUN, "prev": None}, key, subjects=["spec.yaml"])
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.csv").write_text("1,0.5\n")
    seal(folder, "end", {**RUN, "prev": start, "metrics": {"test/f1": 0.5}}, key)
    return folder


def problems(verification: Verification) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in verification.checks if not check.ok]


def edit_outer(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    envelope = json.loads(path.read_text())
    change(envelope)
    path.write_text(json.dumps(envelope))


def edit_payload(path: Path, change: Callable[[dict[str, Any]], object], key: Key | None = None) -> None:
    """Change the statement, and sign it anew if a key is given."""
    envelope = json.loads(path.read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    envelope["payload"] = base64.b64encode(payload).decode()
    if key:
        envelope["signatures"][0]["sig"] = base64.b64encode(key.mac(pae(envelope["payloadType"], payload))).decode()
    path.write_text(json.dumps(envelope))


def test_pre_authentication_encoding_of_dsse() -> None:
    vector = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == vector
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


# Sealing


def test_a_second_implementation_agrees(run: Path) -> None:
    """Every value of the envelope, made again with nothing but the standard library."""
    envelope = json.loads((run / "end.envelope.json").read_bytes())
    payload = base64.b64decode(envelope["payload"])
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [entry["name"] for entry in statement["subject"]] == ["plots/loss.csv", "spec.yaml"]
    for entry in statement["subject"]:
        assert entry["digest"] == {"sha256": hashlib.sha256((run / entry["name"]).read_bytes()).hexdigest()}
    start = base64.b64decode(json.loads((run / "start.envelope.json").read_bytes())["payload"])
    assert statement["predicate"] == {
        **RUN, "metrics": {"test/f1": 0.5}, "prev": f"harness1:{hashlib.sha256(start).hexdigest()}",
        "formatVersion": 1, "keyId": KEY.keyid, "kind": "end", "coverage": {"wholeFolder": True, "excluded": []},
    }  # fmt: skip
    kind = envelope["payloadType"].encode()
    message = b"DSSEv1 " + str(len(kind)).encode() + b" " + kind + b" " + str(len(payload)).encode() + b" " + payload
    derived = hmac.new(KEY.master, b"harness/v1/sign", hashlib.sha256).digest()
    sig = base64.b64encode(hmac.new(derived, message, hashlib.sha256).digest()).decode()
    assert envelope["signatures"] == [{"keyid": KEY.keyid, "sig": sig}]


def test_envelope_has_the_mode_of_the_umask_and_leaves_nothing_beside(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        seal(tmp_path, "start", RUN, KEY)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "start.envelope.json").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["start.envelope.json"]


def test_interrupted_write_keeps_the_old_envelope(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "end.envelope.json").read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        seal(run, "end", RUN, KEY)
    assert (run / "end.envelope.json").read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == ["end.envelope.json", "plots", "spec.yaml", "start.envelope.json"]  # fmt: skip # noqa: E501


def test_reserved_fields_cannot_be_overridden(tmp_path: Path) -> None:
    seal(tmp_path, "start", {"kind": "end", "formatVersion": 9, "keyId": "x"}, KEY)
    assert verify(tmp_path, [KEY]).predicate("start") == {
        "kind": "start", "formatVersion": 1, "keyId": KEY.keyid, "coverage": {"wholeFolder": True, "excluded": []},
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["new\nline", "back\\slash", "bell\x07", b"latin-\xe9".decode(errors="surrogateescape")]
)
def test_unsafe_names_are_not_sealed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(StorageError, match="cannot be sealed"):
        seal(tmp_path, "end", RUN, KEY)
    assert not (tmp_path / "end.envelope.json").exists()


def test_links_pipes_missing_files_and_folders_are_not_sealed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret").write_text("")
    for name in ("absent", "../secret", "/etc/passwd", "."):
        with pytest.raises(StorageError, match="cannot be sealed"):
            seal(folder, "start", RUN, KEY, subjects=[name])
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="'link' cannot be sealed"):
        seal(folder, "end", RUN, KEY)
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(StorageError, match="'pipe' cannot be sealed"):
        seal(folder, "end", RUN, KEY)
    with pytest.raises(StorageError, match="cannot list"):
        seal(tmp_path / "nowhere", "end", RUN, KEY)


def test_nan_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out NaN"):
        seal(tmp_path, "end", {"metrics": {"test/f1": float("nan")}}, KEY)


# Verifying: what is ok


def test_golden_folder_of_format_1_verifies_for_ever() -> None:
    key = Key.from_text((GOLDEN / "test_key.txt").read_text(), "test_key.txt")
    verification = verify(GOLDEN / "run", [key])
    assert verification.exit_code == 0, problems(verification)
    assert key.keyid == "10e55fa80f1cce7a"
    ids = {kind: envelope.attestation_id for kind, envelope in verification.envelopes.items()}
    assert ids == GOLDEN_IDS
    end = verification.predicate("end")
    assert end is not None
    assert end["metrics"] == {"validation/f1_macro": 0.8125, "test/f1_macro": 0.79, "train/loss": 1e-07}
    assert end["specId"] == identity({"task": {"sequence_classification": {}}, "methods": {"lora": {"rank": 8}}})


def test_golden_folder_is_sealed_to_the_same_bytes_today(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    key = Key(bytes(range(32)))
    predicate = verify(GOLDEN / "run", [key]).predicate("end")
    assert predicate is not None
    seal(tmp_path / "run", "end", predicate, key)
    assert (tmp_path / "run/end.envelope.json").read_bytes() == (GOLDEN / "run/end.envelope.json").read_bytes()


texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=60, database=None)
@given(metrics=json_values, content=st.binary(max_size=50), secret=st.binary(min_size=32, max_size=32))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, metrics: Any, content: bytes, secret: bytes) -> None:
    folder, key = tmp_path_factory.mktemp("round"), Key(secret)
    (folder / "file").write_bytes(content)
    start = seal(folder, "start", RUN, key)
    end = seal(folder, "end", {**RUN, "prev": start, "metrics": metrics}, key)
    verification = verify(folder, [OTHER, key])
    assert verification.exit_code == 0
    assert verification.envelopes["end"].attestation_id == end
    predicate = verification.predicate("end")
    assert predicate is not None
    assert predicate["metrics"] == metrics
    assert verify(folder, [OTHER]).exit_code == (3 if secret != OTHER.master else 0)


def test_sealing_does_not_depend_on_hash_seed_or_locale(tmp_path: Path) -> None:
    """The same files and the same claims are the same bytes in every process."""
    (tmp_path / "größe.txt").write_text("1,5")
    code = """
import sys; from pathlib import Path; from harness.signing.keys import Key; from harness.signing.provenance import seal
seal(Path(sys.argv[1]), "end", {"b": {"ı": 1e-7, "a": [{"z": None}, "İ"]}, "a": 1.5}, Key(b"k" * 32))
print((Path(sys.argv[1]) / "end.envelope.json").read_text())
"""
    environments = ({"PYTHONHASHSEED": "1", "LC_ALL": "C"}, {"PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.UTF-8"})
    command = [sys.executable, "-X", "utf8", "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(command, env={**os.environ, **extra}, cwd=root, capture_output=True, check=True).stdout
        for extra in environments
    }
    assert len(found) == 1
    assert open_envelope(tmp_path / "end.envelope.json", [KEY]).check.ok


def test_large_scores_come_back_as_they_were_signed(tmp_path: Path) -> None:
    """RFC 8785 writes the first as 57839528447838570, which is another number when read as an integer."""
    scores = {"test/tokens": 5.783952844783857e16, "test/perplexity": 1e20, "test/count": 2.0**53 - 1}
    seal(tmp_path, "checkpoint", {"metrics": scores}, KEY)
    signed = verify(tmp_path, [KEY]).predicate("checkpoint")
    assert signed is not None
    assert signed["metrics"] == scores


def test_moved_and_copied_run_still_verifies(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    run.rename(tmp_path / "moved")
    assert verify(tmp_path / "copy", [KEY]).exit_code == verify(tmp_path / "moved", [KEY]).exit_code == 0


def test_excluded_files_and_folders_may_change(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "model").write_text("")
    (tmp_path / "logs" / "1.txt").write_text("")
    start = seal(tmp_path, "start", RUN, KEY, exclude=["logs/"])
    seal(tmp_path, "end", {**RUN, "prev": start}, KEY, exclude=iter(["logs", "run.log"]))
    (tmp_path / "logs" / "1.txt").write_text("more")
    (tmp_path / "run.log").write_text("")
    assert verify(tmp_path, [KEY]).exit_code == 0
    (tmp_path / "run.log2").write_text("")
    assert problems(verify(tmp_path, [KEY])) == ["run.log2: extra: not among the signed files"]


def test_named_subjects_leave_the_rest_of_the_folder_free(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("")
    start = seal(tmp_path, "start", RUN, KEY)
    seal(tmp_path, "end", {**RUN, "prev": start}, KEY, subjects=["a"])
    (tmp_path / "c").write_text("")
    assert verify(tmp_path, [KEY]).exit_code == 0


def test_checkpoint_folder_verifies_by_itself(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    seal(tmp_path, "checkpoint", {**RUN, "prev": "harness1:0"}, KEY)
    assert verify(tmp_path, [KEY]).exit_code == 0
    (tmp_path / "weights").write_text("2")
    assert verify(tmp_path, [KEY]).exit_code == 1


def test_files_made_after_a_checkpoint_are_no_surprise_to_it(tmp_path: Path) -> None:
    start = seal(tmp_path, "start", RUN, KEY)
    (tmp_path / "weights").write_text("1")
    seal(tmp_path, "checkpoint", {**RUN, "prev": start}, KEY)
    (tmp_path / "scores").write_text("")
    seal(tmp_path, "end", {**RUN, "prev": start}, KEY)
    verification = verify(tmp_path, [KEY])
    assert verification.exit_code == 0, problems(verification)


def test_unfinished_run_cannot_be_told(tmp_path: Path) -> None:
    seal(tmp_path, "start", RUN, KEY)
    (tmp_path / "checkpoint").write_text("")
    verification = verify(tmp_path, [KEY])
    assert verification.exit_code == 3
    assert [(check.name, check.ok) for check in verification.checks] == [
        ("start.envelope.json", True), ("start files", True), ("end.envelope.json", None),
    ]  # fmt: skip
    assert "run not finished" in verification.checks[-1].detail


# Verifying: what is not


def _rename(run: Path) -> None:
    (run / "plots/loss.csv").rename(run / "plots/lost.csv")


def _link(run: Path) -> None:
    (run / "spec.yaml").rename(run.parent / "spec.yaml")
    (run / "spec.yaml").symlink_to(run.parent / "spec.yaml")


def _link_folder(run: Path) -> None:
    (run / "plots").rename(run.parent / "plots")
    (run / "plots").symlink_to(run.parent / "plots")


def _link_envelope(run: Path) -> None:
    (run / "end.envelope.json").rename(run.parent / "envelope")
    (run / "end.envelope.json").symlink_to("../envelope")


def _link_nested_envelope(run: Path) -> None:
    (run / "plots/checkpoint.envelope.json").symlink_to("../end.envelope.json")


def _pipe(run: Path) -> None:
    (run / "plots/loss.csv").unlink()
    os.mkfifo(run / "plots/loss.csv")


EDITS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "edited": (lambda run: (run / "plots/loss.csv").write_text("1,0.4\n"), [r"plots/loss.csv: changed: sha256 "]),
    "missing": (lambda run: (run / "plots/loss.csv").unlink(), ["plots/loss.csv: missing"]),
    "extra": (lambda run: (run / "plots/x").touch(), ["plots/x: extra"]),
    "hidden extra": (lambda run: (run / ".x").touch(), [".x: extra"]),
    "other envelope": (lambda run: (run / "a.envelope.json").touch(), ["a.envelope.json: extra"]),
    "renamed": (_rename, ["plots/loss.csv: missing", "plots/lost.csv: extra"]),
    "linked": (_link, ["spec.yaml: not a regular file", "spec.yaml: not a regular file"]),
    "linked folder": (_link_folder, ["plots/loss.csv: missing", "plots: extra"]),
    "piped": (_pipe, ["plots/loss.csv: not a regular file"]),
    "terminal name": (lambda run: (run / "\x1b[2J").touch(), [r"'\\x1b\[2J': extra"]),
    "moved": (lambda run: (run / "plots/loss.csv").rename(run / "loss.csv"), ["plots/loss.csv: missing", "loss.csv: "]),
    "case changed": (lambda run: (run / "spec.yaml").rename(run / "Spec.yaml"), ["spec.yaml: m"] * 2 + ["Spec.yaml"]),
    "truncated file": (lambda run: os.truncate(run / "plots/loss.csv", 3), ["plots/loss.csv: changed"]),
    "grown file": (lambda run: os.truncate(run / "plots/loss.csv", 99), ["plots/loss.csv: changed"]),
    "no start": (lambda run: (run / "start.envelope.json").unlink(), ["chain: the start statement is missing"]),
    "linked nested envelope": (_link_nested_envelope, ["plots/checkpoint.envelope.json: extra"]),
    "linked envelope": (_link_envelope, ["end.envelope.json: not a regular file"]),
    "swapped": (
        lambda run: shutil.copy(run / "end.envelope.json", run / "start.envelope.json"),
        ["start.envelope.json: a statement of kind 'end' under the name of 'start'"],
    ),
    "truncated": (
        lambda run: os.truncate(run / "end.envelope.json", 300), ["end.envelope.json: malformed envelope"],
    ),
    "empty": (lambda run: os.truncate(run / "end.envelope.json", 0), ["end.envelope.json: malformed envelope"]),
    "huge": (lambda run: os.truncate(run / "end.envelope.json", 2**24 + 1), ["end.envelope.json: larger than"]),
    "nested": (lambda run: (run / "end.envelope.json").write_text("[" * 10**6), ["end.envelope.json: malformed"]),
    "utf-16": (
        lambda run: (run / "end.envelope.json").write_bytes((run / "end.envelope.json").read_text().encode("utf-16")),
        ["end.envelope.json: malformed"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_edited_run_is_found_out(run: Path, edit: str) -> None:
    change, expected = EDITS[edit]
    change(run)
    verification = verify(run, [KEY])
    assert verification.exit_code == 1
    found = problems(verification)
    assert len(found) == len(expected), found
    assert all(re.match(pattern, text) for pattern, text in zip(expected, found, strict=True)), found


def test_no_flipped_byte_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bit, and bytes that are white space, digits or syntax to some parser, at each place of an envelope."""
    seal(tmp_path, "checkpoint", {"runId": "r"}, KEY)
    path = tmp_path / "checkpoint.envelope.json"
    original = path.read_bytes()
    assert open_envelope(path, [KEY]).check.ok
    codes = set()
    for position, byte in enumerate(original):
        for other in {byte ^ 1 << bit for bit in range(8)} | set(b' \n\t0aA="\\,}') - {byte}:
            changed = original[:position] + bytes([other]) + original[position + 1 :]
            monkeypatch.setattr(provenance, "_read", lambda _, content=changed: content)
            check = open_envelope(path, [KEY]).check
            assert check.ok is not True, (position, bytes([byte]), bytes([other]))
            codes.add(check.exit_code)
    assert codes == {1}


def test_every_truncation_is_malformed(tmp_path: Path) -> None:
    seal(tmp_path, "checkpoint", {"runId": "r"}, KEY)
    path = tmp_path / "checkpoint.envelope.json"
    original = path.read_bytes()
    for length in range(len(original)):
        path.write_bytes(original[:length])
        assert open_envelope(path, [KEY]).check.exit_code == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda outer: outer.update(extra=1),
        lambda outer: outer.pop("signatures"),
        lambda outer: outer.update(payload=7),
        lambda outer: outer.update(payload=outer["payload"][:8] + "\n" + outer["payload"][8:]),
        lambda outer: outer.update(payload=outer["payload"] + "===="),
        lambda outer: outer["signatures"][0].update(keyid="\u0660" * 16),
        lambda outer: outer["signatures"][0].update(note="x"),
        lambda outer: outer["signatures"].append("x"),
    ],
)
def test_malformed_envelopes(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_outer(run / "end.envelope.json", change)
    check = open_envelope(run / "end.envelope.json", [KEY]).check
    assert (check.ok, check.detail[:18]) == (False, "malformed envelope")


def test_repeated_key_is_malformed(run: Path) -> None:
    path = run / "end.envelope.json"
    path.write_text(path.read_text().replace('"payloadType"', '"payload":"","payloadType"'))
    assert "repeated" in open_envelope(path, [KEY]).check.detail


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../b", "./a", "a//b", "a/", "", "a\\b", "a\nb", "a\x00b", "..", "\ud800", 7, None],
)
def test_unsafe_names_are_refused_even_when_signed(run: Path, name: object) -> None:
    edit_payload(run / "end.envelope.json", lambda statement: statement["subject"][0].update(name=name), KEY)
    check = open_envelope(run / "end.envelope.json", [KEY]).check
    assert (check.ok, check.detail[:19]) == (False, "malformed statement")


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement.pop("subject"),
        lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda statement: statement.update(predicateType="https://example.com/other"),
        lambda statement: statement.update(predicate=[]),
        lambda statement: statement["predicate"].update(formatVersion=True),
        lambda statement: statement["predicate"].update(metrics={"test/f1": float("nan")}),
        lambda statement: statement["predicate"].pop("coverage"),
        lambda statement: statement["predicate"].update(coverage={"excluded": [1]}),
        lambda statement: statement["subject"].append(statement["subject"][0]),
        lambda statement: statement["subject"][0].update(digest={"sha512": "0"}),
        lambda statement: statement["subject"][0]["digest"].update(sha256="A" * 64),
    ],
)
def test_malformed_statements(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_payload(run / "end.envelope.json", change, KEY)
    check = open_envelope(run / "end.envelope.json", [KEY]).check
    assert (check.ok, check.detail[:19]) == (False, "malformed statement")


def test_newer_format_is_not_called_tampered(run: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["formatVersion"] = 2
        statement["predicateType"] = "https://harness.invalid/run/v2"

    edit_payload(run / "end.envelope.json", change, KEY)
    verification = verify(run, [KEY])
    assert verification.exit_code == 4
    assert "newer than 1: update harness" in problems(verification)[0]


def test_another_payload_type_is_refused_although_signed(run: Path) -> None:
    def change(outer: dict[str, Any]) -> None:
        outer["payloadType"] = "application/json"
        sig = KEY.mac(pae("application/json", base64.b64decode(outer["payload"])))
        outer["signatures"][0]["sig"] = base64.b64encode(sig).decode()

    edit_outer(run / "end.envelope.json", change)
    assert "not a fingerprint" in open_envelope(run / "end.envelope.json", [KEY]).check.detail


def test_the_payload_is_not_parsed_before_it_is_authenticated(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_payload(run / "end.envelope.json", lambda statement: statement["predicate"].update(metrics={"test/f1": 1}))
    monkeypatch.setattr(provenance, "_parse_statement", lambda *_: pytest.fail("parsed what nobody signed"))
    envelope = open_envelope(run / "end.envelope.json", [KEY])
    assert (envelope.check.ok, envelope.predicate, envelope.subjects) == (False, None, {})
    assert open_envelope(run / "start.envelope.json", [OTHER]).predicate is None


# Chain


@pytest.mark.parametrize(
    ("end", "detail"),
    [
        ({**RUN, "prev": "harness1:" + "0" * 64}, "does not follow"),
        (RUN, "does not follow"),
        ({**RUN, "runId": "run-2"}, "runId was 'run-1' at the start and is 'run-2' at the end"),
        ({**RUN, "specId": "sha256:1"}, "specId was"),
    ],
)
def test_an_end_that_belongs_to_another_start(tmp_path: Path, end: dict[str, Any], detail: str) -> None:
    start = seal(tmp_path, "start", RUN, KEY)
    seal(tmp_path, "end", end if end is RUN or "prev" in end else {**end, "prev": start}, KEY)
    verification = verify(tmp_path, [KEY])
    assert verification.exit_code == 1
    assert detail in next(check.detail for check in verification.checks if check.name == "chain")


def test_a_spec_edited_before_the_end_was_signed_still_shows(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("rank: 8\n")
    start = seal(tmp_path, "start", RUN, KEY)
    (tmp_path / "spec.yaml").write_text("rank: 9\n")
    seal(tmp_path, "end", {**RUN, "prev": start}, KEY)
    assert [check.name for check in verify(tmp_path, [KEY]).checks if check.ok is False] == ["spec.yaml"]


# Keys and signatures of an envelope


def test_messages_of_a_signature_that_does_not_hold(run: Path) -> None:
    """Wrong key, unknown key, no key, bad MAC and unsigned: five sentences, none of them ok."""
    path = run / "end.envelope.json"
    original = path.read_bytes()
    details = {}
    for name, known in {"unknown key": [OTHER], "no key": []}.items():
        check = open_envelope(path, known).check
        assert (check.ok, check.exit_code) == (None, 3)
        details[name] = check.detail
    edit_outer(path, lambda outer: outer["signatures"][0].update(keyid=OTHER.keyid))
    details["wrong key"] = open_envelope(path, [KEY, OTHER]).check.detail
    assert open_envelope(path, [KEY]).check.exit_code == open_envelope(path, [OTHER]).check.exit_code == 1
    path.write_bytes(original)
    edit_payload(path, lambda statement: statement["predicate"].update(runId="x"))
    details["bad MAC"] = open_envelope(path, [KEY]).check.detail
    make_run(run.parent / "unsigned", None)
    details["not signed"] = open_envelope(run.parent / "unsigned/end.envelope.json", [KEY]).check.detail
    assert all(detail.startswith(name) for name, detail in details.items()), details
    assert all(KEY.keyid in details[name] for name in ("unknown key", "no key", "wrong key", "bad MAC"))


def test_the_key_id_inside_is_compared_with_the_one_outside(run: Path) -> None:
    edit_payload(run / "end.envelope.json", lambda statement: statement["predicate"].update(keyId=OTHER.keyid), KEY)
    check = open_envelope(run / "end.envelope.json", [KEY]).check
    assert (check.ok, check.detail[:9]) == (False, "wrong key")


def test_an_added_signature_verifies_for_the_holders_of_either_key(run: Path) -> None:
    def sign_again(outer: dict[str, Any]) -> None:
        sig = OTHER.mac(pae(outer["payloadType"], base64.b64decode(outer["payload"])))
        outer["signatures"].append({"keyid": OTHER.keyid, "sig": base64.b64encode(sig).decode()})

    path = run / "end.envelope.json"
    edit_outer(path, sign_again)
    signed_twice = path.read_bytes()
    edit_outer(path, lambda outer: outer["signatures"][1].update(keyid="0" * 16))
    assert "wrong key" in open_envelope(path, [OTHER]).check.detail
    path.write_bytes(signed_twice)
    assert all(open_envelope(path, known).check.ok for known in ([KEY], [OTHER], [OTHER, KEY]))
    edit_outer(path, lambda outer: outer["signatures"][1].update(sig=base64.b64encode(b"0" * 32).decode()))
    assert open_envelope(path, [KEY]).check.ok
    assert "bad MAC" in open_envelope(path, [KEY, OTHER]).check.detail


def test_unsigned_runs_are_never_ok_but_their_files_are_checked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None)
    assert json.loads((run / "end.envelope.json").read_text())["signatures"] == []
    verification = verify(run, [KEY])
    assert verification.exit_code == 3
    assert {check.name: check.ok for check in verification.checks} == {
        "start.envelope.json": None, "end.envelope.json": None, "chain": True, "start files": True, "end files": True,
    }  # fmt: skip
    (run / "plots/loss.csv").write_text("")
    assert verify(run, [KEY]).exit_code == 1


def test_a_signature_taken_away_is_noticed(run: Path) -> None:
    edit_outer(run / "end.envelope.json", lambda outer: outer.update(signatures=[]))
    check = open_envelope(run / "end.envelope.json", [KEY]).check
    assert (check.ok, "was removed" in check.detail) == (False, True)


def test_no_envelope_and_no_folder(tmp_path: Path) -> None:
    assert verify(tmp_path, [KEY]).exit_code == 3
    assert verify(tmp_path / "absent", [KEY]).exit_code == 5


def test_unreadable_files_are_io_errors(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise StorageError(f"cannot read {path}", why="I/O error")

    monkeypatch.setattr(digests, "file_digest", refuse)
    assert verify(run, [KEY]).exit_code == 5


def test_the_worst_code_wins() -> None:
    lines = {0: Check("", True), 1: Check("", False), **{code: Check("", None, code=code) for code in (3, 4, 5)}}
    order = [0, 3, 4, 5, 1]
    for index, code in enumerate(order):
        assert Verification([lines[other] for other in order[: index + 1]]).exit_code == code
    assert Verification([]).exit_code == 3


# The code itself


def test_digests_are_compared_in_constant_time() -> None:
    secret = {
        "digest",
        "digests",
        "mac",
        "macs",
        "sig",
        "signature",
        "keyid",
        "sha256",
        "hexdigest",
        "attestation",
        "prev",
    }
    for module in (provenance, digests, keys, chain, ledger, verification, origins, fingerprint, checkpoint):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                words = set(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", ast.unparse(node)).lower()))
                assert not words & secret, f"{module.__file__}:{node.lineno}: {ast.unparse(node)}"


def test_an_auditor_reads_the_standard_library_and_one_small_package() -> None:
    own = {"harness.errors", *(f"harness.signing.{name}" for name in ("keys", "digests", "provenance"))}
    allowed = {*sys.stdlib_module_names, "rfc8785", *own}
    for module in (provenance, digests, keys, chain, ledger):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.ImportFrom):
                is_package = node.module in ("harness", "harness.signing")
                names = {f"{node.module}.{name.name}" for name in node.names} if is_package else {node.module}
                assert names <= allowed | {"collections.abc"}
            elif isinstance(node, ast.Import):
                assert {name.name for name in node.names} <= allowed
