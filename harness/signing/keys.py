"""Signing keys: where they come from, who may read them, how a new one is made.

The first that exists signs: `HARNESS_SIGNING_KEY` (base64url of 32 bytes), the file `HARNESS_SIGNING_KEY_FILE` names,
`~/.config/harness/keys/active` (`XDG_CONFIG_HOME` is honoured). A variable that is empty counts as unset. The folder
`keyring` beside the key file holds retired keys: they verify and never sign. There is no default key.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import hmac
import os
import re
import secrets
import stat
import subprocess
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import StorageError, UserError, did_you_mean

VARIABLE = "HARNESS_SIGNING_KEY"
FILE_VARIABLE = "HARNESS_SIGNING_KEY_FILE"
SIZE = 32  # bytes, random: a passphrase could be guessed offline from any signed file


@dataclass(frozen=True, eq=False)
class Key:
    """A master secret. What signs and what names the key are derived apart: the public id gives nothing away."""

    master: bytes = field(repr=False)

    @classmethod
    def from_text(cls, text: str, where: str) -> Key:
        """Read base64url, padded or not. Raises UserError, which never shows the text, unless it holds 32 bytes."""
        digits = text.strip().rstrip("=")
        try:
            master = base64.urlsafe_b64decode(digits + "=" * (-len(digits) % 4))
        except (binascii.Error, ValueError):
            master = b""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", digits) or not master:
            raise UserError("the signing key is not base64url", where=where, fix="make one with `harness keygen`")
        if len(master) != SIZE:
            why = f"it has {len(master)} bytes, a key has {SIZE}"
            raise UserError("the signing key has the wrong length", where=where, why=why, fix="`harness keygen`")
        return cls(master)

    @property
    def text(self) -> str:
        """The secret as base64url, without padding."""
        return base64.urlsafe_b64encode(self.master).decode().rstrip("=")

    @property
    def keyid(self) -> str:
        """16 hexadecimal digits that name the key in public."""
        return hmac.digest(self.master, b"harness/v1/key-id", "sha256").hex()[:16]

    def mac(self, message: bytes) -> bytes:
        """HMAC-SHA256 (RFC 2104) of the message under the derived signing key, 32 bytes."""
        return hmac.digest(hmac.digest(self.master, b"harness/v1/sign", "sha256"), message, "sha256")


def key_file() -> Path:
    """The file that holds the signing key, whether or not it exists."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return Path(named).expanduser()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return config / "harness" / "keys" / "active"


def load_key() -> Key | None:
    """The key that signs, or None: then statements are written visibly unsigned.

    Raises:
        UserError: a key is named but missing, malformed, or readable by others.
    """
    text = os.environ.get(VARIABLE)
    return Key.from_text(text, VARIABLE) if text else _load_file()


def take_key() -> Key | None:
    """`load_key()`, after which `HARNESS_SIGNING_KEY` is gone from the environment: no child process inherits it.

    Call it once, before any worker is started, in the one process that signs; keep what it returns, for verifying too.
    Raises UserError as `load_key` does.
    """
    try:
        return load_key()
    finally:
        forget()


def forget() -> None:
    """Take `HARNESS_SIGNING_KEY` out of the environment, unread: for processes that do not sign.

    Also out of what `/proc/<pid>/environ` shows of this process and of those it forks: the system keeps the bytes
    a process was started with, and removing a variable leaves them where they were.
    """
    if VARIABLE in os.environ:
        with suppress(AttributeError, OSError, TypeError):  # where the C library cannot be asked
            find = ctypes.CDLL(None).getenv
            find.argtypes, find.restype = [ctypes.c_char_p], ctypes.c_void_p
            if place := find(VARIABLE.encode()):
                ctypes.memset(place, ord("x"), len(ctypes.string_at(place)))
        del os.environ[VARIABLE]


def load_keyring() -> list[Key]:
    """Every key that may verify: the signing key, the key file (which a variable may hide), the retired keys.

    Raises:
        UserError: one of them is malformed or readable by others.
    """
    text = os.environ.get(VARIABLE)
    signing = Key.from_text(text, VARIABLE) if text else None
    retired = (read_key(path) for path in sorted(_keyring(key_file()).glob("*.key")))
    found = [key for key in (signing, _load_file(), *retired) if key is not None]
    return list({key.keyid: key for key in found}.values())


def read_key(path: Path) -> Key:
    """Read a key file, which must be the user's own and closed to all others, as ssh demands it.

    Warns if git tracks the file. Raises UserError for a file that is missing, open to others, or holds no key.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            _check_access(os.fstat(file.fileno()), path)
            content = file.read(1024)
    except OSError as error:
        fix = f"make one with `harness keygen`, or unset {FILE_VARIABLE}"
        raise UserError("cannot read the signing key", where=str(path), why=str(error.strerror), fix=fix) from error
    _warn_if_tracked(path)
    return Key.from_text(content.decode(errors="replace"), str(path))


def keygen(path: Path | None = None, *, rotate: bool = False) -> Key:
    """Make a new key file of mode 0600 at `path` (default: `key_file()`), never over another one.

    With `rotate` the present key first goes into the keyring as `<keyid>.key`, and the new one replaces it in one step,
    so that an interruption at any moment leaves a usable key and loses none.

    Raises:
        UserError: a key is there and `rotate` was not asked for, or it cannot be read.
        StorageError: the file cannot be written.
    """
    path, key = path or key_file(), Key(secrets.token_bytes(SIZE))
    if os.path.lexists(path) and not rotate:
        fix = "rotate it with `harness keygen --rotate`; what it signed still verifies"
        raise UserError("there is a signing key already", where=str(path), fix=fix)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.path.lexists(path):
            old, ring = read_key(path), _keyring(path)
            ring.mkdir(mode=0o700, exist_ok=True)
            _replace(ring / f"{old.keyid}.key", old)
            _replace(path, key)
        else:
            _create(path, key)
    except OSError as error:
        raise StorageError("cannot write the signing key", where=str(path), why=str(error)) from error
    return key


@dataclass(frozen=True)
class Listed:
    """One key as `harness keys list` shows it: never the secret."""

    keyid: str
    signs: bool
    place: str


def listed() -> list[Listed]:
    """Every key at hand, the one that signs first. Raises UserError as `load_keyring` does."""
    text, path = os.environ.get(VARIABLE), key_file()
    found = [(Key.from_text(text, VARIABLE), VARIABLE)] if text else []
    found += [(key, str(path))] if (key := _load_file()) else []
    signing = len(found[:1])
    found += [(read_key(old), str(old)) for old in sorted(_keyring(path).glob("*.key"))]
    return [Listed(key.keyid, number < signing, place) for number, (key, place) in enumerate(found)]


def retire(keyid: str) -> Path:
    """Move the key of the key file into the keyring, with no other in its place: it verifies and signs no more.

    Returns:
        Where it is now.

    Raises:
        UserError: it is not the key of the key file, or that cannot be read.
        StorageError: the keyring cannot be written; the key is where it was.
    """
    path = key_file()
    key = _load_file()
    if key is None or not hmac.compare_digest(key.keyid.encode(), keyid.encode()):
        known = [one.keyid for one in listed() if one.place != VARIABLE]
        if keyid in known:
            raise UserError(f"key {keyid} is retired already", where=str(_keyring(path)))
        fix = f"unset {VARIABLE}" if not key and os.environ.get(VARIABLE) else did_you_mean(keyid, known)
        raise UserError(f"{path} does not hold key {keyid}", fix=fix)
    place = _keyring(path) / f"{keyid}.key"
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        _replace(place, key)
        path.unlink()
    except OSError as error:
        raise StorageError("cannot write the keyring", where=str(place), why=str(error)) from error
    return place


def _load_file() -> Key | None:
    """The key of the key file; None if there is no such file and nobody named one."""
    path = key_file()
    return read_key(path) if os.environ.get(FILE_VARIABLE) or os.path.lexists(path) else None


def _keyring(path: Path) -> Path:
    return path.parent / "keyring"


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe in the key's place must not hang us


def _check_access(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UserError("the signing key is not a regular file", where=str(path))
    if found.st_uid != os.geteuid():
        why = f"it belongs to user {found.st_uid}"
        raise UserError("the signing key is not yours", where=str(path), why=why, fix=f"chown it, or set {VARIABLE}")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o177:
        why = f"its mode is {mode:04o}"
        raise UserError("the signing key is open to others", where=str(path), why=why, fix=f"chmod 600 '{path}'")


def _warn_if_tracked(path: Path) -> None:
    path = path.resolve()
    if not any((folder / ".git").exists() for folder in path.parents):
        return
    command = ["git", "-C", str(path.parent), "ls-files", "--error-unmatch", "--", path.name]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    try:
        tracked = subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    except OSError:  # no git, nothing to warn of
        return
    if tracked:
        warnings.warn(f"git tracks the signing key {path}: rotate it, and take it out of the history", stacklevel=4)


def _create(path: Path, key: Key) -> None:
    """Write a key file that was not there. Raises FileExistsError, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
        file.write(key.text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, key: Key) -> None:
    """Write a key file whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    _create(temporary, key)
    temporary.replace(path)
