"""Fingerprints: what a run was made from and what came out of it, signed so that a later edit shows.

`<kind>.envelope.json` (start, checkpoint or end) is a DSSE envelope around an in-toto statement in canonical JSON:

    {"payloadType": "application/vnd.harness.fingerprint+json",
     "payload": base64({_type, subject: [{name, digest: {sha256}}], predicateType, predicate}),
     "signatures": [{"keyid", "sig": base64(HMAC-SHA256(key, PAE(payloadType, payload)))}]}    empty: not signed

Shown by it: a file, score or spec was edited after signing by someone without the key. Not shown: which holder of the
key signed, that what was signed is true, the time, or that no run was left out.
Sources: DSSE v1 (secure-systems-lab/dsse), in-toto Statement v1, RFC 8785 (canonical JSON), RFC 2104 (HMAC).
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rfc8785

from harness.errors import StorageError, UserError
from harness.keys import Key

FORMAT_VERSION = 1
PAYLOAD_TYPE = "application/vnd.harness.fingerprint+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://harness.invalid/run/v1"  # a name, not an address: RFC 2606 keeps .invalid from ever resolving
KINDS = ("start", "checkpoint", "end")
MAX_ENVELOPE_BYTES = 16 * 1024**2
MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_ENVELOPES = {f"{kind}.envelope.json" for kind in KINDS}
_SEVERITY = (0, 3, 4, 5, 1)  # exit codes, the worst last


@dataclass(frozen=True)
class Check:
    """One line of a verification: `ok` is True, False (tampered) or None (cannot tell); `code` refines a None."""

    name: str
    ok: bool | None
    detail: str = ""
    code: int = 3

    @property
    def exit_code(self) -> int:
        """0 ok, 1 tampered, 3 cannot tell, 4 newer format, 5 I/O."""
        return self.code if self.ok is None else int(not self.ok)


@dataclass(frozen=True)
class Envelope:
    """What one envelope file says. `predicate` is None where its content must not be used."""

    check: Check
    predicate: dict[str, Any] | None = None
    subjects: dict[str, str] = field(default_factory=dict)
    attestation_id: str = ""


@dataclass
class Verification:
    """All checks of one folder, and the envelopes by kind. Checks of the caller's own may be added."""

    checks: list[Check]
    envelopes: dict[str, Envelope] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The worst of the checks; 1 before 5, 4, 3 and 0."""
        return max((check.exit_code for check in self.checks), key=_SEVERITY.index, default=3)

    def predicate(self, kind: str) -> dict[str, Any] | None:
        """What the start, checkpoint or end statement claims, or None. Trust it as far as `exit_code` goes."""
        envelope = self.envelopes.get(kind)
        return envelope.predicate if envelope else None


class _Refusal(Exception):
    def __init__(self, ok: bool | None, detail: str, code: int = 3) -> None:
        self.ok, self.detail, self.code = ok, detail, code


# Digests


def identity(value: Any) -> str:
    """`"sha256:..."` of a JSON value in canonical form (RFC 8785), strings NFC-normalised: one id, however it is spelt.

    Raises:
        UserError: NaN, infinity, a whole number beyond 2**53, a key that is no string, or keys alike once normalised.
    """
    return f"sha256:{hashlib.sha256(_canonical(_normalised(value))).hexdigest()}"


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


def machine_id_digest() -> str | None:
    """HMAC-SHA256(machine id, "harness-host") in hexadecimal, never the id itself; None where the system has none."""
    for path in map(Path, MACHINE_ID_FILES):
        content = path.read_text(errors="replace").strip() if path.is_file() else ""
        if re.fullmatch(r"[0-9a-f]{32}", content):
            return hmac.digest(content.encode(), b"harness-host", "sha256").hex()
    return None


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed, the type among them. Lengths are in bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


# Sealing


def seal(
    folder: Path,
    kind: str,
    predicate: dict[str, Any],
    key: Key | None,
    *,
    exclude: Iterable[str] = (),
    subjects: Iterable[str] | None = None,
) -> str:
    """Write `<folder>/<kind>.envelope.json` and return its attestation id, the `prev` or `parents` of a later one.

    The statement covers every file below the folder but envelopes and what `exclude` names (files, or folders with all
    in them), or only `subjects`. No file it covers may change afterwards: name the settled ones in a start statement.
    Without a key the envelope is written unsigned.

    Raises:
        UserError: the predicate is not JSON that RFC 8785 can write (NaN, integers beyond 2**53).
        StorageError: a link, a pipe, an unsafe name, a file that is missing or changing; nothing is written then.
    """
    assert kind in KINDS, kind
    excluded = sorted({name.rstrip("/") for name in exclude})
    found = _scan(folder, set(excluded))
    names = sorted(found if subjects is None else subjects)
    for name in names:
        if not found.get(name) or not _is_safe(name):
            why = "missing, excluded, not a regular file, or its name is unsafe"
            raise StorageError(f"{name!r} cannot be sealed", where=str(folder), why=why)
    keyid = key.keyid if key else None
    coverage = {"wholeFolder": subjects is None, "excluded": excluded}
    own = {"formatVersion": FORMAT_VERSION, "keyId": keyid, "kind": kind, "coverage": coverage}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": file_digest(folder / name)}} for name in names],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**predicate, **own},
    }
    payload = _canonical(statement)
    signatures = [{"keyid": keyid, "sig": _encode(key.mac(pae(PAYLOAD_TYPE, payload)))}] if key else []
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": _encode(payload), "signatures": signatures}
    _write(folder / f"{kind}.envelope.json", _canonical(envelope))
    return _attestation_id(payload)


# Verifying


def verify(folder: Path, keys: Sequence[Key]) -> Verification:
    """Check the envelopes of a folder, how they hang together, and the files they cover. Raises nothing.

    A folder that holds a start statement only belongs to a run that is not finished: it cannot be told to be ok.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        return Verification([Check(str(folder), None, f"cannot be read: {error}", 5)])
    present = [kind for kind in KINDS if f"{kind}.envelope.json" in names]
    if not present:
        return Verification([Check(str(folder), None, "no envelope: nothing was ever signed here")])
    envelopes = {kind: open_envelope(folder / f"{kind}.envelope.json", keys) for kind in present}
    checks = [envelope.check for envelope in envelopes.values()]
    if "end" in envelopes:
        checks += _check_chain(envelopes.get("start"), envelopes["end"])
    for kind, envelope in envelopes.items():
        if envelope.predicate is not None:
            complete = kind == present[-1] != "start"  # later files are no surprise to an earlier statement
            checks += _check_files(folder, f"{kind} files", envelope.subjects, envelope.predicate["coverage"], complete)
    if "start" in envelopes and "end" not in envelopes:
        checks.append(Check("end.envelope.json", None, "run not finished: there is no end statement"))
    return Verification(checks, envelopes)


def open_envelope(path: Path, keys: Sequence[Key]) -> Envelope:
    """Read one envelope, authenticate it, and only then parse what it says. Raises nothing; see `.check`."""
    try:
        payload_type, payload, signatures = _parse_outer(_read(path))
        signer = _authenticate(pae(payload_type, payload), signatures, keys)
        if payload_type != PAYLOAD_TYPE:
            raise _Refusal(False, f"not a fingerprint: its type is {payload_type!r}")
        named = signatures[0][0] if signatures else None
        predicate, subjects = _parse_statement(payload, path.name.removesuffix(".envelope.json"), named)
    except _Refusal as refusal:
        return Envelope(Check(path.name, refusal.ok, refusal.detail, refusal.code))
    verdict = (True, f"signed with key {signer}") if signer else (None, "not signed: anyone could have written it")
    return Envelope(Check(path.name, *verdict), predicate, subjects, _attestation_id(payload))


def compare_metrics(signed: dict[str, float], found: dict[str, float]) -> list[Check]:
    """A failed check for each score changed, removed, or (`test/...` only) added after signing; else one that passed.

    Scores of other splits may be added: a run can be evaluated further without touching what it reported.
    """
    checks = []
    for name in sorted(signed.keys() | {name for name in found if name.startswith("test/")}):
        before, now = signed.get(name), found.get(name)
        if before != now:
            what = "removed" if now is None else "added" if before is None else "changed"
            checks.append(Check(_shown(name), False, f"{what}: signed {before!r}, found {now!r}"))
    return checks or [Check("metrics", True, f"{len(signed)} as signed")]


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _Refusal(False, "not a regular file")
        with open(path, "rb", opener=_open_itself) as file:
            content = file.read(MAX_ENVELOPE_BYTES + 1)
    except OSError as error:
        raise _Refusal(None, f"cannot be read: {error}", 5) from error
    if len(content) > MAX_ENVELOPE_BYTES:
        raise _Refusal(False, f"larger than {MAX_ENVELOPE_BYTES} bytes")
    return content


def _parse_outer(content: bytes) -> tuple[str, bytes, list[tuple[str, bytes]]]:
    """Payload type, payload, and (keyid, MAC) of each signature."""
    try:
        match _parse_json(content):
            case {"payloadType": str(kind), "payload": str(payload), "signatures": list(listed), **rest} if not rest:
                return kind, _decode(payload), [_parse_signature(entry) for entry in listed]
    except (ValueError, RecursionError) as error:
        raise _Refusal(False, f"malformed envelope: {error}") from error
    raise _Refusal(False, "malformed envelope: not the fields of DSSE")


def _parse_signature(entry: object) -> tuple[str, bytes]:
    match entry:
        case {"keyid": str(keyid), "sig": str(sig), **rest} if not rest and re.fullmatch("[0-9a-f]{16}", keyid):
            return keyid, _decode(sig)
    raise ValueError("not a signature")


def _authenticate(message: bytes, signatures: list[tuple[str, bytes]], keys: Sequence[Key]) -> str | None:
    """The id of the key that signed; None for an unsigned envelope."""
    macs = {key.keyid: key.mac(message) for key in keys}
    signer = None
    for keyid, sig in signatures:
        fitting = next((known for known, mac in macs.items() if hmac.compare_digest(mac, sig)), None)
        if fitting is None and keyid in macs:
            raise _Refusal(False, f"bad MAC: the content is not what key {keyid} signed")
        if fitting is not None and not _same(fitting, keyid):
            raise _Refusal(False, f"wrong key: signed with key {fitting}, but says {keyid}")
        signer = signer or fitting
    if signatures and signer is None:
        named = ", ".join(keyid for keyid, _ in signatures)
        known = f"unknown key: signed with {named}, you have {', '.join(macs)}"
        raise _Refusal(None, known if macs else f"no key here: signed with {named}, which is needed to check it")
    return signer


def _parse_statement(payload: bytes, kind: str, named: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The predicate, and file name -> sha256. `named` is the key id of the first signature, outside the MAC."""
    try:
        statement = _parse_json(payload)
        predicate = statement["predicate"]
        version = predicate["formatVersion"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format version {version!r}")
        if version > FORMAT_VERSION:
            raise _Refusal(None, f"format {version} is newer than {FORMAT_VERSION}: update harness", 4)
        subjects = _parse_subjects(statement["subject"])
        types = (statement["_type"], statement["predicateType"])
        excluded, keyid = predicate["coverage"]["excluded"], predicate["keyId"]
        if types != (STATEMENT_TYPE, PREDICATE_TYPE) or not all(isinstance(name, str) for name in excluded):
            raise ValueError("not a statement about a run")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Refusal(False, f"malformed statement: {error}") from error
    if not (keyid is named is None or _same(keyid, named)):
        raise _Refusal(False, f"wrong key: the statement names {keyid!r}, its first signature {named or 'was removed'}")
    if predicate.get("kind") != kind:
        raise _Refusal(False, f"a statement of kind {predicate.get('kind')!r} under the name of {kind!r}")
    return predicate, subjects


def _parse_subjects(listed: list[dict[str, Any]]) -> dict[str, str]:
    subjects: dict[str, str] = {}
    for entry in listed:
        name, digest = entry["name"], entry["digest"]["sha256"]
        if not _is_safe(name) or name in subjects:
            raise ValueError(f"unsafe or repeated name {name!r}")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{name!r} has no sha256")
        subjects[name] = digest
    return subjects


def _check_chain(start: Envelope | None, end: Envelope) -> list[Check]:
    if start is None:
        return [Check("chain", False, "the start statement is missing")]
    if start.predicate is None or end.predicate is None:
        return []  # told already, one line above
    if not _same(end.predicate.get("prev"), start.attestation_id):
        return [Check("chain", False, "the end statement does not follow from this start statement")]
    for name in ("runId", "specId", "resolvedSpecSha256"):
        before, now = start.predicate.get(name), end.predicate.get(name)
        if before is not None and not _same(before, now):
            return [Check("chain", False, f"{name} was {before!r} at the start and is {now!r} at the end")]
    return [Check("chain", True, "the end follows from the start")]


def _check_files(
    folder: Path, title: str, subjects: dict[str, str], coverage: dict[str, Any], complete: bool
) -> list[Check]:
    """Compare the covered files with the disk; `complete`: what is sealed as a whole folder holds no other file."""
    try:
        found = _scan(folder, set(coverage["excluded"]))
    except StorageError as error:
        return [Check(title, None, str(error), 5)]
    checks = [check for name, digest in subjects.items() if (check := _check_file(folder, name, digest, found))]
    if complete and coverage.get("wholeFolder") is not False:
        extra = sorted(found.keys() - subjects.keys())
        checks += [Check(_shown(name), False, "extra: added after signing") for name in extra]
    return checks or [Check(title, True, f"{len(subjects)} as signed")]


def _check_file(folder: Path, name: str, digest: str, found: dict[str, bool]) -> Check | None:
    """What is wrong with one covered file; None if nothing is."""
    if not found.get(name):
        return Check(_shown(name), False, "not a regular file any more" if name in found else "missing")
    try:
        now = file_digest(folder / name)
    except StorageError as error:
        return Check(_shown(name), None, str(error), 5)
    detail = f"changed: sha256 {digest[:12]}... signed, {now[:12]}... found"
    return None if _same(now, digest) else Check(_shown(name), False, detail)


# Helpers of both


def _open_itself(path: str, flags: int) -> int:
    """Open a regular file and nothing else: no link is followed, no pipe is waited for. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)


def _scan(folder: Path, excluded: set[str]) -> dict[str, bool]:
    """Relative POSIX name -> is it a regular file, of all below the folder but folders and envelopes."""

    def fail(error: OSError) -> None:
        raise error

    found = {}
    try:
        for parent, folders, files in os.walk(folder, onerror=fail):
            for path in (Path(parent, name) for name in [*folders, *files]):
                mode, name = path.lstat().st_mode, path.relative_to(folder)
                is_envelope = name.name in _ENVELOPES and stat.S_ISREG(mode)
                is_excluded = any(part.as_posix() in excluded for part in (name, *name.parents))
                if not (stat.S_ISDIR(mode) or is_envelope or is_excluded):
                    found[name.as_posix()] = stat.S_ISREG(mode)
    except OSError as error:
        raise StorageError(f"cannot list {folder}", why=str(error)) from error
    return found


def _is_safe(name: str) -> bool:
    """Whether a name is relative POSIX and UTF-8, without `.` or `..` as a part, backslash or control character."""
    parts_ok = not {"", ".", ".."} & set(name.split("/"))
    return parts_ok and not re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", name)


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)  # a name must not steer the terminal it is printed on


def _same(left: object, right: object) -> bool:
    """Whether two strings are equal, in a time that tells nothing about where they differ."""
    if not (isinstance(left, str) and isinstance(right, str)):
        return False
    return hmac.compare_digest(left.encode(errors="surrogatepass"), right.encode(errors="surrogatepass"))


def _version(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _attestation_id(payload: bytes) -> str:
    return f"harness1:{hashlib.sha256(payload).hexdigest()}"


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decode(text: str) -> bytes:
    """Strict base64: the one spelling of these bytes. Raises ValueError."""
    content = base64.b64decode(text, validate=True)
    if not _same(_encode(content), text):
        raise ValueError("base64 with stray bits")
    return content


def _parse_json(content: bytes) -> Any:
    """UTF-8 JSON without repeated keys, NaN and infinity. Raises ValueError.

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


def _canonical(value: Any) -> bytes:
    try:
        return rfc8785.dumps(value)
    except ValueError as error:
        fix = "leave out NaN and infinity, write whole numbers beyond 2**53 as strings, use plain types"
        raise UserError("cannot be written as canonical JSON", why=str(error), fix=fix) from error


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, dict):
        result = {_normalised(name): _normalised(entry) for name, entry in value.items()}
        if len(result) < len(value):
            raise UserError("two keys are one after Unicode normalisation", where=repr(sorted(result)))
        return result
    return [_normalised(entry) for entry in value] if isinstance(value, list | tuple) else value


def _write(path: Path, content: bytes) -> None:
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
