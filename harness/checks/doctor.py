"""`harness doctor`: is everything there that a run needs, and which settings does it find?

Each line is ok, NO with what to do, or ?? where something is missing that one can do without.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from harness import liveness, storage
from harness.catalogue import hub
from harness.errors import HarnessError
from harness.machine import threads
from harness.signing import keys
from harness.signing.provenance import Check
from harness.tracking import stores

_SHOWN = ("torch", "transformers", "accelerate", "peft", "mlflow", "optuna", "numpy")
_LOW_GIB = 5.0
"""Free disk below which it is said: full fine-tuning of a small model with its checkpoints takes about one."""


def examine(output: Path, uri: str | None = None) -> Iterator[Check]:
    """Every check, one after the other. `output`: the folder of runs; `uri`: MLflow's store."""
    parts: dict[str, Callable[[], Iterator[Check]]] = {
        "packages": _versions, "device": _devices, "accelerate": _accelerate, "disk": lambda: _disk(output),
        "tracking": lambda: _tracking(output, uri), "key": _keys,
        "Hub": _hub,
    }  # fmt: skip
    for name, part in parts.items():
        try:
            yield from part()
        except (HarnessError, OSError) as error:
            yield Check(name, False, str(error).replace("\n  ", "; "))


def _versions() -> Iterator[Check]:
    """Whether what is installed fits pyproject.toml, and what was tested together."""
    yield Check("python", True, f"{platform.python_version()}, {platform.platform(terse=True)}")
    wanted = [Requirement(line) for line in importlib.metadata.requires("harness") or ()]
    wrong = []
    for one in wanted:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            found = _version(one.name)
            if found is None or not one.specifier.contains(found, prereleases=True):
                wrong.append(f"{one.name} {found or 'is not installed'}, {one.specifier} is needed")
    told = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
    yield Check("packages", not wrong, "; ".join(wrong) + ": make setup" if wrong else told)
    tested = storage.PROJECT / "constraints.txt"
    pins = (
        [Requirement(line) for line in tested.read_text().splitlines() if line[:1].isalnum()] if tested.exists() else []
    )
    others = [f"{one.name} {_version(one.name)} ({one.specifier})" for one in pins
              if (found := _version(one.name)) and not one.specifier.contains(found, prereleases=True)]  # fmt: skip
    if others:
        yield Check("tested versions", None, f"others than constraints.txt: {', '.join(others)}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Check]:
    import torch

    cores = f"{threads.share_of_cores()} of {os.cpu_count()} cores for this process"
    if not torch.cuda.is_available():
        yield Check("device", True, f"no GPU that PyTorch can use; {cores}")
        return
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        size, kind = found.total_memory / 1024**3, "bf16" if torch.cuda.is_bf16_supported() else "fp16, no bf16"
        yield Check("device", True, f"GPU {number}: {found.name}, {size:.0f} GiB, {kind}; {cores}")


def _accelerate() -> Iterator[Check]:
    """What `accelerate launch` would do, and which file says so (accelerate#1133)."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    variables = sorted(name for name in os.environ if name.startswith("ACCELERATE_"))
    told = f"; set in the environment: {', '.join(variables)}" if variables else ""
    if not Path(default_config_file).is_file():
        yield Check("accelerate", True, f"no file {default_config_file}: its own defaults{told}")
        return
    try:
        settings = load_config_from_file(None)
    except Exception as error:  # whatever a broken file makes it raise
        why = f"{default_config_file} cannot be read ({type(error).__name__}: {error})"
        yield Check("accelerate", False, f"{why}: make it anew with accelerate config")
        return
    kind = getattr(settings.distributed_type, "value", settings.distributed_type)
    line = f"{default_config_file}: {kind}, {settings.num_processes} processes, precision {settings.mixed_precision}"
    is_unsupported = kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")
    yield Check("accelerate", not is_unsupported, line + told + (": refused by launch.py" if is_unsupported else ""))


def _disk(output: Path) -> Iterator[Check]:
    free = shutil.disk_usage(storage.writable(output)).free / 1024**3
    fix = "" if free > _LOW_GIB else f", less than {_LOW_GIB:.0f}: checkpoints may not fit"
    yield Check("disk", True if free > _LOW_GIB else None, f"{free:.1f} GiB free in {output}{fix}")


def _tracking(output: Path, uri: str | None) -> Iterator[Check]:
    if waiting := sorted(path.stem for path in (output / "spool").glob("*.jsonl")):
        yield Check("spool", None, f"records of {len(waiting)} runs wait to be sent: harness sync")
    where, source = stores.shown_uri(uri, output), "default"
    if uri or os.environ.get("MLFLOW_TRACKING_URI"):
        source = "--uri" if uri else "MLFLOW_TRACKING_URI"
    told, number = f"{where} ({source})", stores.count_experiments(uri, output)
    yield Check("tracking", True, f"{told}: {'not made yet' if number is None else f'{number} experiments'}")
    if stale := liveness.stale(output, uri):
        yield Check("stale runs", None, f"RUNNING in MLflow, but gone: {', '.join(stale)}: harness runs reap")


def _hub() -> Iterator[Check]:
    is_there, told = hub.state()
    yield Check("Hub", is_there or None, told)


def _keys() -> Iterator[Check]:
    signing = [key for key in keys.listed() if key.signs]
    fix = "no key: runs are left unsigned; harness keygen makes one"
    yield Check("key", True if signing else None, f"{signing[0].keyid} in {signing[0].place}" if signing else fix)
