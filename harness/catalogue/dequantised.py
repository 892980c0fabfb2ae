"""A causal language model out of a GGUF file, as a folder that `from_pretrained` reads and that can be trained.

GGUF keeps most weights with a few bits each; here they are written out in float32. They are the numbers that the file
stands for, which are not those of the checkpoint that it was made from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import notes
from harness.errors import ModelError

_RECORD = "dequantised.json"


def kept(folder: Path, digest: str, source: Callable[[], Path]) -> Path:
    """The folder, whole: made from the GGUF file if it is absent, damaged or was made from another.

    Args:
        folder: where it is kept, with the sha256 of every file in a record.
        digest: sha256 of the GGUF file.
        source: gives that file, its digest checked; asked for only if it is needed.

    Raises:
        ModelError: the file cannot be read, or the package that reads it is not installed.
        OSError: the folder cannot be written.
    """
    from filelock import FileLock

    if not _intact(folder, digest):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _intact(folder, digest):
                _make(folder, digest, source())
    return folder


def _intact(folder: Path, digest: str) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return record["source"] == digest and all(
            _sha256(path := folder / name, path.stat().st_mtime_ns, path.stat().st_size) == sha256
            for name, sha256 in record["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


@functools.cache
def _sha256(path: Path, changed: int, size: int) -> str:
    """Of a file of this time and size: half a gigabyte is read once per process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(folder: Path, digest: str, file: Path) -> None:
    """Write beside the place, then rename: the folder is whole or absent."""
    notes.note(f"writing out {file.name} in float32, once, into {folder}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / folder.name
        convert(file, whole)
        files = {path.name: _sha256(path, path.stat().st_mtime_ns, path.stat().st_size) for path in whole.iterdir()}
        (whole / _RECORD).write_text(json.dumps({"source": digest, "files": files}, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)


def convert(file: Path, folder: Path) -> None:
    """Weights in float32 as safetensors, config and tokenizer. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        # Without `dequantize` the model counts as a quantised one, which is neither trained nor saved.
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, quantization_config=config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except ImportError as error:
        fix = "pip install 'gguf>=0.10'"
        raise ModelError(f"cannot read {file.name}", where="model.name", why=str(error).strip(), fix=fix) from error
    finally:
        logger.setLevel(level)
