from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from harness import figures
from harness.errors import StorageError
from harness.storage import PROJECT

PANELS = {
    "left": [
        figures.Series("one", [16, 32], [1.0, 2.0], [1.5, 2.5]),
        figures.Series("two", [16, 32], [1.1, 2.1], [1.6, 3.0]),
    ],
    "right <b>": [figures.Series("one", [16], [4.0], [5.0]), figures.Series("two", [16], [4.0], [4.0])],
}
WORDS = ("Title <i>", PANELS, "length", "ms")


def test_a_page_holds_everything_and_repeats_to_the_byte(tmp_path: Path) -> None:
    pages = []
    for _ in range(2):
        figures.save_html(figures.whisker_page(*WORDS), tmp_path / "figure.html")
        pages.append((tmp_path / "figure.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert "<script src=" not in pages[0]
    assert '<meta charset="utf-8"' in pages[0]
    assert "Title <i>" not in pages[0]


def test_an_image_repeats_to_the_byte(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.save_png(figures.whisker_image(*WORDS), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_page_and_image_show_the_data() -> None:
    page, image = figures.whisker_page(*WORDS), figures.whisker_image(*WORDS)
    assert len(page.data) == 4
    assert list(page.data[1].y) == [1.1, 2.1]
    assert list(page.data[1].error_y.array) == pytest.approx([0.5, 0.9])
    assert [axes.get_title() for axes in image.axes] == ["left", "right <b>"]
    assert all(axes.get_ylim()[0] == 0 for axes in image.axes)
    assert page.data[0].line.color == page.data[2].line.color != page.data[1].line.color


def test_an_image_can_be_drawn_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=lambda: figures.save_png(figures.whisker_image(*WORDS), tmp_path / "a.png"))
    thread.start()
    thread.join()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("save", "make"), [(figures.save_html, figures.whisker_page), (figures.save_png, figures.whisker_image)]
)
def test_a_folder_that_is_not_there_is_told(save: Any, make: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        save(make(*WORDS), tmp_path / "missing" / "figure")


@pytest.mark.parametrize("make", ["page('Title', 300, 200)", "subplots(rows=2, cols=1, shared_xaxes=True)"])
def test_a_figure_waits_for_a_thread_that_is_importing_pandas(make: str, tmp_path: Path) -> None:
    """plotly looks for pandas in sys.modules, where it stands from the first moment of its import."""
    (tmp_path / "pandas.py").write_text(
        "import time\ntime.sleep(2)\nSeries = Index = DataFrame = type('Data', (), {})\n"
    )
    code = (
        "import importlib, sys, threading, time\n"
        "from harness import figures\n"
        "import plotly.graph_objects\n"
        "threading.Thread(target=importlib.import_module, args=('pandas',)).start()\n"
        "while 'pandas' not in sys.modules: time.sleep(0.01)\n"
        f"figures.{make}.add_scatter(x=[1, 2], y=[1, 2])\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_an_image_waits_for_a_thread_that_is_importing_ipython(tmp_path: Path) -> None:
    """matplotlib looks for IPython in the same place; MLflow imports it in the tracker's thread."""
    (tmp_path / "IPython.py").write_text("import time\ntime.sleep(2)\nversion_info = (9, 0)\n")
    code = (
        "import importlib, sys, threading, time\n"
        "from harness import figures\n"
        "import matplotlib.figure\n"
        "threading.Thread(target=importlib.import_module, args=('IPython',)).start()\n"
        "while 'IPython' not in sys.modules: time.sleep(0.01)\n"
        f"figures.save_png(figures.image('Title', 2, 1), {str(tmp_path / 'image.png')!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
