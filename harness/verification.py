"""Verify a run: its folder against its statements, and MLflow's numbers against the signed ones."""

from __future__ import annotations

from pathlib import Path

from harness import keys, provenance, tracking
from harness.errors import StorageError, UserError
from harness.provenance import Check, Verification
from harness.storage import PROJECT

_SENTENCES = {
    0: "verified: nothing was edited since it was signed",
    1: "TAMPERED: something was edited since it was signed",
    3: "cannot tell: not signed, not finished, or signed with a key that is not here",
    4: "cannot tell: signed by a newer version of the harness",
    5: "cannot tell: not everything could be read",
}


def sentence(exit_code: int) -> str:
    """The verdict in words."""
    return _SENTENCES[exit_code]


def verify_run(run: str, output: Path) -> Verification:
    """Verify a run by name, MLflow id or folder; `output` is the folder of runs, relative to the project.

    Where MLflow knows the run, its scores are compared with the signed ones. Raises UserError if there is no such run.
    """
    output = PROJECT / output
    is_folder = Path(run).is_dir()
    unread = None
    try:
        found = tracking.find_run(None, output, Path(run).resolve().name if is_folder else run)
    except StorageError as error:
        found, unread = None, str(error)
    folder = Path(run) if is_folder else _folder(run, output, found)
    verdict = provenance.verify(folder, keys.load_keyring())
    end = verdict.predicate("end")
    if end is None:
        return verdict
    if found is not None:
        verdict.checks += provenance.compare_metrics(end["metrics"], _comparable(found.metrics, end["metrics"]))
    elif unread or not is_folder:
        verdict.checks.append(Check("metrics in MLflow", None, unread or "MLflow does not know this run", 5))
    return verdict


def _folder(run: str, output: Path, found: tracking.FoundRun | None) -> Path:
    known = found.tags.get("folder") if found else None
    folder = Path(known) if known else output / "runs" / run
    if not folder.is_dir():
        raise UserError(f"no run '{run}'", where=str(output / "runs"), fix="give its name, its MLflow id or its folder")
    return folder


def _comparable(found: dict[str, float], signed: dict[str, float]) -> dict[str, float]:
    """MLflow's scores, without the curves and counts that are not part of the end statement."""
    return {key: value for key, value in found.items() if key in signed or key.startswith("test/")}
