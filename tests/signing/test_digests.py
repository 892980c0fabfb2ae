"""Canonical JSON against the vectors of RFC 8785, digests of files that are links, pipes or change, and safe names."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StorageError, UserError
from harness.signing import digests
from harness.signing.digests import (
    canonical,
    decode,
    file_digest,
    identity,
    is_safe,
    machine_id_digest,
    parse_json,
    same,
    shown,
)


@pytest.mark.parametrize(
    ("bits", "text"),  # RFC 8785, appendix B
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("41b3de4355555553", "333333333.3333332"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
    ],
)
def test_numbers_of_rfc_8785(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert identity([number]) == f"sha256:{hashlib.sha256(f'[{text}]'.encode()).hexdigest()}"


def test_sorting_and_strings_of_rfc_8785() -> None:
    value = {"\u20ac": "Euro", "\r": "CR", "\ufb33": "D", "1": "One", "\U0001f600": "G", "\u0080": "C", "\u00f6": "O"}
    order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]  # by UTF-16 units, section 3.2.3
    found = canonical(value)
    assert list(json.loads(found)) == order
    assert found.startswith(b'{"\\r":"CR","1":"One","\xc2\x80":"C",')
    text = {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "string": '\u20ac$\u000f\nA\'B"\\\\"/'}
    expected = (  # section 3.2.2
        b'{"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(text) == expected


def test_identity_is_one_for_all_spellings_of_a_value() -> None:
    value = {"lr": 1e-05, "rank": 8, "name": "Zo\u00eb"}
    assert identity(value) == identity({"name": "Zoe\u0308", "rank": 8.0, "lr": 0.00001})
    assert identity(value) != identity({**value, "rank": 9})
    assert identity({"a": "sha256"}) == "sha256:" + hashlib.sha256(b'{"a":"sha256"}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, {1: "a"}, "\ud800", Path("x")])
def test_identity_refuses_what_json_cannot_say(value: object) -> None:
    with pytest.raises(UserError, match="canonical JSON"):
        identity([value])


def test_identity_refuses_keys_that_normalisation_makes_one() -> None:
    with pytest.raises(UserError, match="two keys are one"):
        identity({"\u00eb": 1, "e\u0308": 2})


def test_identity_does_not_depend_on_hash_seed_or_locale() -> None:
    code = (
        "from harness.signing.digests import identity as of; print(of({'ı': 'İ', 'b': [1e-7, {'z': None, 'a': True}]}))"
    )
    environments = ({"PYTHONHASHSEED": "1", "LC_ALL": "C"}, {"PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.UTF-8"})
    command = [sys.executable, "-B", "-X", "utf8", "-c", code]
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(command, env={**os.environ, **extra}, cwd=root, capture_output=True, check=True).stdout
        for extra in environments
    }
    assert found == {f"{identity({'ı': 'İ', 'b': [1e-7, {'z': None, 'a': True}]})}\n".encode()}


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ".", "absent"):
        with pytest.raises(StorageError, match=r"cannot read|not a regular"):
            file_digest(tmp_path / name)


@pytest.mark.parametrize("change", ["appended", "replaced"])
def test_file_digest_notices_a_file_that_changes(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    digest = hashlib.file_digest

    def interfere(file: Any, name: str) -> Any:
        found = digest(file, name)
        if change == "appended":
            path.write_bytes(b"abcd")
        else:
            (tmp_path / "new").write_bytes(b"abc")
            shutil.copystat(path, tmp_path / "new")
            (tmp_path / "new").replace(path)
        return found

    monkeypatch.setattr(hashlib, "file_digest", interfere)
    with pytest.raises(StorageError, match="changed while it was read"):
        file_digest(path)


def test_machine_id_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = "0123456789abcdef0123456789abcdef"
    (tmp_path / "id").write_text(machine + "\n")
    monkeypatch.setattr(digests, "MACHINE_ID_FILES", (str(tmp_path / "absent"), str(tmp_path / "id")))
    assert machine_id_digest() == hmac.new(machine.encode(), b"harness-host", hashlib.sha256).hexdigest()
    (tmp_path / "id").write_text("uninitialized\n")
    assert machine_id_digest() is None


def test_json_is_read_strictly() -> None:
    assert parse_json(b'{"a": [1, 2.5, null, "\xc3\xa9"]}') == {"a": [1, 2.5, None, "é"]}
    assert [type(number) for number in parse_json(b"[9007199254740991, 9007199254740992]")] == [int, float]
    for text in (b'{"a": 1, "a": 1}', b"[NaN]", b"[-Infinity]", b'["\xff"]', b"[1] 2", b""):
        with pytest.raises(ValueError):
            parse_json(text)


def test_base64_has_one_spelling() -> None:
    assert decode("/+8=") == b"\xff\xef"
    for text in ("/+9=", "/+8", "/+8=\n", "_-8=", "/+8=="):
        with pytest.raises(ValueError):
            decode(text)


def test_names_that_lead_elsewhere_are_not_safe() -> None:
    assert all(map(is_safe, ("a", "a/b.c", ".hidden", "ü", "a b", "...")))
    assert not any(map(is_safe, ("", "/a", "a/", "a//b", "../a", "a/.", "a\\b", "a\x7f", "a\x00", "\udce9")))
    assert [shown("a/ü"), shown("\x1b[2J")] == ["a/ü", r"'\x1b[2J'"]


def test_only_equal_strings_are_the_same() -> None:
    assert same("é", "é")
    assert same("\ud800", "\ud800")
    assert not same("a", "b")
    assert not same(None, None)


def test_reading_is_limited_to_regular_files_of_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert digests.read(tmp_path / "file", 3) == b"abc"
    with pytest.raises(ValueError, match="larger than 2 bytes"):
        digests.read(tmp_path / "file", 2)
    with pytest.raises(ValueError, match="not a regular file"):
        digests.read(tmp_path / "link", 3)
    with pytest.raises(OSError, match="No such file"):
        digests.read(tmp_path / "absent", 3)


def test_a_scan_names_everything_but_folders_and_what_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "logs/1", "sub/b", "sub/pass", "pass"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("sub")
    (tmp_path / "sub/logs").symlink_to("../logs")
    expected = {"a": True, "sub/b": True, "link": False, "sub/logs": False}
    assert digests.scan(tmp_path, {"logs"}, {"pass"}) == expected
