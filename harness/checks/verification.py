"""Verify a run: its folder against its statements, the scores MLflow shows and the ledger against the signed ones."""

from __future__ import annotations

import difflib
import glob
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import storage
from harness.errors import StorageError, UserError
from harness.signing import chain, digests, keys, ledger, provenance
from harness.signing.provenance import Check, Verification
from harness.storage import PROJECT
from harness.tracking import stores
from harness.tracking.mlflow_store import FoundRun

_SENTENCES = {
    0: "verified: nothing was edited since it was signed",
    1: "TAMPERED: what is marked NO is not as it was signed",
    3: "cannot tell: what is marked ?? is not signed, not finished, or cannot be checked here",
    4: "cannot tell: signed by a newer version of the harness",
    5: "cannot tell: what is marked ?? could not be read",
}
_OF_LEDGER = {
    0: "nothing that was entered is missing or exchanged; what the runs hold was not checked: harness verify <run>",
    1: "TAMPERED: what is marked NO is not as it was entered",
    3: "cannot tell: what is marked ?? is gone, is not signed, or cannot be checked here",
}


@dataclass
class Verified(Verification):
    """The verification of a run, and where else it is known."""

    output: Path = PROJECT
    """The folder of runs: its database, its ledger."""
    mlflow_id: str = ""


def sentence(exit_code: int, *, of_ledger: bool = False) -> str:
    """The verdict in words."""
    return (_SENTENCES | _OF_LEDGER if of_ledger else _SENTENCES)[exit_code]


def verify_runs(run: str, output: Path) -> list[Verified]:
    """Verify a run as `verify_run` does; of the parent of replicates, which are signed one by one, each of them."""
    verdict = verify_run(run, output)
    folder, parent = verdict.folder, re.fullmatch(r"(.*)-x([0-9]+)-([0-9a-f]{4})", Path(verdict.folder or "").name)
    if folder is None or parent is None or verdict.envelopes or not (folder / "spec.yaml").is_file():
        return [verdict]
    begun, number, of_all = parent.groups()
    names = sorted(path.name for path in folder.parent.glob(f"{glob.escape(begun)}-s*-{of_all}"))
    place = folder.parent if _is_dir(Path(run)) else Path()
    is_whole = len(names) == int(number)
    verdict.checks = [Check("replicates", is_whole or None, f"{len(names)} of {number} have their folder here")]
    return [verdict, *(verify_run(str(place / name), output) for name in names)]


def verify_run(run: str, output: Path) -> Verified:
    """Verify a run by name, MLflow id or folder, or the folder of one checkpoint; `output` is the folder of runs.

    Where MLflow knows the run, its scores are compared with the signed ones. A folder may have been moved or renamed:
    its statements say which run it holds.

    Raises:
        UserError: there is no such run, or a signing key cannot be used.
    """
    output = _outputs(output)
    is_folder = bool(run) and _is_dir(Path(run))
    if is_folder:
        output = _home(Path(run)) or output  # the database that lies beside the folder's runs
        verdict = chain.verify(Path(run), keys.load_keyring())
        asked = (verdict.predicate("end") or {}).get("runId")
        found, problem = _find(asked, output) if isinstance(asked, str) else (None, None)
    else:
        found, unread = _find(run, output)
        verdict = chain.verify(_folder(run, output, found, unread), keys.load_keyring())
        asked = found.name if found else run
        why = "MLflow does not know this run; set MLFLOW_TRACKING_URI if it was tracked elsewhere"
        problem = unread or Check("scores in MLflow", None, why, 5)
    end = verdict.predicate("end")
    if end is not None:
        verdict.checks.append(_check_name(end.get("runId"), asked))
        if found is not None:
            verdict.checks += _check_scores(end.get("metrics"), found, verdict.envelopes["end"].word)
        elif is_folder and not problem:
            why = "MLflow does not know this run here, so that no scores there were compared"
            verdict.checks.append(Check("folder alone", True, why))
        elif problem:
            verdict.checks.append(problem)
    verdict.checks += _check_entries(verdict, output)
    return Verified(**vars(verdict), output=output, mlflow_id=found.run_id if found else "")


def links(verdict: Verification) -> list[chain.Link]:
    """Every statement of a verified run, from the start to the end."""
    return chain.links(verdict.folder, keys.load_keyring()) if verdict.folder else []


def verify_ledger(output: Path, head: str = "") -> Verification:
    """Check the ledger of a folder of runs, and that every run it names is there; `head` is one that was kept.

    Of a run, its statements alone are looked at: they have to be those that were entered, and signed.

    Raises:
        UserError: there is no ledger.
        StorageError: it cannot be read.
    """
    output = _outputs(output)
    found = ledger.check(output)
    if found is None:
        raise UserError("there is no ledger", where=str(output / ledger.NAME), fix="name the folder of runs: --output")
    checks = [Check("ledger", False, problem) for problem in found.problems]
    last = f"{len(found.entries)} entries in order; head {found.head}"
    checks = checks or [Check("ledger", True, last)]
    if head:
        kept = any(digests.same(head, one) for one in found.heads)
        detail = "is still part of it" if kept else "is not part of it: what came before it was rewritten or cut off"
        checks.append(Check("head", kept, f"{digests.shown(head)} {detail}"))
    runs: dict[str, dict[str, str]] = {}
    for entry in found.entries:
        runs.setdefault(entry.run, {})[entry.kind] = entry.attestation
    keyring = keys.load_keyring()
    for run, entered in runs.items():
        checks += _check_entered(output / "runs", run, entered, keyring)
    return Verification(checks)


def resign_run(run: str, output: Path) -> tuple[keys.Key, int]:
    """Add a signature with the active key to every statement of a run, found as `verify_run` finds it.

    What the end statement covers stays as it is: the copies in `chain/` of a finished run need no second signature.

    Returns:
        The key, and how many signatures were added.

    Raises:
        UserError: there is no such run, or no signing key.
        StorageError: a statement does not verify or is not signed, or it cannot be written.
    """
    key, keyring = keys.load_key(), keys.load_keyring()
    if key is None:
        raise UserError("there is no signing key", fix="make one with `harness keygen`")
    output = _outputs(output)
    folder = Path(run) if _is_dir(Path(run)) else _folder(run, output, *_find(run, output))
    paths = [(path, kind) for kind in provenance.KINDS if (path := folder / f"{kind}.envelope.json").exists()]
    if not paths:
        raise UserError("there is no statement in this folder", where=digests.shown(str(folder)))
    if "end" not in [kind for _, kind in paths]:
        checkpoints = (folder / "checkpoints").glob("step-*/checkpoint.envelope.json")
        paths += [(path, "checkpoint") for path in sorted([*(folder / "chain").glob("step-*.json"), *checkpoints])]
    return key, sum(provenance.resign(path, keyring, key, kind) for path, kind in paths)


def compare_scores(signed: dict[str, float], found: dict[str, float], word: str = "signed") -> list[Check]:
    """A failed check for each score changed, removed, or (`test/...` only) added after signing; else one that passed.

    Scores of other splits may be added: a run can be evaluated further without touching what it reported. `word`:
    "stated" where nobody is known to have signed.
    """
    checks = []
    for name in sorted(signed.keys() | {name for name in found if name.startswith("test/")}):
        before, now = signed.get(name), found.get(name)
        if before != now:
            what = "removed from" if now is None else "added to" if before is None else "changed in"
            values = f"{word} {'nothing' if before is None else before}, found {'nothing' if now is None else now}"
            checks.append(Check(digests.shown(name), False, f"{what} MLflow: {values}"))
    return checks or [Check("scores in MLflow", True, f"{len(signed)} as {word}")]


def _find(run: str, output: Path) -> tuple[FoundRun | None, Check | None]:
    """The MLflow run, and why it cannot be told: the store cannot be read, or several have this name."""
    try:
        return stores.find_run(None, output, run), None
    except (StorageError, UserError) as error:
        return None, Check("scores in MLflow", None, str(error), 5 if isinstance(error, StorageError) else 3)


def _outputs(output: Path) -> Path:
    """The folder of runs, there or not. Raises UserError for a name that no folder can have."""
    place = PROJECT / output
    try:
        with suppress(FileNotFoundError):
            place.lstat()
    except (OSError, ValueError) as error:
        why = digests.shown(str(error))
        raise UserError("this cannot be a folder of runs", where="--output", why=why) from error
    return place


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL character
        return False


def _home(folder: Path) -> Path | None:
    """The folder of runs in which this run's folder lies, or that of one of its checkpoints."""
    place = folder.resolve()
    if place.parent.name == "checkpoints":
        place = place.parent.parent
    return place.parent.parent if place.parent.name == "runs" else None


def _within(runs: Path, name: str) -> Path | None:
    """The folder of this name in the folder of runs; None for a name that leads elsewhere."""
    try:
        return runs / storage.safe_name(name)
    except StorageError:
        return None


def _folder(run: str, output: Path, found: FoundRun | None, unread: Check | None) -> Path:
    runs = output / "runs"
    known = [Path(found.tags["folder"])] if found and "folder" in found.tags else []
    named = _within(runs, found.name if found else run)
    places = [*([named] if named else []), *known]  # here first: a copied database names the folders it was copied from
    for place in places:
        if _is_dir(place):
            return place
    if found:
        fix = "if it was moved: harness verify <its folder>"
        where = str(places[0]) if places else str(runs)
        raise UserError(f"the folder of run {_quoted(found.name)} is not there", where=where, fix=fix)
    names = [path.name for path in runs.iterdir() if path.is_dir()] if _is_dir(runs) else []
    near, why = difflib.get_close_matches(run, names, n=1), unread.detail if unread else ""
    fix = f"did you mean '{near[0]}'?" if near else "give the run's name, its MLflow id, or its folder"
    raise UserError(f"no run is called {_quoted(run)}", where=digests.shown(str(runs)), why=why, fix=fix)


def _quoted(name: str) -> str:
    return f"'{name}'" if name.isprintable() else ascii(name)


def _check_name(signed: object, asked: object) -> Check:
    """Whether the statements are about the run that was asked for, and not those of another one put in its place."""
    if not isinstance(signed, str):
        return Check("run", None, "the statements do not say which run they are about")
    if not digests.same(signed, asked):
        return Check("run", None, f"the statements are about {signed!r}, not {asked!r}: renamed, copied, or exchanged")
    return Check("run", True, f"the statements are about {signed!r}")


def _check_entries(verdict: Verification, output: Path) -> list[Check]:
    """Whether the statements are in the ledger; nothing where there are none to be entered."""
    own = {kind: e for kind, e in verdict.envelopes.items() if kind != "checkpoint" and e.predicate is not None}
    if not own:
        return []
    try:
        found = ledger.check(output)
    except StorageError as error:
        return [Check("ledger", None, str(error), 5)]
    if found is None:
        return [Check("ledger", True, "there is none here: it cannot be shown that no run was left out")]
    if found.problems:
        return [Check("ledger", False, problem) for problem in found.problems]
    entered = {entry.attestation for entry in found.entries}
    absent = [kind for kind, envelope in own.items() if envelope.attestation_id not in entered]
    if not absent:
        return [Check("ledger", True, f"{' and '.join(own)} entered; {len(found.entries)} entries in order")]
    began = [(envelope.predicate or {}).get("startedAt") for envelope in own.values()]
    if found.entries and all(isinstance(time, str) and time < found.entries[0].time for time in began):
        return [Check("ledger", True, "the run is older than the ledger")]
    if verdict.folder is None or _home(verdict.folder) != output.resolve():
        return [Check("ledger", True, "this folder lies elsewhere: it is not one of those that are entered here")]
    return [
        Check("ledger", None, f"the {' and the '.join(absent)} statement is not in it: copied here, or taken out of it")
    ]


def _check_entered(runs: Path, run: str, entered: dict[str, str], keyring: list[keys.Key]) -> list[Check]:
    """Whether the folder of a run holds the statements that the ledger names, and they are signed."""
    name, folder = digests.shown(run), _within(runs, run)
    if folder is None:
        return [Check(name, False, "no run can have this name")]
    if not _is_dir(folder):
        return [Check(name, None, f"entered ({' and '.join(entered)}), but its folder is gone")]
    told: dict[Check, list[str]] = {}
    for kind, attestation in entered.items():
        shown = digests.shown(kind)
        found = provenance.open_envelope(folder / f"{shown}.envelope.json", keyring)
        if not digests.same(found.attestation_id, attestation):
            what = "not the one that was entered" if found.attestation_id else "gone"
            return [Check(name, False, f"its {shown} statement is {what}")]
        told.setdefault(replace(found.check, name=name), []).append(shown)
    return [replace(check, detail=f"{' and '.join(kinds)} as entered, {check.detail}") for check, kinds in told.items()]


def _check_scores(signed: Any, found: FoundRun, word: str) -> list[Check]:
    if not (isinstance(signed, dict) and all(type(value) in (int, float) for value in signed.values())):
        return [Check("scores in MLflow", None, "the end statement holds no table of scores to compare them with")]
    if signed and not signed.keys() & found.metrics.keys():
        why = f"none of the {len(signed)} {word} scores is there: they were never sent, or all removed"
        return [Check("scores in MLflow", None, why)]
    return compare_scores({name: float(value) for name, value in signed.items()}, found.metrics, word)
