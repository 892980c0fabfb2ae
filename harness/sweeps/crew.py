"""Several workers: processes of this machine, or tasks of a Ray cluster. Each is `launch.py ... --worker`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from harness import notes
from harness.errors import TrainingError, UserError
from harness.machine import threads
from harness.storage import PROJECT
from harness.sweeps.space import SearchSpace

_RESTARTS = 3
_PATIENCE_SECONDS = 60.0
"""How long a worker that was asked to stop may take to save its checkpoint."""
_TAIL = 12
_PASSED_ON = ("HARNESS_", "HF_", "MLFLOW_", "PG")
"""Variables of this machine whose names begin so hold on every machine of a Ray cluster: no password in a command."""


class Crew(Protocol):
    """Workers at work."""

    def is_at_work(self) -> bool:
        """Whether any of them still works.

        Raises:
            TrainingError: one ended with an error, or died too often.
        """


_SERVER = multiprocessing.get_context("forkserver")


def prepare(space: SearchSpace) -> None:
    """Begin to import, in a process of its own, what workers of this machine need; they are forked from it.

    It takes as long for all of them as for one, and goes on while a mistake may still be found.
    """
    if space.workers > 1 and space.executor == "local":
        threads.bound_caches()
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; workers share the cores
        _SERVER.set_forkserver_preload(["harness.sweeps.nursery"])
        forkserver.ensure_running()


class _Processes:
    """Worker processes of this machine; one that is killed is started again, and takes up the trial it left."""

    def __init__(self, space: SearchSpace, arguments: list[str], folder: Path) -> None:
        self._arguments, self._folder, self._gpus = arguments, folder, _gpus()
        self._cores = max(1, threads.share_of_cores() // space.workers)
        self._restarts = _RESTARTS * space.workers
        if 0 < len(self._gpus) < space.workers:
            notes.note(f"{space.workers} workers share {len(self._gpus)} GPUs, and their memory")
        self._running = {number: self._start(number) for number in range(space.workers)}

    def _start(self, number: int) -> BaseProcess:
        told = {"HARNESS_WORKER": str(number), "HARNESS_CORES": str(self._cores)}
        if self._gpus:
            told["CUDA_VISIBLE_DEVICES"] = self._gpus[number % len(self._gpus)]
        worker = _SERVER.Process(target=_forked, args=(self._arguments, os.environ | told, self._log(number)))
        worker.start()
        return worker

    def _log(self, number: int) -> Path:
        return self._folder / f"worker-{number}.log"

    def is_at_work(self) -> bool:
        """Whether any of them still works. Raises TrainingError."""
        for number, process in list(self._running.items()):
            code = process.exitcode
            if code is None:
                continue
            del self._running[number]
            if code < 0 and self._restarts > 0:  # a signal: out of memory on the host, or somebody's kill -9
                self._restarts -= 1
                self._running[number] = self._start(number)
            elif code != 0:
                log = self._log(number)
                raise _failed(f"worker {number} ended with exit code {code}", log, _tail(log))
        return bool(self._running)

    def stop(self) -> None:
        """Ask all to save and stop, and wait for them."""
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for process in self._running.values():
            process.join(max(0.1, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()


def _forked(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """What a forked process is: `launch.py ... --worker` under this environment, writing to its log."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    program = str(PROJECT / "launch.py")
    sys.argv = [program, *arguments, "--worker"]
    runpy.run_path(program, run_name="__main__")


@contextmanager
def local_crew(space: SearchSpace, arguments: list[str], folder: Path) -> Iterator[Crew]:
    """`workers` processes of this machine, which share its cores and GPUs; at the end they are asked to stop."""
    crew = _Processes(space, arguments, folder)
    try:
        yield crew
    finally:
        crew.stop()


class _RayTasks:
    """Workers as Ray tasks: Ray decides on which machine, and gives each its share of cores and GPUs."""

    def __init__(self, ray: Any, space: SearchSpace, arguments: list[str], folder: Path) -> None:
        self._ray, self._folder = ray, folder
        resources = {"num_cpus": space.resources.cpus, "num_gpus": space.resources.gpus}
        task = ray.remote(**resources, max_retries=_RESTARTS)(_ray_worker)
        cores = max(1, int(space.resources.cpus))
        ours = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
        self._waiting = [task.remote(arguments, number, cores, folder, ours) for number in range(space.workers)]

    def is_at_work(self) -> bool:
        """Whether any of them still works. Raises TrainingError."""
        done, self._waiting = self._ray.wait(self._waiting, num_returns=len(self._waiting), timeout=0)
        for reference in done:
            try:
                code, log, tail = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                raise TrainingError("a worker on the Ray cluster failed", why=str(error).splitlines()[0]) from error
            if code != 0:
                raise _failed(f"a worker on the Ray cluster ended with exit code {code}", log, tail)
        return bool(self._waiting)

    def stop(self) -> None:
        """Let Ray end them: each passes SIGTERM on."""
        for reference in self._waiting:
            self._ray.cancel(reference, force=False)
        if self._waiting:
            self._ray.wait(self._waiting, num_returns=len(self._waiting), timeout=_PATIENCE_SECONDS)


def _ray_worker(
    arguments: list[str], number: int, cores: int, folder: Path, passed_on: dict[str, str]
) -> tuple[int, Path, str]:
    """Runs in Ray: one worker process; killed by a signal it is started again. Returns exit code, log, its end."""
    log = folder / f"worker-{number}.log"
    told = {"HARNESS_WORKER": str(number), "HARNESS_CORES": str(cores)}
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | passed_on | told
    code = -1
    for _ in range(_RESTARTS + 1):
        process = _start_worker(arguments, environment, log)
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        if code >= 0:
            break
    return code, log, _tail(log)


def _start_worker(arguments: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROJECT / "launch.py"), *arguments, "--worker"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


@contextmanager
def ray_crew(space: SearchSpace, arguments: list[str], folder: Path) -> Iterator[Crew]:
    """`workers` tasks on the Ray cluster of RAY_ADDRESS, or on one that is started for the study on this machine.

    Raises:
        UserError: ray is not installed, or the cluster can never have these resources.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("ray is not installed", where="executor=ray", fix="pip install -e '.[cluster]'") from None
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        what = "the Ray cluster cannot be reached, or none can be started here"
        raise UserError(what, where="executor=ray", why=str(error), fix="see RAY_ADDRESS and RAY_TMPDIR") from error
    signal.signal(signal.SIGTERM, ours)  # Ray's own ends the process at once
    try:
        _refuse_cluster([node["Resources"] for node in ray.nodes() if node["Alive"]], space)
        crew = _RayTasks(ray, space, arguments, folder)
        try:
            yield crew
        finally:
            crew.stop()
    finally:
        ray.shutdown()


def _refuse_cluster(machines: list[dict[str, float]], space: SearchSpace) -> None:
    """Raise UserError if no machine can ever have a worker, or if they have no storage in common."""
    wanted = {"CPU": space.resources.cpus, "GPU": space.resources.gpus}
    if not any(all(has.get(kind, 0.0) >= count for kind, count in wanted.items()) for has in machines):
        largest = {kind: max((has.get(kind, 0.0) for has in machines), default=0.0) for kind in wanted}
        what = "no machine of the Ray cluster has what a worker asks for: "
        what += " and ".join(
            f"{count:g} {kind}s (at most {largest[kind]:g})" for kind, count in wanted.items() if count
        )
        raise UserError(what, where="resources", fix="ask for less, or join a larger machine")
    if len(machines) > 1 and space.storage is None:
        fix = "name PostgreSQL: storage=postgresql+psycopg://user@host/database"
        raise UserError(f"a journal is for one machine, the Ray cluster has {len(machines)}", where="storage", fix=fix)


def _failed(what: str, log: Path, tail: str) -> TrainingError:
    return TrainingError(what, where=str(log), why=tail, fix="then the same command goes on")


def _tail(log: Path) -> str:
    return "\n       ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])


def _gpus() -> list[str]:
    """The GPUs that workers may share, as CUDA_VISIBLE_DEVICES names them."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
