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

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import digests
from harness.errors import StorageError
from harness.keys import Key

FORMAT_VERSION = 1
PAYLOAD_TYPE = "application/vnd.harness.fingerprint+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://harness.invalid/run/v1"  # a name, not an address: RFC 2606 keeps .invalid from ever resolving
KINDS = ("start", "checkpoint", "end")
MAX_ENVELOPE_BYTES = 16 * 1024**2
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


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed, the type among them. Lengths are in bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


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
    found = digests.scan(folder, set(excluded), _ENVELOPES)
    names = sorted(found if subjects is None else subjects)
    for name in names:
        if not found.get(name) or not digests.is_safe(name):
            why = "missing, excluded, not a regular file, or its name is unsafe"
            raise StorageError(f"{name!r} cannot be sealed", where=str(folder), why=why)
    keyid = key.keyid if key else None
    coverage = {"wholeFolder": subjects is None, "excluded": excluded}
    own = {"formatVersion": FORMAT_VERSION, "keyId": keyid, "kind": kind, "coverage": coverage}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digests.file_digest(folder / name)}} for name in names],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**predicate, **own},
    }
    payload = digests.canonical(statement)
    signatures = [{"keyid": keyid, "sig": digests.encode(key.mac(pae(PAYLOAD_TYPE, payload)))}] if key else []
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": digests.encode(payload), "signatures": signatures}
    digests.write(folder / f"{kind}.envelope.json", digests.canonical(envelope))
    return _attestation_id(payload)


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


def _read(path: Path) -> bytes:
    try:
        return digests.read(path, MAX_ENVELOPE_BYTES)
    except OSError as error:
        raise _Refusal(None, f"cannot be read: {error}", 5) from error
    except ValueError as error:
        raise _Refusal(False, str(error)) from error


def _parse_outer(content: bytes) -> tuple[str, bytes, list[tuple[str, bytes]]]:
    """Payload type, payload, and (keyid, MAC) of each signature."""
    try:
        match digests.parse_json(content):
            case {"payloadType": str(kind), "payload": str(payload), "signatures": list(listed), **rest} if not rest:
                return kind, digests.decode(payload), [_parse_signature(entry) for entry in listed]
    except (ValueError, RecursionError) as error:
        raise _Refusal(False, f"malformed envelope: {error}") from error
    raise _Refusal(False, "malformed envelope: not the fields of DSSE")


def _parse_signature(entry: object) -> tuple[str, bytes]:
    match entry:
        case {"keyid": str(keyid), "sig": str(sig), **rest} if not rest and re.fullmatch("[0-9a-f]{16}", keyid):
            return keyid, digests.decode(sig)
    raise ValueError("not a signature")


def _authenticate(message: bytes, signatures: list[tuple[str, bytes]], keys: Sequence[Key]) -> str | None:
    """The id of the key that signed; None for an unsigned envelope."""
    macs = {key.keyid: key.mac(message) for key in keys}
    signer = None
    for keyid, sig in signatures:
        fitting = next((known for known, mac in macs.items() if hmac.compare_digest(mac, sig)), None)
        if fitting is None and keyid in macs:
            raise _Refusal(False, f"bad MAC: the content is not what key {keyid} signed")
        if fitting is not None and not digests.same(fitting, keyid):
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
        statement = digests.parse_json(payload)
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
    if not (keyid is named is None or digests.same(keyid, named)):
        raise _Refusal(False, f"wrong key: the statement names {keyid!r}, its first signature {named or 'was removed'}")
    if predicate.get("kind") != kind:
        raise _Refusal(False, f"a statement of kind {predicate.get('kind')!r} under the name of {kind!r}")
    return predicate, subjects


def _parse_subjects(listed: list[dict[str, Any]]) -> dict[str, str]:
    subjects: dict[str, str] = {}
    for entry in listed:
        name, digest = entry["name"], entry["digest"]["sha256"]
        if not digests.is_safe(name) or name in subjects:
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
    if not digests.same(end.predicate.get("prev"), start.attestation_id):
        return [Check("chain", False, "the end statement does not follow from this start statement")]
    for name in ("runId", "specId", "resolvedSpecSha256"):
        before, now = start.predicate.get(name), end.predicate.get(name)
        if before is not None and not digests.same(before, now):
            return [Check("chain", False, f"{name} was {before!r} at the start and is {now!r} at the end")]
    return [Check("chain", True, "the end follows from the start")]


def _check_files(
    folder: Path, title: str, subjects: dict[str, str], coverage: dict[str, Any], complete: bool
) -> list[Check]:
    """Compare the covered files with the disk; `complete`: what is sealed as a whole folder holds no other file."""
    try:
        found = digests.scan(folder, set(coverage["excluded"]), _ENVELOPES)
    except StorageError as error:
        return [Check(title, None, str(error), 5)]
    checks = [check for name, digest in subjects.items() if (check := _check_file(folder, name, digest, found))]
    if complete and coverage.get("wholeFolder") is not False:
        extra = sorted(found.keys() - subjects.keys())
        checks += [Check(digests.shown(name), False, "extra: added after signing") for name in extra]
    return checks or [Check(title, True, f"{len(subjects)} as signed")]


def _check_file(folder: Path, name: str, digest: str, found: dict[str, bool]) -> Check | None:
    """What is wrong with one covered file; None if nothing is."""
    if not found.get(name):
        return Check(digests.shown(name), False, "not a regular file any more" if name in found else "missing")
    try:
        now = digests.file_digest(folder / name)
    except StorageError as error:
        return Check(digests.shown(name), None, str(error), 5)
    detail = f"changed: sha256 {digest[:12]}... signed, {now[:12]}... found"
    return None if digests.same(now, digest) else Check(digests.shown(name), False, detail)


def _attestation_id(payload: bytes) -> str:
    return f"harness1:{hashlib.sha256(payload).hexdigest()}"
