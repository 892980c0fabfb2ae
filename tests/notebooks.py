"""The notebooks of docs/notebooks: executed in a fresh kernel, with what depends on the day or the machine left out.

`python -m tests.notebooks` executes all of them in place, `python -m tests.notebooks awp mixout` those that are named.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from harness.storage import PROJECT

FOLDER = PROJECT / "docs" / "notebooks"
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_ENVIRONMENT = {
    "PYTHONPATH": str(PROJECT),  # this tree, whichever one is installed
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, of every kernel without ipywidgets, when it is imported
}
_FOREIGN = ("MLFLOW_TRACKING_URI", "HARNESS_FAULT", "HARNESS_SIGNING_KEY", "HARNESS_SIGNING_KEY_FILE", "NO_COLOR")
"""What the caller's shell may hold and the notebooks must not see."""


def paths() -> list[Path]:
    """All notebooks."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    """A notebook, as nbformat's tree."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def digest_of_sources(notebook: Any) -> str:
    """What the outputs were made from: sha256 of all code cells, which an executed notebook keeps in its metadata."""
    return hashlib.sha256(
        "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code").encode()
    ).hexdigest()


def execute(path: Path, folder: Path) -> Any:
    """The notebook with fresh outputs, run from its sources in a new kernel that works in `folder`.

    Raises:
        CellExecutionError: a cell failed; it shows the cell and the traceback.
    """
    notebook = read(path)
    notebook.metadata = _METADATA
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | _ENVIRONMENT
    with tempfile.TemporaryDirectory() as sockets:
        transport = {"transport": "ipc", "ip": str(Path(sockets) / "kernel")}  # no port that others could listen to
        client = NotebookClient(
            notebook,
            config=Config({"KernelManager": transport}),
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute(env=environment)
    notebook.metadata = {**_METADATA, "sources": digest_of_sources(notebook)}
    return notebook


def main(names: list[str]) -> None:
    """Execute in place."""
    for path in [FOLDER / f"{name}.ipynb" for name in names] or paths():
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
        print(f"{path.name:24} {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
