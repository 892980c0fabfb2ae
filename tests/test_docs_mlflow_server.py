"""A tracking server on PostgreSQL as docs/mlflow_server.md starts it: a run, a run while it is down, `harness sync`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from harness.cli.launching import SMOKE
from harness.storage import PROJECT
from tests import pages
from tests.stores import closed_port
from tests.sweeps.postgres import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEXT = (PROJECT / "docs" / "mlflow_server.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


@contextmanager
def serving(postgres: Postgres, port: int, artifacts: Path) -> Iterator[None]:
    """The page's server, on this database, port and folder."""
    lines = [
        line for line in pages.commands(TEXT) if line.startswith(("export MLFLOW_BACKEND", "export MLFLOW_SERVER"))
    ]
    given = dict(word.split("=", 1) for line in lines for word in shlex.split(line)[1:])
    place = postgres.url("mlflow").replace("postgres@", "mlflow@", 1)
    assert given["MLFLOW_BACKEND_STORE_URI"].partition("@")[0] == place.partition("@")[0]
    (command,) = (line for line in pages.commands(TEXT) if line.startswith("mlflow server"))
    command = command.replace("5000", str(port)).replace("/srv/mlflow/artifacts", str(artifacts))
    environment = {**os.environ, **given, "MLFLOW_BACKEND_STORE_URI": place, "MLFLOW_TRACKING_URI": ""}
    with (artifacts.parent / "server.log").open("ab") as log:
        process = subprocess.Popen([BIN / "mlflow", *shlex.split(command)[1:]], env=environment, stdout=log, stderr=log)
    try:
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
            assert process.poll() is None
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def harness(*words: str, uri: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-c", "from harness.cli.commands import main; main()", *words]
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def train(tiny: list[str], output: Path, uri: str) -> str:
    """A tiny run, by the page's command; what it said."""
    (line,) = (line for line in pages.launches(TEXT) if "tracking.uri=http" in line)
    words = re.sub(r"tracking\.uri=\S+", f"tracking.uri={uri}", line)
    command = [sys.executable, "launch.py", *shlex.split(words), *SMOKE, *tiny, "latency.measure=false"]
    done = subprocess.run(
        [*command, f"output={output}"], cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def statuses(postgres: Postgres) -> list[str]:
    import psycopg

    place = postgres.url("mlflow").replace("+psycopg", "")
    with psycopg.connect(place) as connection:
        return [str(status) for (status,) in connection.execute("SELECT status FROM runs").fetchall()]


def test_the_server_of_the_page_records_runs(tiny: list[str], tmp_path: Path) -> None:
    postgres, port, output, artifacts = Postgres(), closed_port(), tmp_path / "runs", tmp_path / "artifacts"
    uri = f"http://127.0.0.1:{port}"
    try:
        (made,) = pages.blocks(TEXT, "sql")
        for statement in made.split(";\n"):
            if statement.strip():
                postgres.execute(statement)
        with serving(postgres, port, artifacts):
            assert uri in train(tiny, output, uri)
            assert statuses(postgres) == ["FINISHED"]
            assert list(artifacts.glob("*/*/artifacts/model_card.md"))
            listed = harness("runs", "list", "--output", str(output), uri=uri)
            assert "FINISHED" in listed.stdout, listed.stderr
        assert "harness sync" in train(tiny, output, uri)
        assert len(list((output / "spool").glob("*.jsonl"))) == 1
        with serving(postgres, port, artifacts):
            sent = harness("sync", "--output", str(output), uri="")
            assert sent.returncode == 0, sent.stdout + sent.stderr
            assert statuses(postgres) == ["FINISHED", "FINISHED"]
            assert len(list(artifacts.glob("*/*/artifacts/model_card.md"))) == 2
    finally:
        postgres.remove()
