"""What signed statements are made of: one spelling of a JSON value, digests of files, names and files that are safe.

Everything here is strict and says so: a value that has two spellings, a file that is not itself (a link, a pipe) or
that changes while it is read, a name that leads elsewhere. Source: RFC 8785 (canonical JSON).
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import unicodedata
from pathlib import Path
from typing import Any

import rfc8785

from harness.errors import StorageError, UserError

MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")


# JSON


def identity(value: Any) -> str:
    """`"sha256:..."` of a JSON value in canonical form (RFC 8785), strings NFC-normalised: one id, however it is spelt.

    Raises:
        UserError: NaN, infinity, a whole number beyond 2**53, a key that is no string, or keys alike once normalised.
    """
    return f"sha256:{hashlib.sha256(canonical(_normalised(value))).hexdigest()}"


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value (RFC 8785). Raises UserError as `identity` does."""
    try:
        return rfc8785.dumps(value)
    except ValueError as error:
        fix = "leave out NaN and infinity, write whole numbers beyond 2**53 as strings, use plain types"
        raise UserError("cannot be written as canonical JSON", why=str(error), fix=fix) from error


def parse_json(content: bytes) -> Any:
    """UTF-8 JSON without repeated keys, NaN and infinity. Raises ValueError, and RecursionError for deep nesting.

    RFC 8785 writes the float 2.0**60 as digits only; beyond 2**53 such digits stand for a float, not a whole number.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def number(digits: str) -> int | float:
        return int(digits) if abs(float(digits)) < 2**53 else float(digits)

    return json.loads(content.decode(), object_pairs_hook=unique, parse_constant=refuse, parse_int=number)


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, dict):
        result = {_normalised(name): _normalised(entry) for name, entry in value.items()}
        if len(result) < len(value):
            raise UserError("two keys are one after Unicode normalisation", where=repr(sorted(result)))
        return result
    return [_normalised(entry) for entry in value] if isinstance(value, list | tuple) else value


# Text


def encode(content: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(content).decode()


def decode(text: str) -> bytes:
    """Strict base64: the one spelling of these bytes. Raises ValueError."""
    content = base64.b64decode(text, validate=True)
    if not same(encode(content), text):
        raise ValueError("base64 with stray bits")
    return content


def same(left: object, right: object) -> bool:
    """Whether two strings are equal, in a time that tells nothing about where they differ."""
    if not (isinstance(left, str) and isinstance(right, str)):
        return False
    return hmac.compare_digest(left.encode(errors="surrogatepass"), right.encode(errors="surrogatepass"))


def is_safe(name: str) -> bool:
    """Whether a name is relative POSIX and UTF-8, without `.` or `..` as a part, backslash or control character."""
    parts_ok = not {"", ".", ".."} & set(name.split("/"))
    return parts_ok and not re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", name)


def shown(name: str) -> str:
    """A name as it may be printed: it must not steer the terminal."""
    return name if name.isprintable() else ascii(name)


def machine_id_digest() -> str | None:
    """HMAC-SHA256(machine id, "harness-host") in hexadecimal, never the id itself; None where the system has none."""
    for path in map(Path, MACHINE_ID_FILES):
        content = path.read_text(errors="replace").strip() if path.is_file() else ""
        if re.fullmatch(r"[0-9a-f]{32}", content):
            return hmac.digest(content.encode(), b"harness-host", "sha256").hex()
    return None


# Files


def file_digest(path: Path) -> str:
    """The sha256 of a regular file, 64 hexadecimal digits.

    Raises:
        StorageError: unreadable, a link or a pipe, or changed while it was read.
    """
    try:
        with open(path, "rb", opener=_open_itself) as file:
            before = os.fstat(file.fileno())
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = (os.fstat(file.fileno()), path.lstat())  # written to, or another file put in its place
    except OSError as error:
        raise StorageError(f"cannot read {path}", why=str(error)) from error
    if any(_version(state) != _version(before) for state in after):
        raise StorageError("changed while it was read", where=str(path), fix="wait until nobody writes to it")
    return found


def read(path: Path, at_most: int) -> bytes:
    """The content of a regular file. Raises ValueError for anything else or more than `at_most` bytes, and OSError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("not a regular file")
    with open(path, "rb", opener=_open_itself) as file:
        content = file.read(at_most + 1)
    if len(content) > at_most:
        raise ValueError(f"larger than {at_most} bytes")
    return content


def scan(folder: Path, excluded: set[str], passed_over: set[str]) -> dict[str, bool]:
    """All below a folder but the folders themselves: relative POSIX name -> is it a regular file.

    Left out are `excluded` files and folders with all in them, and regular files called as in `passed_over`, anywhere.

    Raises:
        StorageError: a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found = {}
    try:
        for parent, folders, files in os.walk(folder, onerror=fail):
            for path in (Path(parent, name) for name in [*folders, *files]):
                mode, name = path.lstat().st_mode, path.relative_to(folder)
                is_passed_over = name.name in passed_over and stat.S_ISREG(mode)
                is_excluded = any(part.as_posix() in excluded for part in (name, *name.parents))
                if not (stat.S_ISDIR(mode) or is_passed_over or is_excluded):
                    found[name.as_posix()] = stat.S_ISREG(mode)
    except OSError as error:
        raise StorageError(f"cannot list {folder}", why=str(error)) from error
    return found


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, mode per umask. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}", why=str(error)) from error


def _open_itself(path: str, flags: int) -> int:
    """Open a regular file and nothing else: no link is followed, no pipe is waited for. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)


def _version(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
