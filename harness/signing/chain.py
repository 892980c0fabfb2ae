"""How the statements of a run hang together, and whether the files they cover are as they were signed.

    start.envelope.json <- chain/step-0000010.json <- chain/step-0000020.json <- end.envelope.json
                              ^- chain/step-0000015.json      abandoned: the run went on from step 10

Each statement names the one before it (`prev`) by the digest of its payload. `chain/` keeps a copy of the statement of
every checkpoint that was ever committed, so that the way from the end to the start can be walked when they are gone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import StorageError
from harness.signing import digests
from harness.signing.keys import Key
from harness.signing.provenance import ENVELOPES, KINDS, Check, Envelope, Verification, open_envelope

_SAME = ("runId", "specId", "resolvedSpecSha256", "data", "baseModel", "seeds")
_TIMES = ("finishedAt", "savedAt", "startedAt")


@dataclass(frozen=True)
class Link:
    """One statement of a run; `ok` as in `Check`."""

    name: str
    """Its file, relative to the run's folder."""
    kind: str
    step: int | None
    attempt: int | None
    time: str
    """As it says itself: no clock is checked."""
    key: str
    """The key that signed it; empty if nobody did, or a key that is not here."""
    ok: bool | None
    detail: str


def verify(folder: Path, keys: Sequence[Key]) -> Verification:
    """Check the statements of a folder, how they hang together, and the files they cover. Raises nothing.

    The folder is that of a run, or of one checkpoint. Statements that are not signed, or with a key that is not here,
    cannot be told to be ok, but what contradicts them is told. A folder that holds a start statement and no end belongs
    to a run that is not finished: it cannot be told to be ok either.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except (OSError, ValueError) as error:
        return Verification([Check(str(folder), None, f"cannot be read: {error}", 5)])
    present = [kind for kind in KINDS if f"{kind}.envelope.json" in names]
    if not present:
        return Verification([Check(str(folder), None, "no envelope: nothing was ever signed here")], folder=folder)
    envelopes = {kind: _open(folder / f"{kind}.envelope.json", keys) for kind in present}
    checks = [envelope.check for envelope in envelopes.values()]
    if present == ["checkpoint"]:
        checks += _check_place(folder, envelopes["checkpoint"], keys)
    else:
        checks += _check_links(envelopes, read_links(folder, envelopes.get("end"), keys))
    for kind, envelope in envelopes.items():
        if envelope.predicate is not None:
            complete = kind == present[-1] != "start"  # later files are no surprise to an earlier statement
            checks += _check_files(folder, f"{kind} files", envelope, envelope.predicate["coverage"], complete)
    if "start" in envelopes and "end" not in envelopes:
        checks.append(Check("end.envelope.json", None, "run not finished: there is no end statement"))
    return Verification(checks, envelopes, folder)


def links(folder: Path, keys: Sequence[Key]) -> list[Link]:
    """Every statement of a run's folder in the order of the chain, abandoned ones where they branch off."""
    own = {kind: _open(folder / f"{kind}.envelope.json", keys) for kind in ("start", "end")}
    own = {kind: envelope for kind, envelope in own.items() if (folder / f"{kind}.envelope.json").exists()}
    found = read_links(folder, own.get("end"), keys)
    odd = _problems(own, found)
    kept = _kept(own.get("end"), found)
    between = sorted(found, key=lambda name: (_number(found[name], "step") or 0, name not in kept, name))
    named = {"start.envelope.json": own.get("start"), **{name: found[name] for name in between}}
    named["end.envelope.json"] = own.get("end")
    shown = []
    for name, envelope in named.items():
        if envelope is not None:
            told = odd.get(name) or (envelope.check.ok, envelope.check.detail)
            abandoned = name in found and name not in kept and told[0] is not False
            detail = f"abandoned: the run went on from before it; {told[1]}" if abandoned else told[1]
            kind = "checkpoint" if name in found else name.partition(".")[0]
            shown.append(_link(name, kind, envelope, told[0], detail))
    return shown


def read_links(folder: Path, end: Envelope | None, keys: Sequence[Key]) -> dict[str, Envelope]:
    """The statements in `chain/`, by the name of their file; `end` vouches for those that it covers."""
    sealed = end.subjects if end is not None and end.check.ok else {}
    place = folder / "chain"
    try:
        names = sorted(f"chain/{path.name}" for path in place.glob("step-*.json")) if not place.is_symlink() else []
    except OSError:  # the check of the files says so
        return {}
    return {name: _open(folder / name, keys, "checkpoint", sealed=sealed.get(name, "")) for name in names}


_open = partial(open_envelope, unproved=True)


# The chain


_Told = tuple[bool | None, str]


def _check_links(envelopes: dict[str, Envelope], found: dict[str, Envelope]) -> list[Check]:
    start, end = envelopes.get("start"), envelopes.get("end")
    odd = _problems(envelopes, found)
    checks = [Check(name, *odd[name]) for name in found if name in odd]
    checks += [Check(name, e.check.ok, e.check.detail, e.check.code)
               for name, e in found.items() if name not in odd and not e.check.ok]  # fmt: skip
    if start is None:
        return [*checks, Check("chain", False, "the start statement is missing")]
    if end is None:
        return checks
    if "end.envelope.json" in odd:
        return [*checks, Check("chain", *odd["end.envelope.json"])]
    if start.predicate is None or end.predicate is None or odd:
        return checks  # told already
    kept = _kept(end, found)
    through = f" through {_count(len(kept), 'checkpoint')}" if kept else ""
    abandoned = f"; {_count(len(found) - len(kept), 'checkpoint')} abandoned" if len(found) > len(kept) else ""
    return [*checks, Check("chain", True, f"the end follows from the start{through}{abandoned}")]


def _check_place(folder: Path, envelope: Envelope, keys: Sequence[Key]) -> list[Check]:
    """A single checkpoint, and the run it lies in; one that was taken out of its run stands for itself."""
    place = folder.absolute()
    run = place.parent.parent
    if envelope.predicate is None or place.parent.name != "checkpoints" or not (run / "start.envelope.json").exists():
        return []
    own = {"start": _open(run / "start.envelope.json", keys)}
    name = f"chain/{place.name}.json"
    told = _problems(own, {**read_links(run, None, keys), name: envelope}).get(name)
    return [Check("chain", *(told or (True, "follows from the start of its run")))]


def _problems(envelopes: dict[str, Envelope], found: dict[str, Envelope]) -> dict[str, _Told]:
    """What is wrong with the place of a statement in the chain, by file; nothing for those that cannot be read."""
    start = envelopes.get("start")
    if start is None or start.predicate is None:
        return {}
    nodes = {**found, **({"end.envelope.json": envelopes["end"]} if "end" in envelopes else {})}
    known = {envelope.attestation_id: envelope.predicate for envelope in found.values() if envelope.predicate}
    known[start.attestation_id] = start.predicate
    unread = any(envelope.predicate is None and envelope.check.ok is None for envelope in found.values())
    odd: dict[str, _Told] = {}
    for name, envelope in nodes.items():
        if envelope.predicate is None:
            continue
        prev = envelope.predicate.get("prev")
        before = known.get(prev) if isinstance(prev, str) else None
        if problem := _foreign(envelope.predicate, start.predicate) or _misnamed(name, envelope.predicate):
            odd[name] = (False, problem)
        elif before is None:
            what = "the end statement" if name == "end.envelope.json" else "it"
            why = f"{what} does not follow from this start statement: the one before it"
            odd[name] = (None, f"{why} cannot be checked") if unread else (False, f"{why} is not here")
        elif problem := _disordered(name, before, envelope.predicate):
            odd[name] = (False, problem)
    return odd


def _foreign(claim: dict[str, Any], start: dict[str, Any]) -> str:
    for name in _SAME:
        before, now = start.get(name), claim.get(name)
        if before is not None and before != now:
            return f"{name} was {before!r} at the start and is {now!r} {_where(claim)}"
    return ""


def _misnamed(name: str, claim: dict[str, Any]) -> str:
    """A link under the name of another one: exchanged, or moved."""
    if name == "end.envelope.json":
        return ""
    match = re.fullmatch(r"chain/step-([0-9]{7,18})(?:-[0-9]{1,9})?\.json", name)
    if match and type(claim.get("step")) is int and claim["step"] == int(match[1]):
        return ""
    return f"it is the statement of step {claim.get('step')!r}: exchanged or renamed"


def _disordered(name: str, before: dict[str, Any], claim: dict[str, Any]) -> str:
    """Steps rise from statement to statement, attempts never fall."""
    for key in ("step", "attempt") if name != "end.envelope.json" else ("attempt",):
        earlier, later = before.get(key), claim.get(key)
        if type(earlier) is int and type(later) is int and (later < earlier or (key == "step" and later == earlier)):
            return f"{key} {later} cannot follow {key} {earlier}"
    return ""


def _where(claim: dict[str, Any]) -> str:
    return "at the end" if claim.get("kind") == "end" else f"at step {claim.get('step')!r}"


def _kept(end: Envelope | None, found: dict[str, Envelope]) -> list[str]:
    """The links from the end back to the start; of an unfinished run, from the newest one."""
    known = {envelope.attestation_id: name for name, envelope in found.items() if envelope.predicate}
    if end is None:
        newest = max(known.values(), default="", key=lambda n: [_number(found[n], k) or 0 for k in ("attempt", "step")])
        wanted: Any = found[newest].attestation_id if newest else ""
    else:
        wanted = (end.predicate or {}).get("prev")
    kept = []
    while isinstance(wanted, str) and wanted in known:
        kept.append(known.pop(wanted))
        wanted = (found[kept[-1]].predicate or {}).get("prev")
    return kept


def _link(name: str, kind: str, envelope: Envelope, ok: bool | None, detail: str) -> Link:
    claim = envelope.predicate or {}
    time = next((claim[key] for key in _TIMES if isinstance(claim.get(key), str)), "")
    step, attempt = _number(envelope, "step"), _number(envelope, "attempt")
    return Link(name, kind, step, attempt, digests.shown(time), envelope.keyid, ok, detail)


def _number(envelope: Envelope, key: str) -> int | None:
    value = (envelope.predicate or {}).get(key)
    return value if type(value) is int else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# Files


def _check_files(folder: Path, title: str, envelope: Envelope, coverage: dict[str, Any], complete: bool) -> list[Check]:
    """Compare the covered files with the disk; `complete`: what is sealed as a whole folder holds no other file."""
    try:
        found = digests.scan(folder, set(coverage["excluded"]), ENVELOPES)
    except StorageError as error:
        return [Check(title, None, str(error), 5)]
    subjects, word = envelope.subjects, envelope.word
    checks = [check for name, digest in subjects.items() if (check := _check_file(folder, name, digest, found, word))]
    if complete and coverage.get("wholeFolder") is not False:
        extra = sorted(found.keys() - subjects.keys())
        checks += [Check(digests.shown(name), False, f"extra: not among the {word} files") for name in extra]
    return checks or [Check(title, True, f"{len(subjects)} as {word}")]


def _check_file(folder: Path, name: str, digest: str, found: dict[str, bool], word: str) -> Check | None:
    """What is wrong with one covered file; None if nothing is."""
    if not found.get(name):
        return Check(digests.shown(name), False, "not a regular file any more" if name in found else "missing")
    try:
        now = digests.file_digest(folder / name)
    except StorageError as error:
        return Check(digests.shown(name), None, str(error), 5)
    detail = f"changed: sha256 {digest[:12]}... {word}, {now[:12]}... found"
    return None if digests.same(now, digest) else Check(digests.shown(name), False, detail)
