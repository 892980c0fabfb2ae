"""MLflow's own server behind a real socket on the loopback, with faults that a test switches on."""

from __future__ import annotations

import errno
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.stores import closed_port


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def _listening(port: int) -> socket.socket:
    """A socket on this port; waits for it while a process that just began still holds the one closed before."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_server(("127.0.0.1", port), backlog=128)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Faulty:
    """A tracking server on a port of its own that can be stopped, started again, and made to fail.

    `fault` is asked before each request is handled, with its path; what it returns happens: "refuse" answers 500 and
    does nothing, "swallow" handles the request and answers 500, "busy" answers 429, a number sleeps as many seconds.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with warnings.catch_warnings():  # starlette's WSGI middleware is deprecated
            warnings.simplefilter("ignore")
            from mlflow.server import app, fastapi_app, handlers
            from mlflow.tracking._tracking_service import utils

            assert fastapi_app
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # the server names its store there, for all that follows
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        monkeypatch.setattr(utils, "_tracking_uri", None)
        monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder / 'server.db'}")
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(folder / "server artifacts"))
        for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(handlers, "_tracking_store", None)
        self._app, self.port = app, closed_port()
        self.fault: Callable[[str], str | float | None] = lambda path: None
        self.paths: list[str] = []
        self._server: BaseWSGIServer | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with _listening(self.port) as ear:  # the server works on a copy of it
            place = ("127.0.0.1", self.port)
            self._server = make_server(*place, self._answer, threaded=True, request_handler=Quiet, fd=ear.fileno())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = str(environ["PATH_INFO"])
        self.paths.append(path)
        fault = self.fault(path)
        if isinstance(fault, int | float):
            time.sleep(fault)
        if fault == "swallow":
            b"".join(self._app(environ, lambda *_: lambda _: None))
        if fault in ("refuse", "swallow", "busy"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) if fault != "swallow" else None
            start_response("429 Too Many Requests" if fault == "busy" else "500 Fault", [("Content-Length", "2")])
            return [b"{}"]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer
