"""`executor=ray`: the workers of a study are Ray's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from harness.errors import UserError
from harness.sweeps import crew, space
from tests.sweeps.launches import assert_whole, command, launch, launched, owners, recorded, saved
from tests.test_launch import processes_with, wait_for


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_on_a_cluster_of_this_machine(tiny: list[str], tmp_path: Path) -> None:
    """F11: stopped, it leaves checkpoints and no process; run again it ends. Ray tells nobody that it was used."""
    words = command(tiny, tmp_path, "executor=ray", "workers=2")
    with TemporaryDirectory(prefix="ray-") as sockets:  # their paths have 107 bytes at most
        with launched(words, tmp_path, RAY_TMPDIR=sockets) as study:
            wait_for(lambda: [trial for trial in owners(tmp_path) if saved(tmp_path, trial)])
            for pid in processes_with(sockets):
                assert b"RAY_USAGE_STATS_ENABLED=0" in Path(f"/proc/{pid}/environ").read_bytes()
            study.terminate()
            assert study.wait(90) == 143
        wait_for(lambda: not processes_with(str(tmp_path)) and not processes_with(sockets), seconds=30)
        unfinished = [name for name, (_, status) in recorded(tmp_path).items() if status == "KILLED"]
        assert "small" in unfinished
        assert all(saved(tmp_path, name) for name in unfinished if name != "small")

        done = launch(words, RAY_TMPDIR=sockets)
        assert done.returncode == 0, done.stderr
        assert_whole(tmp_path)
        logs = sorted(path.name for path in (tmp_path / "studies" / "small").glob("worker-*.log"))
        assert logs == ["worker-0.log", "worker-1.log"]
        wait_for(lambda: not processes_with(sockets), seconds=30)


@pytest.mark.slow
def test_resources_that_no_machine_has_are_refused(tiny: list[str], tmp_path: Path) -> None:
    words = command(tiny, tmp_path, "executor=ray", "resources={cpus: 1000, gpus: 0}")
    with TemporaryDirectory(prefix="ray-") as sockets:
        done = launch(words, RAY_TMPDIR=sockets)
    assert done.returncode == 2
    (told,) = (line for line in done.stderr.splitlines() if line.startswith("error"))
    assert "resources: no machine of the Ray cluster has what a worker asks for: 1000 CPUs (at most " in told
    assert "Traceback" not in done.stderr


SMALL, LARGE = {"CPU": 4.0, "memory": 1e9}, {"CPU": 16.0, "GPU": 2.0}


def asked(*own: str) -> space.SearchSpace:
    return space.load("lora_rank", ["executor=ray", *own])


def test_two_small_machines_are_no_large_one() -> None:
    database = "storage=postgresql+psycopg://me@host/db"
    crew._refuse_cluster([SMALL, SMALL], asked("resources.cpus=4", database))
    with pytest.raises(UserError, match=r"asks for: 8 CPUs \(at most 4\)"):
        crew._refuse_cluster([SMALL, SMALL], asked("resources.cpus=8", database))
    crew._refuse_cluster([SMALL, LARGE], asked("resources={cpus: 8, gpus: 0.5}", database))
    with pytest.raises(UserError, match=r"asks for: 2 CPUs \(at most 16\) and 4 GPUs \(at most 2\)"):
        crew._refuse_cluster([SMALL, LARGE], asked("resources={cpus: 2, gpus: 4}", database))


def test_several_machines_need_a_database() -> None:
    crew._refuse_cluster([SMALL], asked())
    with pytest.raises(UserError, match="a journal is for one machine, the Ray cluster has 2"):
        crew._refuse_cluster([SMALL, LARGE], asked())


def test_workers_elsewhere_are_told_where_runs_are_kept_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A password in the environment goes along; who types none shows none in the list of processes."""
    here = {"MLFLOW_TRACKING_URI": "https://runs", "PGPASSWORD": "secret", "HARNESS_CORES": "64", "EDITOR": "vi"}
    for key, value in here.items():
        monkeypatch.setenv(key, value)
    sent: list[tuple[Any, ...]] = []
    ray = Ray(sent)
    crew._RayTasks(ray, asked("workers=2"), ["exp=lora"], tmp_path)
    for key in here:
        monkeypatch.delenv(key)
    begun: list[dict[str, str]] = []

    def start(arguments: list[str], environment: dict[str, str], log: Path) -> Any:
        log.touch()
        begun.append(environment)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(crew, "_start_worker", start)
    for arguments in sent:
        assert crew._ray_worker(*arguments)[0] == 0
    assert [one["HARNESS_WORKER"] for one in begun] == ["0", "1"]
    for one in begun:
        assert (one["MLFLOW_TRACKING_URI"], one["PGPASSWORD"], one["HARNESS_CORES"]) == ("https://runs", "secret", "1")
        assert "EDITOR" not in one


class Ray:
    """Takes down what its tasks are given."""

    def __init__(self, sent: list[tuple[Any, ...]]) -> None:
        self._sent = sent

    def remote(self, *given: Any, **_: Any) -> Any:
        if given and callable(given[0]):
            return self
        if given:
            return self._sent.append(given)
        return lambda task: self
