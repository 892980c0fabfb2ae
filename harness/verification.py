"""Verify a run: its folder against its statements, and the scores MLflow shows against the signed ones."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from harness import digests, keys, provenance, tracking
from harness.errors import StorageError, UserError
from harness.provenance import Check, Verification
from harness.storage import PROJECT
from harness.tracking_mlflow import FoundRun

_SENTENCES = {
    0: "verified: nothing was edited since it was signed",
    1: "TAMPERED: what is marked NO is not as it was signed",
    3: "cannot tell: what is marked ?? is not signed, not finished, or cannot be checked here",
    4: "cannot tell: signed by a newer version of the harness",
    5: "cannot tell: what is marked ?? could not be read",
}


def sentence(exit_code: int) -> str:
    """The verdict in words."""
    return _SENTENCES[exit_code]


def verify_run(run: str, output: Path) -> Verification:
    """Verify a run by name, MLflow id or folder; `output` is the folder of runs, relative to the project.

    Where MLflow knows the run, its scores are compared with the signed ones. A folder may have been moved or renamed:
    its statements say which run it holds.

    Raises:
        UserError: there is no such run, several have this name, or a signing key cannot be used.
    """
    output = PROJECT / output
    is_folder = Path(run).is_dir()
    if is_folder:
        home = Path(run).resolve().parent
        output = home.parent if home.name == "runs" else output  # the database that lies beside the folder's runs
        verdict = provenance.verify(Path(run), keys.load_keyring())
        asked = (verdict.predicate("end") or {}).get("runId")
        found, problem = _find(asked, output) if isinstance(asked, str) else (None, "")
    else:
        found, unread = _find(run, output)
        verdict = provenance.verify(_folder(run, output, found, unread), keys.load_keyring())
        asked = found.name if found else run
        problem = unread or "MLflow does not know this run; set MLFLOW_TRACKING_URI if it was tracked elsewhere"
    end = verdict.predicate("end")
    if end is not None:
        verdict.checks.append(_check_name(end.get("runId"), asked))
        if found is not None:
            verdict.checks += _check_scores(end.get("metrics"), found)
        elif is_folder and not problem:
            why = "MLflow does not know this run here, so that no scores there were compared"
            verdict.checks.append(Check("folder alone", True, why))
        elif problem:
            verdict.checks.append(Check("scores in MLflow", None, problem, 5))
    return verdict


def compare_scores(signed: dict[str, float], found: dict[str, float]) -> list[Check]:
    """A failed check for each score changed, removed, or (`test/...` only) added after signing; else one that passed.

    Scores of other splits may be added: a run can be evaluated further without touching what it reported.
    """
    checks = []
    for name in sorted(signed.keys() | {name for name in found if name.startswith("test/")}):
        before, now = signed.get(name), found.get(name)
        if before != now:
            what = "removed from" if now is None else "added to" if before is None else "changed in"
            values = f"signed {'nothing' if before is None else before}, found {'nothing' if now is None else now}"
            checks.append(Check(digests.shown(name), False, f"{what} MLflow: {values}"))
    return checks or [Check("scores in MLflow", True, f"{len(signed)} as signed")]


def _find(run: str, output: Path) -> tuple[FoundRun | None, str]:
    """The MLflow run, and why it cannot be looked for. Raises UserError if several have this name."""
    try:
        return tracking.find_run(None, output, run), ""
    except StorageError as error:
        return None, str(error)


def _folder(run: str, output: Path, found: FoundRun | None, unread: str) -> Path:
    runs = output / "runs"
    known = [Path(found.tags["folder"])] if found and "folder" in found.tags else []
    places = [*known, runs / (found.name if found else run)]
    for place in places:
        if place.is_dir():
            return place
    if found:
        fix = "if it was moved: harness verify <its folder>"
        raise UserError(f"the folder of run '{found.name}' is not there", where=str(places[0]), fix=fix)
    names = [path.name for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []
    near = difflib.get_close_matches(run, names, n=1)
    fix = f"did you mean '{near[0]}'?" if near else "give the run's name, its MLflow id, or its folder"
    raise UserError(f"no run is called '{run}'", where=str(runs), why=unread, fix=fix)


def _check_name(signed: object, asked: object) -> Check:
    """Whether the statements are about the run that was asked for, and not those of another one put in its place."""
    if not isinstance(signed, str):
        return Check("run", None, "the statements do not say which run they are about")
    if not digests.same(signed, asked):
        return Check("run", None, f"the statements are about {signed!r}, not {asked!r}: renamed, copied, or exchanged")
    return Check("run", True, f"the statements are about {signed!r}")


def _check_scores(signed: Any, found: FoundRun) -> list[Check]:
    if not (isinstance(signed, dict) and all(type(value) in (int, float) for value in signed.values())):
        return [Check("scores in MLflow", None, "the end statement holds no table of scores to compare them with")]
    if signed and not signed.keys() & found.metrics.keys():
        why = f"none of the {len(signed)} signed scores is there: they were never sent, or all removed"
        return [Check("scores in MLflow", None, why)]
    return compare_scores({name: float(value) for name, value in signed.items()}, found.metrics)
