"""Runs before any test imports torch: two busy cores must not spin on each other, and nothing asks a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.pop("HARNESS_FAULT", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)  # of the shell: tests would record their runs there

_ROOT = Path(__file__).parent.parent


def _stores() -> set[str]:
    """MLflow's own default store or traces of it, where the project is and where a process works."""
    return {path.name for place in {_ROOT, Path.cwd()} for path in place.glob("mlflow.db*")}


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left() -> Iterator[None]:
    """A store that one module names would be that of all runs of the modules after it; each has one of its own."""
    before, stores = os.environ.get("MLFLOW_TRACKING_URI"), _stores()
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert _stores() <= stores, "a test of this module, or of one beside it, used MLflow's default store"


@pytest.fixture(autouse=True)
def _faults_fire_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clause of HARNESS_FAULT fires once per process; here, once per test."""
    from harness import faults

    monkeypatch.setattr(faults, "_known", ("", []))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name a data set and a model so small that a run takes a second."""
    from tests import tiny as files

    return files.overrides(tmp_path_factory.mktemp("tiny"))
