"""Signing keys: derivation, where they come from, who may read them, making and rotating them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import StorageError, UserError
from harness.signing import keys as keys_module
from harness.signing.chain import verify
from harness.signing.keys import Key, key_file, keygen, load_key, load_keyring, read_key, take_key
from harness.signing.provenance import seal

KEY = Key(b"k" * 32)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without keys."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "HARNESS_SIGNING_KEY", "HARNESS_SIGNING_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("key", "message", "mac"),  # RFC 4231, test cases 1 to 4, 6 and 7
    [
        (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (
            b"Jefe", b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
        (
            b"\xaa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
        (
            b"\xaa" * 131,
            b"This is a test using a larger than block-size key and a larger than block-size data. "
            b"The key needs to be hashed before being used by the HMAC algorithm.",
            "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
        ),
    ],
)  # fmt: skip
def test_mac_of_rfc_4231(key: bytes, message: bytes, mac: str) -> None:
    assert hmac.digest(key, message, "sha256").hex() == mac


def test_derivation() -> None:
    derived = hmac.new(KEY.master, b"harness/v1/sign", hashlib.sha256).digest()
    assert KEY.mac(b"message") == hmac.new(derived, b"message", hashlib.sha256).digest()
    assert KEY.keyid == hmac.new(KEY.master, b"harness/v1/key-id", hashlib.sha256).hexdigest()[:16]


def write_key(path: Path, key: Key, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(key.text + "\n")
    path.chmod(mode)
    return path


def test_order_of_keys(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third, fourth = (Key(bytes([number]) * 32) for number in range(4))

    def loaded() -> bytes | None:
        key = load_key()
        return key.master if key else None

    assert loaded() is None
    write_key(home / ".config/harness/keys/active", first)
    assert loaded() == first.master
    write_key(tmp_path / "xdg/harness/keys/active", second)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert loaded() == second.master
    monkeypatch.setenv("HARNESS_SIGNING_KEY_FILE", str(write_key(tmp_path / "named", third)))
    assert loaded() == third.master
    monkeypatch.setenv("HARNESS_SIGNING_KEY", fourth.text + "=")
    assert loaded() == fourth.master
    assert [key.master for key in load_keyring()] == [fourth.master, third.master]
    monkeypatch.setenv("HARNESS_SIGNING_KEY", "")
    assert loaded() == third.master


def test_the_key_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_SIGNING_KEY", KEY.text)
    key = take_key()
    assert key is not None
    assert key.master == KEY.master
    child = [sys.executable, "-S", "-c", "import os; print('HARNESS_SIGNING_KEY' in os.environ)"]
    assert subprocess.run(child, capture_output=True, check=True).stdout == b"False\n"
    monkeypatch.setenv("HARNESS_SIGNING_KEY", "short")
    with pytest.raises(UserError):
        take_key()
    assert "HARNESS_SIGNING_KEY" not in os.environ


def test_no_process_shows_the_key_that_was_taken(tmp_path: Path) -> None:
    """Nor do its children, forked or spawned, and git is not told on the way, before the key was taken."""
    path = write_key(tmp_path / "repository/key", KEY)
    (tmp_path / "repository/.git").mkdir()
    fake = tmp_path / "bin/git"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ncat /proc/$$/environ > {tmp_path}/seen-by-git\nexit 1\n")
    fake.chmod(0o755)
    code = """
import multiprocessing, os, subprocess
from pathlib import Path
from harness.signing import keys

def shown():
    print(Path("/proc/self/environ").read_bytes().decode(errors="replace"), flush=True)

assert len(keys.load_keyring()) == 2
assert keys.take_key().master == b"o" * 32
multiprocessing.get_context("fork").Process(target=shown).start()
subprocess.run(["cat", "/proc/self/environ"], check=True)
shown()
"""
    canary = Key(b"o" * 32).text
    given = {"HARNESS_SIGNING_KEY": canary, "HARNESS_SIGNING_KEY_FILE": str(path), "PYTHONPATH": os.fspath(ROOT)}
    environment = {**os.environ, **given, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("PYTHONPATH") == 3
    assert canary not in done.stdout + done.stderr
    assert "PYTHONPATH" in (tmp_path / "seen-by-git").read_text()
    assert canary not in (tmp_path / "seen-by-git").read_text()


def test_processes_that_do_not_sign_forget_the_key_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_SIGNING_KEY", "not even a key")
    keys_module.forget()
    assert "HARNESS_SIGNING_KEY" not in os.environ
    keys_module.forget()


def test_all_keys_are_listed_without_their_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys_module.listed() == []
    first, second = keygen(), keygen(rotate=True)
    found = keys_module.listed()
    assert [(key.keyid, key.signs) for key in found] == [(second.keyid, True), (first.keyid, False)]
    monkeypatch.setenv("HARNESS_SIGNING_KEY", KEY.text)
    found = keys_module.listed()
    assert [(key.keyid, key.signs) for key in found] == [
        (KEY.keyid, True), (second.keyid, False), (first.keyid, False),
    ]  # fmt: skip
    assert found[0].place == "HARNESS_SIGNING_KEY"
    assert not any(key.text in repr(found) for key in (KEY, first, second))


def test_a_retired_key_verifies_and_signs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    key = keygen()
    with pytest.raises(UserError, match=f"does not hold key 0123456789abcdef\n  fix: known: {key.keyid}"):
        keys_module.retire("0123456789abcdef")
    place = keys_module.retire(key.keyid)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert load_key() is None
    assert [known.keyid for known in load_keyring()] == [key.keyid]
    with pytest.raises(UserError, match="retired already"):
        keys_module.retire(key.keyid)
    monkeypatch.setenv("HARNESS_SIGNING_KEY", KEY.text)
    with pytest.raises(UserError, match="fix: unset HARNESS_SIGNING_KEY"):
        keys_module.retire(KEY.keyid)


def test_a_key_that_cannot_be_retired_is_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    key = keygen()

    def fail(path: Path, key: Key) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys_module, "_replace", fail)
    with pytest.raises(StorageError, match="No space left"):
        keys_module.retire(key.keyid)
    found = load_key()
    assert found is not None
    assert found.keyid == key.keyid


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601, 0o700])
def test_key_files_open_to_others_are_refused(tmp_path: Path, mode: int) -> None:
    path = write_key(tmp_path / "key", KEY, mode)
    with pytest.raises(UserError, match=rf"open to others\n  why: its mode is {mode:04o}\n  fix: chmod 600 '.*key'"):
        read_key(path)
    path.chmod(0o600)
    assert read_key(path).master == KEY.master


def test_key_files_of_somebody_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_key(tmp_path / "key", KEY)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(UserError, match="not yours"):
        read_key(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (base64.urlsafe_b64encode(b"x" * 31).decode(), "it has 31 bytes, a key has 32"),
        (base64.urlsafe_b64encode(b"x" * 33).decode(), "it has 33 bytes"),
        ("correct horse battery staple", "not base64url"),
        ("A", "not base64url"),
        ("", "not base64url"),
        (base64.b64encode(b"\xff" * 32).decode(), "not base64url"),
        ("ü" * 43, "not base64url"),
    ],
)
def test_bad_keys_are_refused_and_never_shown(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UserError, match=message) as caught:
        read_key(path)
    assert not text or text not in str(caught.value)


def test_a_key_that_is_named_but_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, message in {"absent": "No such file", ".": "Is a directory", "pipe": "not a regular file"}.items():
        monkeypatch.setenv("HARNESS_SIGNING_KEY_FILE", str(tmp_path / name))
        with pytest.raises(UserError, match=message):
            load_key()


def test_keys_do_not_show_themselves() -> None:
    assert repr(KEY) == "Key()"
    assert KEY.text not in f"{KEY} {KEY.keyid}"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_key_that_git_tracks_is_warned_of(tmp_path: Path) -> None:
    path = write_key(tmp_path / "key", KEY)
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    assert read_key(path).master == KEY.master
    subprocess.run(["git", "-C", tmp_path, "add", "key"], check=True)
    with pytest.warns(UserWarning, match="git tracks the signing key"):
        read_key(path)


def test_keygen_makes_a_private_key_and_never_overwrites(home: Path) -> None:
    old = os.umask(0)
    try:
        key = keygen()
    finally:
        os.umask(old)
    path = home / ".config/harness/keys/active"
    assert key_file() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", path.read_text())
    assert read_key(path).master == key.master
    with pytest.raises(UserError, match="signing key already"):
        keygen()
    assert read_key(path).master == key.master
    assert keygen(home / "other").master != key.master


def test_rotated_keys_still_verify(tmp_path: Path) -> None:
    first = keygen()
    run = tmp_path / "run"
    run.mkdir()
    seal(run, "checkpoint", {}, first)
    second, third = keygen(rotate=True), keygen(rotate=True)
    loaded = load_key()
    assert loaded is not None
    assert loaded.master == third.master
    assert {key.keyid for key in load_keyring()} == {first.keyid, second.keyid, third.keyid}
    assert verify(run, load_keyring()).exit_code == 0
    assert verify(run, [third]).exit_code == 3
    ring = key_file().parent / "keyring"
    assert sorted(path.name for path in ring.iterdir()) == sorted(f"{key.keyid}.key" for key in (first, second))
    (ring / f"{first.keyid}.key").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_keyring()


def test_interrupted_rotation_loses_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the old key went into the keyring, before the new one took its place."""
    first, replace = keygen(), keys_module._replace

    def fail(path: Path, key: Key) -> None:
        if path.name == "active":
            raise OSError(28, "No space left on device")
        replace(path, key)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(keys_module, "_replace", fail)
        keygen(rotate=True)
    assert [key.keyid for key in load_keyring()] == [first.keyid]
    second = keygen(rotate=True)
    assert [key.keyid for key in load_keyring()] == [second.keyid, first.keyid]
