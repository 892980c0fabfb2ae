"""Runs in a SQLite store of their own, for the tests of whatever records in MLflow or reads from it."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.tracking.stores import Tracking, start
from harness.tracking.tracker import Tracker

# MLflow's tables use an option that SQLAlchemy 2.1 is about to drop.
QUIET = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def begin(folder: Path, name: str, **more: Any) -> Tracker:
    return start(Tracking(), folder, "exp", name, **more)


def run_id(tracker: Tracker) -> str:
    found = tracker.wait_open(30)
    assert found
    return found


def closed_port() -> int:
    """A port that nobody listens on, and that no connection is given by chance: those begin at 32768."""
    while True:
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", secrets.choice(range(10_000, 32_000))))
            return int(free.getsockname()[1])
