"""F60 and F18 on a whole run: secrets that it was given are nowhere in what it leaves, and every file has its mode."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.signing import chain
from harness.signing.keys import Key
from harness.storage import PROJECT
from tests.stores import closed_port

pytestmark = pytest.mark.slow
KEY = Key(b"\x9f\xe3canary-of-the-signing-key\x01\x02\x03\x04\x05")
PASSWORD = "canary/of+the password"


@dataclass(frozen=True)
class Done:
    """A short run, all it printed, and its folder."""

    output: Path
    printed: str
    folder: Path


@pytest.fixture(scope="module", params=["database", "server"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Tracked in a database, or in a server that does not answer, whose URI holds a password."""
    tmp = tmp_path_factory.mktemp(str(request.param))
    quoted = urllib.parse.quote(PASSWORD, safe="")
    server = [f"tracking.uri=http://me:{quoted}@127.0.0.1:{closed_port()}"] if request.param == "server" else []
    words = ["exp=lora", "--smoke", f"output={tmp / 'mlruns'}", "seeds=[1]", "latency.measure=false"]
    given = {
        "HARNESS_SIGNING_KEY": KEY.text, "MLFLOW_TRACKING_PASSWORD": PASSWORD, "HF_TOKEN": PASSWORD,
        "XDG_CONFIG_HOME": str(tmp / "config"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "launch.py", *words, *server, "--debug"], cwd=PROJECT, env={**os.environ, **given},
        capture_output=True, text=True, timeout=280, check=False, umask=0o027,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (folder,) = (tmp / "mlruns/runs").iterdir()
    return Done(tmp / "mlruns", ended.stdout + ended.stderr, folder)


def spellings(secret: bytes) -> list[bytes]:
    """A secret as it is, and as encodings would write it."""
    quoted = urllib.parse.quote(secret, safe="").encode()
    escaped = json.dumps(secret.decode("latin-1")).strip('"').encode()
    coded = [base64.b64encode(secret).rstrip(b"="), base64.urlsafe_b64encode(secret).rstrip(b"=")]
    return [secret, quoted, escaped, secret.hex().encode(), *coded]


SECRETS = [*spellings(PASSWORD.encode()), *spellings(KEY.master), KEY.text.encode()]


def test_the_run_was_signed_with_the_key_and_says_so(done: Done) -> None:
    assert f"Signed with key {KEY.keyid}" in done.printed
    assert chain.verify(done.folder, [KEY]).exit_code == 0


def test_no_secret_is_in_anything_the_run_left(done: Done) -> None:
    """Folder, database, artifacts, spool; base64 and quoting do not hide one. Payloads of statements are decoded."""
    seen, masked = 0, False
    for path in done.output.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.name.endswith(".envelope.json"):
                content += base64.b64decode(json.loads(content)["payload"])
            seen += 1
            masked = masked or b"http://me:***@127.0.0.1" in content
            assert not [secret for secret in SECRETS if secret in content], path
    assert seen > 10
    assert masked == ("server" in str(done.output))


def test_no_secret_is_printed(done: Done) -> None:
    assert not [secret for secret in SECRETS if secret in done.printed.encode()]


def test_every_file_has_the_mode_of_the_umask(done: Done) -> None:
    """F18: 027 leaves 0640 and 0750, also for files of safetensors, transformers, MLflow and matplotlib."""
    odd = {}
    for path in done.output.rglob("*"):
        expected = 0o750 if path.is_dir() else 0o640
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != expected:
            odd[str(path.relative_to(done.output))] = oct(stat.S_IMODE(path.stat().st_mode))
    assert odd == {}
