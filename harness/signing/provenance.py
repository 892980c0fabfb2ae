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

from harness.errors import StorageError
from harness.signing import digests
from harness.signing.keys import Key

FORMAT_VERSION = 1
PAYLOAD_TYPE = "application/vnd.harness.fingerprint+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://harness.invalid/run/v1"  # a name, not an address: RFC 2606 keeps .invalid from ever resolving
KINDS = ("start", "checkpoint", "end")
MAX_ENVELOPE_BYTES = 16 * 1024**2
ENVELOPES = {f"{kind}.envelope.json" for kind in KINDS}
"""Files that no statement covers: they are statements themselves."""
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
    """Digest of the payload, known wherever there is one: it says nothing about who wrote it."""
    keyid: str = ""
    """The key that signed; empty if nobody did, or none of the keys at hand fits."""

    @property
    def word(self) -> str:
        """What its digests and scores may be called: signed, or only stated."""
        return "signed" if self.check.ok else "stated"


@dataclass
class Verification:
    """All checks of one folder, and the envelopes by kind. Checks of the caller's own may be added."""

    checks: list[Check]
    envelopes: dict[str, Envelope] = field(default_factory=dict)
    folder: Path | None = None
    """What was verified, where it is a folder."""

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
    found = digests.scan(folder, set(excluded), ENVELOPES)
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


def open_envelope(
    path: Path, keys: Sequence[Key], kind: str | None = None, *, sealed: str = "", unproved: bool = False
) -> Envelope:
    """Read one envelope, authenticate it, and only then parse what it says. Raises nothing; see `.check`.

    Args:
        path: the file.
        keys: any of them may have signed it.
        kind: start, checkpoint or end; None: as the file is called.
        sealed: the sha256 of the file, if a statement that was authenticated covers it: then no key is needed.
        unproved: also read what a key signed that is not here; as of one that is not signed, `.check` is not ok.
    """
    identity = ""
    try:
        content = _read(path)
        payload_type, payload, signatures = _parse_outer(content)
        identity = _attestation_id(payload)
        is_sealed = digests.same(hashlib.sha256(content).hexdigest(), sealed)
        signer, doubt = _authenticate(pae(payload_type, payload), signatures, keys)
        if doubt and signatures and not (is_sealed or unproved):
            raise _Refusal(None, doubt)
        if payload_type != PAYLOAD_TYPE:
            raise _Refusal(False, f"not a fingerprint: its type is {payload_type!r}")
        named = signatures[0][0] if signatures else None
        predicate, subjects = _parse_statement(payload, kind or path.name.removesuffix(".envelope.json"), named)
    except _Refusal as refusal:
        return Envelope(Check(path.name, refusal.ok, refusal.detail, refusal.code), attestation_id=identity)
    verdict: tuple[bool | None, str] = (None, doubt)
    if signer:
        verdict = True, f"signed with key {signer}"
    elif named and is_sealed:
        verdict = True, f"covered by a later statement; signed with {named}, which is not here"
    return Envelope(Check(path.name, *verdict), predicate, subjects, identity, signer)


def resign(path: Path, keys: Sequence[Key], key: Key, kind: str | None = None) -> bool:
    """Add a signature with `key` to an envelope that one of `keys` signed; the payload stays as it is, byte for byte.

    Returns:
        Whether it was added: it may have been there.

    Raises:
        StorageError: the envelope does not verify or is not signed, or it cannot be written.
    """
    envelope = open_envelope(path, keys, kind)
    if not envelope.check.ok:
        what = f"{path.name} cannot be signed again"
        raise StorageError(what, where=str(path.parent), why=envelope.check.detail, fix="only what verifies is signed")
    outer = digests.parse_json(_read(path))
    if any(digests.same(entry["keyid"], key.keyid) for entry in outer["signatures"]):
        return False
    mac = key.mac(pae(outer["payloadType"], digests.decode(outer["payload"])))
    outer["signatures"].append({"keyid": key.keyid, "sig": digests.encode(mac)})
    digests.write(path, digests.canonical(outer))
    return True


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


def _authenticate(message: bytes, signatures: list[tuple[str, bytes]], keys: Sequence[Key]) -> tuple[str, str]:
    """The id of the key that signed, or "" and why none of those at hand is known to have."""
    macs = {key.keyid: key.mac(message) for key in keys}
    signer = None
    for keyid, sig in signatures:
        fitting = next((known for known, mac in macs.items() if hmac.compare_digest(mac, sig)), None)
        if fitting is None and keyid in macs:
            raise _Refusal(False, f"bad MAC: the content is not what key {keyid} signed")
        if fitting is not None and not digests.same(fitting, keyid):
            raise _Refusal(False, f"wrong key: signed with key {fitting}, but says {keyid}")
        signer = signer or fitting
    if signer:
        return signer, ""
    named = ", ".join(keyid for keyid, _ in signatures)
    if not named:
        return "", "not signed: anyone could have written it"
    if not macs:
        return "", f"no key here: signed with {named}, which is needed to check it"
    return "", f"unknown key: signed with {named}, you have {', '.join(macs)}"


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


def _attestation_id(payload: bytes) -> str:
    return f"harness1:{hashlib.sha256(payload).hexdigest()}"
