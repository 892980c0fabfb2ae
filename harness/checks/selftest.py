"""Proves on one's own spec, data, model and machine that the engine keeps its promises there: `harness selftest`.

Bit for bit means so on a CPU. On a GPU, where some kernels add in an order that changes, two outcomes of the same steps
may differ by `rehearsal.ON_GPU` of what the steps changed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from harness import assembly, seeding, storage
from harness.checks.findings import Finding, has_failed, judged, largest, report
from harness.checks.proofs import CHECKS, DRAWS_ANEW, Check, draws_anew
from harness.checks.rehearsal import NUM_STEPS, Alone, Outcome, Rehearsal, by_step
from harness.console import Terminal
from harness.data import dataset
from harness.data.dataset import Splits
from harness.errors import Interrupted, TrainingError, UserError
from harness.machine import device, processes, threads
from harness.specs import spec, yaml_source
from harness.specs.schema import Spec
from harness.tracking.tracker import Tracker

PROCESSES = 1e-5
"""Largest difference of a weight or loss between one process and two, in float64."""
PATIENCE_SECONDS = 180.0
"""How long two processes may take."""


def run(chosen: Spec, say: Callable[[Finding], None]) -> list[Finding]:
    """Every check, on the spec's data, model and first seed, in the spec's precision; `say` hears each as it ends.

    Raises:
        UserError: whatever would keep the spec from running at all.
    """
    accelerator = processes.build_accelerator(device.resolve_precision(chosen.precision, lambda notice: None))
    device.use_all_cores(lambda notice: None)
    device.use_fast_matmul(lambda notice: None)
    rehearsal = Rehearsal(chosen, _splits(chosen), accelerator, chosen.seeds[0])
    return examine(rehearsal, {**CHECKS, "1 process = 2": two_processes}, say)


def _splits(spec: Spec) -> Splits:
    return dataset.load(spec.data, assembly.task_of(spec).labelling)


def precede(
    chosen: Spec, seed: int, splits: Splits, accelerator: Accelerator, folder: Path, tracker: Tracker,
    terminal: Terminal,
) -> None:  # fmt: skip
    """Before a run's training, where `provenance.selftest` asks for it: every check that takes one process.

    Writes selftest.json into the run's folder and tags the run. Leaves generators, scaler and folder as a run without
    it finds them.

    Raises:
        TrainingError: a check failed, on all processes.
    """
    if not chosen.provenance.selftest:
        return
    failed = ""
    if accelerator.is_main_process:
        before = seeding.capture()
        terminal.say("\nselftest")
        rehearsal = Rehearsal(chosen, splits, Alone(accelerator), seed)
        findings = examine(rehearsal, CHECKS, lambda finding: terminal.say(finding.line))
        rehearsal.release()
        seeding.restore(before)
        device.reset_peak_memory()
        storage.write_json(folder / "selftest.json", report(findings))
        tracker.tags({"selftest": "failed" if has_failed(findings) else "passed"})
        failed = "\n  ".join(finding.line for finding in findings if finding.ok is False)
    if failed := processes.gather(accelerator, failed)[0]:
        fix = "nothing was trained; `harness selftest` repeats it, provenance.selftest=false leaves it out"
        raise TrainingError("the selftest failed", where="provenance.selftest", why=failed, fix=fix)


def examine(rehearsal: Rehearsal, checks: Mapping[str, Check], say: Callable[[Finding], None]) -> list[Finding]:
    """Make the checks one after the other; one that breaks has failed, and the others are made all the same."""
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            found = check(rehearsal)
        except (UserError, Interrupted):
            raise
        except Exception as error:
            told = str(error).splitlines() or [""]
            found = [Finding(name, False, f"{type(error).__name__}: {told[0]}")]
        for finding in found:
            say(finding)
        findings += found
    return findings


def two_processes(rehearsal: Rehearsal, patience: float = PATIENCE_SECONDS) -> list[Finding]:
    """The same steps in one process and in two on this CPU, in float64: what differs is not rounding."""
    check, number = "1 process = 2", NUM_STEPS - 1
    if reason := _why_not_two():
        return [Finding(check, None, f"not made: {reason}")]
    assembled = rehearsal.fresh(dropout=False)
    if draws_anew(rehearsal, assembled, rehearsal.batch(assembled)):
        return [Finding(check, None, DRAWS_ANEW)]
    with tempfile.TemporaryDirectory() as place:
        folder, is_here = Path(place), _is_plain(rehearsal.accelerator)
        storage.write_text(
            folder / "spec.yaml", yaml_source.dump({**rehearsal.whole.resolved(), "seeds": [rehearsal.seed]})
        )
        if is_here:
            _write(_in_float64(rehearsal), folder, 1, 0)
        for world in (2,) if is_here else (1, 2):
            if problem := _launch(folder, world, patience):
                return [Finding(check, False, problem)]
        expected = load_file(folder / "1-0.safetensors")
        apart = max(largest(load_file(folder / f"2-{rank}.safetensors"), expected) for rank in (0, 1))
    detail = f"{number} steps of two processes on this CPU, without dropout, in float64"
    return [judged(check, detail, apart, PROCESSES)]


def _why_not_two() -> str:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        return "this torch has no gloo"
    return "this is already one of several processes" if "WORLD_SIZE" in os.environ else ""


def _is_plain(accelerator: Accelerator) -> bool:
    """Whether it computes as the two processes do: on the CPU, nothing narrowed."""
    return bool(accelerator.device.type == "cpu" and accelerator.mixed_precision == "no")


def _in_float64(rehearsal: Rehearsal) -> Outcome:
    assembled = rehearsal.fresh(dropout=False)
    assembled.model.double()
    return rehearsal.steps(assembled, NUM_STEPS - 1)


def _write(outcome: Outcome, folder: Path, world: int, rank: int) -> None:
    storage.write_tensors(folder / f"{world}-{rank}.safetensors", {**outcome.weights, **by_step(outcome.losses)})


def _launch(folder: Path, world: int, patience: float) -> str:
    """Let so many processes work; returns what went wrong, "" if nothing. None of them outlives the call."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    search = os.pathsep.join([str(storage.PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    share = {"OMP_NUM_THREADS": str(max(1, threads.share_of_cores() // world)), "OMP_WAIT_POLICY": "PASSIVE"}
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = {**os.environ, **share, **loopback, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": search}
    command = [*torchrun, "-m", "harness.checks.selftest", str(folder)]
    with (folder / "told").open("w+", encoding="utf-8", errors="replace") as told:
        started = subprocess.Popen(command, env=environment, stdout=told, stderr=told)
        try:
            code = started.wait(patience)
        except subprocess.TimeoutExpired:
            return f"{world} processes did not end in {patience:g} seconds"
        finally:
            _end(started)
        told.seek(0)
        return f"{world} processes: {_reason(folder, told.read(), code)}" if code else ""


def _end(started: subprocess.Popen[bytes]) -> None:
    """End the launcher, which ends what it started; it may need half a minute for processes that do not answer."""
    if started.poll() is None:
        started.terminate()
    try:
        started.wait(40)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


def _reason(folder: Path, told: str, code: int) -> str:
    """Why a worker ended: by a signal, or in its own words; that another one was lost is no reason."""
    codes = [int(found) for found in re.findall(r"exitcode\s*:\s*(-?\d+)", told)]
    if killed := [found for found in codes if found < 0 and found != -signal.SIGTERM]:  # which the launcher sends
        return f"one was ended by signal {-killed[0]}"
    words = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.error"))]
    words.sort(key=lambda word: "lost another process" in word)
    return words[0] if words else f"ended with exit code {next(iter(codes), code)}"


def work(folder: Path) -> None:
    """One of the processes: read the spec, take the steps, write what came of them."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        accelerator = processes.build_accelerator("no")
        device.use_all_cores(lambda notice: None)
        chosen = spec.reload(folder / "spec.yaml", {})
        rehearsal = Rehearsal(chosen, _splits(chosen), accelerator, chosen.seeds[0])
        _write(_in_float64(rehearsal), folder, world, rank)
        processes.wait(accelerator)
    except Exception as error:
        told = str(error).splitlines() or [""]
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {told[0]}", encoding="utf-8")
        raise


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # gloo aborts at exit now and then
