"""Runs before any test imports torch: two busy cores must not spin on each other, and nothing asks a network."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.pop("HARNESS_FAULT", None)


@pytest.fixture(autouse=True)
def _faults_fire_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clause of HARNESS_FAULT fires once per process; here, once per test."""
    from harness import faults

    monkeypatch.setattr(faults, "_known", ("", []))
