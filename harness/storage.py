"""Files: the cache outside the repository, atomic writing, names that are safe in paths."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def cache_folder() -> Path:
    """Where downloads are kept: `$HARNESS_CACHE`, else `$XDG_CACHE_HOME/harness`, else `~/.cache/harness`."""
    base = os.environ.get("HARNESS_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def safe_name(name: str) -> str:
    """The name itself, if it may stand in a path. Raises StorageError otherwise (allow-list, never a deny-list)."""
    if not _NAME.fullmatch(name):
        raise StorageError(f"{name!r} cannot be a file name", fix="use letters, digits, '.', '_' and '-', at most 64")
    return name


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all (temporary file, fsync, rename), mode per umask. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            apply_umask(Path(temporary))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}", why=str(error)) from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text whole or not at all. Raises StorageError."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, NaN refused. Raises StorageError, and ValueError for NaN or infinity."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all, mode per umask. Raises StorageError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(content, temporary, metadata={"format": "pt", **(metadata or {})})
        apply_umask(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}", why=str(error), fix="free some disk space") from error


def apply_umask(path: Path) -> None:
    """Give a file made by a library with mode 0600 the mode the umask asks for (safetensors/safetensors#782)."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
