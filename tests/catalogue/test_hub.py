"""Checkpoints from built-ins, folders, the cache and the Hub, and what a person is told when the Hub gives nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from huggingface_hub import constants

from harness import notes
from harness.catalogue import builtin, hub
from harness.data import dataset as module
from harness.data.dataset import Data
from harness.data.labelling import Classes
from harness.errors import DataError, ModelError

COMMIT = "c" * 40


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub may be asked, as it may outside of the tests; nothing listens where it is said to be."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in the cache of `some/cached`, as the client keeps it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return cache(tmp_path / "hub", "some/cached", "config.json")


def cache(folder: Path, name: str, *files: str) -> Path:
    """Put files of a model in the cache."""
    repository = folder / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


# ------------------------------------------------------------------------------------------------------ on this machine


def test_a_built_in_is_a_folder_with_weights() -> None:
    folder = builtin.model_path("minilm")
    assert hub.resolve("builtin:minilm") == str(folder)
    assert hub.weights_file("builtin:minilm") == folder / "model.safetensors"
    with pytest.raises(ModelError, match=r"no built-in model is called 'minilmm'\n.*'minilm'"):
        hub.resolve("builtin:minilmm")


def test_a_folder_is_taken_as_it_is(online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("owner/model") == "owner/model", "a folder comes before an id of the Hub"
    assert hub.resolve("~/owner/model") == str(tmp_path / "owner" / "model")
    assert hub.weights_file("owner/model") is None
    (tmp_path / "owner" / "model" / "model.safetensors").touch()
    assert hub.weights_file("owner/model") == Path("owner/model/model.safetensors")
    with pytest.raises(ModelError, match=r"model.revision: only models of the Hub have a revision"):
        hub.resolve("owner/model", "main")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"there is no folder ./nowhere\n.*builtin:minilm"),
        ("/nowhere/model", r"there is no folder /nowhere/model"),
        ("runs/first/model", r"there is no folder runs/first/model"),
        ("..\\model", r"there is no folder"),
        ("not an id", r"there is no folder not an id"),
        ("a" * 300, r"no folder has such a name\n.*too long"),
        ("~nobody-of-this-name/model", r"no folder has such a name\n.*home"),
        (__file__, r"test_hub.py is a file\n.*give the folder it is in: .*tests"),
    ],
)
def test_what_can_only_be_a_path_is_never_asked_for(
    name: str, message: str, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "require_reachable", lambda *_: pytest.fail("the Hub was asked"))
    for ask in (hub.resolve, hub.weights_file):
        with pytest.raises(ModelError, match=f"model.name: .*{message}"):
            ask(name)


def test_what_is_cached_needs_no_network(
    online: None, cached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notes, "_told", set())
    assert hub.resolve("some/cached") == hub.resolve("some/cached", COMMIT) == str(cached)
    told = f"NOTE the Hub cannot be asked: some/cached as it lies in the cache, {cached}\n"
    assert capsys.readouterr().err == told, "once"
    assert hub.weights_file("some/cached") is None
    for name, revision in (("some/cached", "another"), ("some/other", None)):
        with pytest.raises(ModelError, match=r"cannot be reached"):
            hub.resolve(name, revision)


def test_offline_only_the_cache_counts(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_unreachable", lambda url: pytest.fail(f"{url} was asked"))
    monkeypatch.setattr(notes, "note", lambda text: pytest.fail(f"that is what was asked for: {text}"))
    assert hub.resolve("some/cached") == str(cached)
    with pytest.raises(ModelError, match=r"model.name: 'some/other' is neither .* HF_HUB_OFFLINE is set\n.*unset"):
        hub.resolve("some/other")


# ------------------------------------------------------------------------------------------------------------ the probe


class _Hub(BaseHTTPRequestHandler):
    """Stands in for the Hub: the name that is asked for says what is wrong with it."""

    answers = (
        ("missing", 404, "RepoNotFound"),
        ("private", 401, "RepoNotFound"),
        ("guarded", 403, "GatedRepo"),
        ("expired", 401, ""),
        ("revised", 404, "RevisionNotFound"),
        ("broken", 503, ""),
    )

    def do_GET(self) -> None:
        status, code = next(((status, code) for word, status, code in self.answers if word in self.path), (404, ""))
        body = b""
        if "picture" in self.path:
            status, code = 404, "EntryNotFound"
            if self.path.startswith("/api/models/some/picture"):
                status, code = 200, ""
                body = json.dumps({"id": "some/picture", "sha": COMMIT, "siblings": []}).encode()
            if "/tree/" in self.path:
                body = b"[]"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the stand-in for the Hub listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_any_answer_but_a_failure_is_an_answer(online: None, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for name in ("some/missing", "some/private", "some/guarded"):
        assert hub.resolve(name) == name
    with pytest.raises(ModelError, match=rf"cannot be reached\n.*why: {address}/api/models/some/broken answers 503"):
        hub.resolve("some/broken")


def test_nothing_answers(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for endpoint in ("http://127.0.0.1:9", "http://hub.invalid", "no address", "http://[", mute):
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            start = time.monotonic()
            with pytest.raises(DataError) as raised:
                hub.require_reachable("some/rows", DataError, "data.name", "datasets")
            assert time.monotonic() - start < 30, "the client alone waits for 46 s"
            assert raised.value.where == "data.name" and "HF_HUB_OFFLINE=1" in raised.value.fix
            assert raised.value.why.startswith(f"{endpoint}/api/datasets/some/rows")


def test_a_server_of_another_kind_answers(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def greet(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"220 mail.example ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=greet, args=[server], daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"cannot be reached\n.*why: .*(220 mail|reset by peer)"):
            hub.resolve("some/model")


def test_a_name_server_that_does_not_answer(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    released = Event()

    def wait(*arguments: Any, **options: Any) -> None:
        released.wait(timeout=30)
        raise socket.gaierror("too late")

    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", wait)
    with pytest.raises(ModelError, match=r"cannot be reached\n.*does not answer within 0.2 s"):
        hub.resolve("some/model")
    released.set()


# ------------------------------------------------------------------------------------------------------------ explained


def _told(names: list[str], **environment: str) -> dict[str, str]:
    """What is said to these names in a process of its own: the libraries read the environment when imported."""
    code = """
import json, sys
from harness.catalogue import hub
from harness.data import dataset, labelling
from harness.errors import HarnessError
told = {}
for name in sys.argv[1:]:
    kind, _, id = name.rpartition(":")
    try:
        if kind == "data":
            dataset.load(dataset.Data(name=id, text="text", label="label"), labelling.Classes())
        else:
            from transformers import AutoTokenizer
            with hub.explained("tokenizer", id):
                AutoTokenizer.from_pretrained(hub.resolve(id))
        told[name] = "loaded"
    except HarnessError as error:
        told[name] = str(error)
print(json.dumps(told))
"""
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout)
    return told


@pytest.mark.slow
def test_what_the_hub_answers_is_told_apart(address: str, tmp_path: Path) -> None:
    names = ["missing", "private", "guarded", "expired", "revised", "broken", "picture"]
    names = [f"some/{name}" for name in names] + [f"data:some/{name}" for name in names[:-1]]
    told = _told(names, HF_ENDPOINT=address, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    expected = {
        "missing": ("'some/missing' is not on the Hub, or is private", "hf auth login"),
        "private": ("'some/private' is not on the Hub, or is private", "hf auth login"),
        "guarded": ("'some/guarded' is gated", "accept its terms"),
        "expired": ("the Hub refuses access to 'some/expired'", "answers 401\n", "hf auth login"),
        "revised": ("'some/revised' has no such revision", "name a branch"),
        "broken": ("the Hub cannot be reached", "answers 503"),
        "picture": ("the tokenizer of 'some/picture' cannot be loaded", "see that it holds a text model"),
    }
    for name, message in told.items():
        assert message.startswith("data.name: " if name.startswith("data:") else "model.name: ")
        for part in expected[name.rpartition("/")[2]]:
            assert part in message


def test_a_data_set_is_asked_for_in_the_same_way(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    wanted = Data(name="some/thing", text="text", label="label")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"data.name: .*the Hub cannot be reached\n.*Connection refused"):
        module.load(wanted, Classes())
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data.name: 'some/thing' is not in the cache.* HF_HUB_OFFLINE is set\n"):
        module.load(wanted, Classes())


@pytest.mark.slow
def test_a_cached_checkpoint_loads_at_once_without_network(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.save_pretrained(cache(tmp_path / "hub", "some/cached", "config.json"))
    start = time.monotonic()
    told = _told(["some/cached"], HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    assert told == {"some/cached": "loaded"}
    assert time.monotonic() - start < 60, "the client alone waits for minutes"


def test_whatever_a_library_raises_becomes_one_error() -> None:
    from safetensors import SafetensorError

    problems = [SafetensorError("too large"), KeyError("no_such_model"), TypeError("x"), ValueError(""), OSError()]
    message = (
        r"model.name: the model of 'some/model' cannot be loaded\n  why: .+\n  fix: see that it holds a text model"
    )
    for problem in problems:
        with pytest.raises(ModelError, match=message) as raised, hub.explained("model", "some/model"):
            raise problem
        assert raised.value.__cause__ is problem
    with pytest.raises(DataError, match=r"^as it is$"), hub.explained("model", "some/model"):
        raise DataError("as it is")
    with pytest.raises(KeyboardInterrupt), hub.explained("model", "some/model"):
        raise KeyboardInterrupt
