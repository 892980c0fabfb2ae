"""What a run was made from, and where else its files lie, looked at again: `harness verify --deep`.

Nothing here is needed to see whether a run was edited. It shows whether weights, data and code are still those the
statements name, so that the run could be made again, and whether MLflow's copies are those that were signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness import registry
from harness.catalogue import hub
from harness.checks.verification import Verified
from harness.data import dataset
from harness.data.dataset import Data
from harness.errors import HarnessError, StorageError
from harness.fingerprint import code_state
from harness.models import model as own
from harness.signing import chain, digests
from harness.signing.keys import Key
from harness.signing.provenance import Check, Envelope


def check(run: Verified, keys: Sequence[Key]) -> list[Check]:
    """Weights, data, code, checkpoints and MLflow's artifacts, one line each or more.

    What cannot be checked here is told with the reason. Weights or data that are others now are NO; other code
    changes no verdict, because a run is not tampered with by working on.
    """
    start = run.envelopes.get("start")
    if run.folder is None or start is None or start.predicate is None:
        return [Check("origins", None, "no start statement that can be read says what the run was made from")]
    claim = start.predicate
    checks = [_check_weights(claim.get("baseModel"), start.word), *_check_data(run.folder, start)]
    return [*checks, _check_code(claim.get("code")), *_check_checkpoints(run.folder, keys), *_check_artifacts(run)]


def _check_weights(claim: Any, word: str) -> Check:
    name = "base model"
    match claim:
        case {"id": str(model), "sha256": str(signed)}:
            pass
        case {"id": own.OWN}:
            return Check(name, None, "it began with random weights, which follow from the seed and nothing else")
        case _:
            why = "its weights were not one file on the machine of the run, so that no digest was signed"
            return Check(name, None, why)
    try:
        path = hub.weights_file(model)
        now = digests.file_digest(path.resolve()) if path else ""
    except HarnessError as error:
        return Check(name, None, _line(error))
    if not now:
        return Check(name, None, f"{digests.shown(model)} is no file on this machine")
    return Check(name, *_compared(signed, now, digests.shown(model), word))


def _check_data(folder: Path, start: Envelope) -> list[Check]:
    """Read, split and digest the data again, as spec.yaml says: only if that file is what was signed."""
    claim = (start.predicate or {}).get("data")
    try:
        if not digests.same(digests.file_digest(folder / "spec.yaml"), start.subjects.get("spec.yaml")):
            return [Check("data", None, "spec.yaml is not as it was signed, and is not followed")]
        content = yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8"))
        labelling = registry.plugin("task", next(iter(content["task"]))).labelling
        splits = dataset.load(Data.model_validate(content["data"]), labelling)
        signed = {entry["split"]: entry["sha256"] for entry in claim or ()}
    except HarnessError as error:
        return [Check("data", None, _line(error))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError, ValidationError) as error:
        return [Check("data", None, f"spec.yaml does not say what was read: {type(error).__name__}")]
    found = (splits.train, splits.validation, splits.test)
    return [Check(f"data {s.name}", *_compared(signed.get(s.name), s.digest, splits.source, start.word)) for s in found]


def _check_code(claim: Any) -> Check:
    signed, now = (claim if isinstance(claim, dict) else {}), code_state()
    if not isinstance(signed.get("treeSha256"), str):
        return Check("code", None, "the start statement does not say which code made the run")
    if digests.same(signed["treeSha256"], now["treeSha256"]):
        return Check("code", True, "the source files here are those that made the run")
    made = signed.get("commit")
    commit = f", commit {digests.shown(made[:12])}" if isinstance(made, str) else ""
    return Check("code", None, f"the source files here are not those that made the run{commit}", 0)


def _check_checkpoints(folder: Path, keys: Sequence[Key]) -> list[Check]:
    """Every checkpoint that is still in the run's folder, and what was set aside."""
    checks = []
    for path in sorted((folder / "checkpoints").glob("[!.]*")):
        name = digests.shown(f"checkpoints/{path.name}")
        if path.name.startswith("corrupt-"):
            checks.append(Check(name, True, "note: set aside by the run, which did not use it"))
            continue
        bad = [one for one in chain.verify(path, keys).checks if not one.ok]
        checks += [Check(f"{name}/{one.name}", one.ok, one.detail, one.code) for one in bad]
        checks += [] if bad else [Check(name, True, "as signed, and in its place in the chain")]
    return checks


def _check_artifacts(run: Verified) -> list[Check]:
    """MLflow's copies of the signed files, where the store keeps them on this machine."""
    name, end = "artifacts in MLflow", run.envelopes.get("end")
    if end is None or end.predicate is None:
        return []
    places = sorted((run.output / "artifacts").glob(f"*/{run.mlflow_id}/artifacts")) if run.mlflow_id else []
    if not places:
        why = "its store keeps none on this machine" if run.mlflow_id else "MLflow does not know this run here"
        return [Check(name, None, why)]
    checks, missing = [], []
    for file, signed in end.subjects.items():
        try:
            now = digests.file_digest(places[0] / file)
        except StorageError as error:
            if (places[0] / file).exists():
                checks.append(Check(f"{name}: {digests.shown(file)}", None, str(error), 5))
            else:
                missing.append(digests.shown(file))
        else:
            told = _compared(signed, now, "", end.word)
            checks += [] if told[0] else [Check(f"{name}: {digests.shown(file)}", *told)]
    if missing:
        why = f"{len(missing)} of {len(end.subjects)} files are not there: {', '.join(missing[:3])}"
        checks.append(Check(name, None, why))
    return checks or [Check(name, True, f"{len(end.subjects)} as {end.word}")]


def _compared(signed: object, now: str, what: str, word: str) -> tuple[bool | None, str]:
    if not isinstance(signed, str):
        return None, "the start statement does not name its digest"
    before, after = (text.removeprefix("sha256:") for text in (signed, now))
    if digests.same(before, after):
        return True, f"{what}: as {word}" if what else f"as {word}"
    return (
        False,
        f"{what + ': ' if what else ''}changed: sha256 {digests.shown(before[:12])}... {word}, {after[:12]}... found",
    )


def _line(error: HarnessError) -> str:
    return " ".join(str(error).split())
