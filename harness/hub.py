"""Where checkpoints come from: built-in, a local folder, or the Hugging Face Hub, with errors a person can act on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from harness.errors import ModelError, UserError

PROBE_SECONDS = 4.0


def resolve(name: str) -> str:
    """The folder of a built-in (`builtin:minilm`) or local checkpoint, or the Hub id itself.

    Raises:
        ModelError: no such built-in or folder, or a Hub id that is not cached while the Hub cannot be reached.
    """
    if name.startswith("builtin:"):
        from harness import builtin

        return str(builtin.model_path(name.removeprefix("builtin:")))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no folder {name}", where="model.name", fix="give a folder with config.json, or a Hub id")
    if not _is_cached(name):
        require_reachable(name, ModelError, "model.name")
    return name


def weights_file(name: str) -> Path | None:
    """The single safetensors file of a built-in or local checkpoint, if that is how it is kept."""
    folder = Path(resolve(name))
    path = folder / "model.safetensors"
    return path if folder.is_dir() and path.is_file() else None


def _is_cached(name: str) -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return (cache / f"models--{name.replace('/', '--')}").is_dir()


def require_reachable(name: str, error: type[UserError], where: str) -> None:
    """Ask once, briefly, whether the Hub can be reached: its own client retries name resolution for 46 s.

    Raises:
        UserError: of the given kind, if it cannot, or if `HF_HUB_OFFLINE` forbids asking.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise error(
            f"'{name}' is not cached and HF_HUB_OFFLINE is set", where=where, fix="unset it, or use a local path"
        )
    endpoint = urlparse(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    address = (endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80))
    try:
        socket.create_connection(address, timeout=PROBE_SECONDS).close()
    except OSError as problem:
        raise error(
            f"'{name}' is not on this machine and the Hub ({address[0]}) cannot be reached",
            where=where,
            why=str(problem),
            fix="check the network, or give a built-in (builtin:...) or a local path",
        ) from None


@contextmanager
def explained(what: str, name: str) -> Iterator[None]:
    """Turn the loading errors of transformers into one `ModelError` that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        gated = "gated" in str(problem).lower() or "401" in str(problem)
        raise ModelError(
            f"the {what} of '{name}' cannot be loaded",
            where="model.name",
            why=reason,
            fix="log in with `hf auth login` and accept the licence"
            if gated
            else "check the name, and that it holds a text model with config.json, weights and tokenizer files",
        ) from problem
