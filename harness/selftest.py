"""Proves on one's own spec, data, model and machine that the engine keeps its promises there: `harness selftest`.

    resume          a run that is stopped after every step takes the steps of one that never was
    cut             however a batch is cut into micro-batches, the gradient is that of the uncut batch
    out of memory   a step in which memory runs out is the step of a run that planned the smaller cut
    start, off      a method starts at the pretrained model; at strength zero a step is one without it
    merge           merged weights predict what the unmerged model does
    processes       two processes take the steps of one

Bit for bit means so on a CPU. On a GPU, where some kernels add in an order that changes, two outcomes of the same steps
may differ by `ON_GPU` of the way from the start.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import (
    checkpoint,
    data,
    deployment,
    device,
    processes,
    seeding,
    spec,
    storage,
    surgery,
    threads,
    yaml_source,
)  # fmt: skip
from harness.assembly import Assembled
from harness.batch import Batch
from harness.checkpoint import Checkpoints, Snapshot
from harness.console import Terminal
from harness.data import Splits
from harness.errors import Interrupted, TrainingError, UserError
from harness.evaluate import Evaluator
from harness.fingerprint import Statement
from harness.method import Backward
from harness.spec import Spec
from harness.tracker import Tracker
from harness.train import Training
from harness.trial import BOUNDLESS, NUM_STEPS, Alone, Outcome, Trial, take

ON_GPU = 1e-2
"""Norm of the difference of two outcomes, as a share of the norm of what the steps changed."""
GRADIENT = {"no": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""Largest difference of two gradients, as a share of the largest entry, by precision."""
IN_FLOAT64 = 1e-9
"""The same where float32 alone differs by more."""
LOGITS = {"no": 1e-4, "fp16": 1e-2, "bf16": 1e-1}
"""Largest difference that merging may make."""
_NOISE = 0.02
START = {"no": 1e-6, "fp16": 1e-2, "bf16": 1e-1}
"""Largest difference of logits where a method promises to start at the pretrained model."""
PROCESSES = 1e-5
"""Largest difference of a weight or loss between one process and two, in float64."""
PATIENCE_SECONDS = 180.0
"""How long two processes may take."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    ok: bool | None
    """None: it does not apply, or could not be made; `detail` says why."""
    detail: str
    difference: float | None = None
    """The largest that was found."""
    tolerance: float | None = None
    where: str = ""
    """The tensor, or the step, with the largest difference."""

    @property
    def mark(self) -> str:
        """`ok`, `FAILED`, or `??` where there was nothing to see."""
        return {True: "ok", False: "FAILED", None: "??"}[self.ok]

    @property
    def line(self) -> str:
        """The finding in one line."""
        if self.difference is None:
            return f"{self.mark:6}  {self.check}: {self.detail}"
        at = f" at {self.where}" if self.where else ""
        found = f"largest difference {self.difference:.2g}{at}, allowed {self.tolerance:g}"
        return f"{self.mark:6}  {self.check}: {self.detail}; {found}"


def judged(check: str, detail: str, found: tuple[float, str], tolerance: float) -> Finding:
    """The finding of a difference and where it was."""
    difference, where = found
    return Finding(check, difference <= tolerance, detail, difference, tolerance, where if difference else "")


def has_failed(findings: list[Finding]) -> bool:
    """Whether any check did."""
    return any(finding.ok is False for finding in findings)


def report(findings: list[Finding]) -> dict[str, Any]:
    """The findings as values that JSON can hold."""
    checks = [asdict(finding) for finding in findings]
    for values in checks:
        if values["difference"] is not None and not values["difference"] < float("inf"):
            values["difference"] = str(values["difference"])
    return {"passed": not has_failed(findings), "checks": checks}


def run(chosen: Spec, say: Callable[[Finding], None]) -> list[Finding]:
    """Every check, on the spec's data, model and first seed, in the spec's precision; `say` hears each as it ends.

    Raises:
        UserError: whatever would keep the spec from running at all.
    """
    accelerator = processes.build_accelerator(device.resolve_precision(chosen.precision, lambda notice: None))
    device.use_all_cores(lambda notice: None)
    device.use_fast_matmul(lambda notice: None)
    trial = Trial(chosen, data.load(chosen.data), accelerator, chosen.seeds[0])
    return examine(trial, {**CHECKS, "1 process = 2": two_processes}, say)


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
        trial = Trial(chosen, splits, Alone(accelerator), seed)
        findings = examine(trial, CHECKS, lambda finding: terminal.say(finding.line))
        trial.release()
        seeding.restore(before)
        device.reset_peak_memory()
        storage.write_json(folder / "selftest.json", report(findings))
        tracker.tags({"selftest": "failed" if has_failed(findings) else "passed"})
        failed = "\n  ".join(finding.line for finding in findings if finding.ok is False)
    if failed := processes.gather(accelerator, failed)[0]:
        fix = "nothing was trained; `harness selftest` repeats it, provenance.selftest=false leaves it out"
        raise TrainingError("the selftest failed", where="provenance.selftest", why=failed, fix=fix)


Check = Callable[[Trial], list[Finding]]


def examine(trial: Trial, checks: Mapping[str, Check], say: Callable[[Finding], None]) -> list[Finding]:
    """Make the checks one after the other; one that breaks has failed, and the others are made all the same."""
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            found = check(trial)
        except (UserError, Interrupted):
            raise
        except Exception as error:
            told = str(error).splitlines() or [""]
            found = [Finding(name, False, f"{type(error).__name__}: {told[0]}")]
        for finding in found:
            say(finding)
        findings += found
    return findings


def largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference of any entry, and the name of its tensor; infinite if names differ or it is NaN."""
    if odd := found.keys() ^ expected.keys():
        return float("inf"), min(odd)
    worst = 0.0, ""
    for name, tensor in expected.items():
        difference = float((found[name].double() - tensor.double()).abs().max()) if tensor.numel() else 0.0
        difference = difference if difference == difference else float("inf")  # NaN
        worst = max(worst, (difference, name))
    return worst


def same_steps(check: str, detail: str, trial: Trial, found: Outcome, expected: Outcome) -> Finding:
    """Whether two ways to take the same steps end alike: bit for bit on a CPU, within `ON_GPU` elsewhere."""
    losses = largest(_by_step(found.losses), _by_step(expected.losses))
    if trial.accelerator.device.type == "cpu":
        apart = max(losses, largest(found.weights, expected.weights))
        return judged(check, f"{detail}, bit for bit", apart, 0.0)
    moved = _norm(expected.weights, expected.start)
    share = _norm(found.weights, expected.weights) / moved if moved else float("inf")
    apart = max(losses, (share, largest(found.weights, expected.weights)[1]))
    return judged(check, f"{detail}, as a share of what they change", apart, ON_GPU)


def _by_step(losses: list[float]) -> dict[str, Tensor]:
    return {f"the loss of step {n}": torch.tensor(loss, dtype=torch.float64) for n, loss in enumerate(losses, 1)}


def _norm(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squares = [(tensor.double() - other[name].double()).square().sum() for name, tensor in one.items()]
    return math.sqrt(float(sum(squares)))


# --------------------------------------------------------------------------------------------------------------- resume


def resume(trial: Trial) -> list[Finding]:
    """Steps without a stop against steps that are each taken by a new model, from the checkpoint of the one before."""
    _, expected = trial.trained
    statement = Statement(trial.spec, trial.seed, "selftest", trial.loaded, trial.accelerator, None)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        before = Checkpoints(Path(place) / "0", 1, statement)
        for number in range(1, NUM_STEPS + 1):
            assembled, training = _go_on(trial, before)
            losses += take(training, 1)
            before = Checkpoints(Path(place) / str(number), 1, statement)
            before.save(_snapshot(assembled, training, number))
            shutil.rmtree(Path(place) / str(number - 1), ignore_errors=True)
        assembled, _ = _go_on(trial, before)
    found = Outcome(losses, expected.start, checkpoint.trained_state(assembled.model))
    detail = f"{NUM_STEPS} steps in 2 epochs, stopped after each and read back from a checkpoint"
    return [same_steps("resume = uninterrupted", detail, trial, found, expected)]


def _snapshot(assembled: Assembled, training: Training, number: int) -> Snapshot:
    progress = {"training": training.state(), "random": seeding.to_json(seeding.capture())}
    return Snapshot(number, checkpoint.trained_state(assembled.model), training.optimizer_state(), {}, progress)


def _go_on(trial: Trial, checkpoints: Checkpoints) -> tuple[Assembled, Training]:
    """A new model where the newest checkpoint left it, or at its start."""
    assembled = trial.fresh()
    training = trial.training(assembled)
    if snapshot := checkpoints.newest():
        checkpoint.restore(assembled.model, snapshot.trained)
        training.load_state(snapshot.optimizer, snapshot.progress["training"])
        seeding.restore(seeding.from_json(snapshot.progress["random"]))
    return assembled, training


# ------------------------------------------------------------------------------------------------------------------ cut


def cuts(trial: Trial) -> list[Finding]:
    """The gradient of one batch, computed whole by torch alone and cut by the engine, after some steps."""
    check, (assembled, _) = "any cut = one batch", trial.trained
    surgery.disable_dropout(assembled.model)
    batch = trial.batch(assembled)
    if _draws_anew(trial, assembled, batch):
        return [Finding(check, None, _ANEW)]
    precision = trial.accelerator.mixed_precision
    detail, worst = _worst_cut(trial, assembled, batch)
    if precision == "no" and worst[0] > GRADIENT[precision]:  # AWP's direction amplifies what is rounded
        assembled.model.double()
        detail, exact = _worst_cut(trial, assembled, batch)
        assembled.model.float()
        return [judged(check, f"{detail}, in float64 (in float32 rounding makes {worst[0]:.2g})", exact, IN_FLOAT64)]
    return [judged(check, detail, worst, GRADIENT[precision])]


def _worst_cut(trial: Trial, assembled: Assembled, batch: Batch) -> tuple[str, tuple[float, str]]:
    """What was compared, and the largest difference as a share of the largest entry of the whole gradient."""
    expected = _gradient(assembled, _uncut(trial, assembled, batch))
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    tokens = len(batch) * int(batch.lengths.max())
    worst, numbers = (0.0, ""), list[str]()
    for budget in (tokens, tokens // 2, tokens // 4, 1):
        training = trial.training(assembled, budget)
        training.exact.load(batch)
        difference, where = largest(_gradient(assembled, training.backward), expected)
        numbers.append(str(training.exact.num_micro_batches))
        worst = max(worst, (difference / scale, f"{where}, {numbers[-1]} micro-batches"))
    shown = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    return f"gradient of {len(batch)} rows in {shown} micro-batches, without dropout", worst


_ANEW = "does not apply: beside dropout something draws anew in every forward (as mixout does with scope: forward)"


def _draws_anew(trial: Trial, assembled: Assembled, batch: Batch) -> bool:
    """Whether two gradients of the uncut batch differ although dropout is off."""
    first, second = (_gradient(assembled, _uncut(trial, assembled, batch)) for _ in range(2))
    scale = max(float(gradient.abs().max()) for gradient in first.values())
    return largest(first, second)[0] > GRADIENT[trial.accelerator.mixed_precision] * scale


def _uncut(trial: Trial, assembled: Assembled, batch: Batch) -> Backward:
    """The gradient of the whole batch by one forward and one backward, through the methods."""

    def whole() -> Tensor:
        for parameter in assembled.model.parameters():
            parameter.grad = None
        with trial.accelerator.autocast():
            loss: Tensor = trial.task.loss(assembled.model, batch.to(trial.accelerator.device), trial.task.count(batch))
        trial.accelerator.backward(loss)
        return loss.detach()

    backward: Backward = whole
    for method in assembled.methods.values():
        backward = method.wrap_backward(backward, assembled.model)
    return backward


def _gradient(assembled: Assembled, backward: Backward) -> dict[str, Tensor]:
    assembled.model.train()
    for method in assembled.methods.values():
        method.start_step(0)
    backward()
    named = assembled.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


# -------------------------------------------------------------------------------------------------------- out of memory


class _Shortage:
    """Memory that runs out in the backward of whatever is larger than half of the first micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        self.limit = self.tokens = self.count = 0
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.hooks: list[Any] = [parameter.register_hook(self._fail) for parameter in trained]
        self.hooks.append(model.register_forward_pre_hook(self._see, with_kwargs=True))

    def _see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim > 1]
        self.tokens = max(x.shape[0] * x.shape[1] for x in inputs)
        self.limit = self.limit or self.tokens // 2

    def _fail(self, gradient: Tensor) -> None:
        if self.tokens > self.limit:
            self.count += 1
            raise torch.OutOfMemoryError("out of memory (selftest)")

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()


def out_of_memory(trial: Trial) -> list[Finding]:
    """A step in which memory runs out and one more, against the same two with the smaller cut from the start."""
    check, assembled = "out of memory = planned cut", trial.fresh()
    start = checkpoint.trained_state(assembled.model)
    training = trial.training(assembled, BOUNDLESS)
    shortage = _Shortage(assembled.model)
    losses = take(training, 1)
    shortage.end()
    budget = training.exact.micro_batch_tokens
    found = Outcome(losses + take(training, 1), start, checkpoint.trained_state(assembled.model))
    if not shortage.count:
        return [Finding(check, False, "memory never ran out, though the test made it")]
    planned = trial.fresh()
    losses = take(trial.training(planned, budget), 2)
    expected = Outcome(losses, start, checkpoint.trained_state(planned.model))
    detail = f"2 steps, the first without memory for more than {shortage.limit} tokens, with dropout"
    return [same_steps(check, detail, trial, found, expected)]


# ----------------------------------------------------------------------------------------------------------- start, off


def strength(trial: Trial) -> list[Finding]:
    """Every method at its start, and those that have one at their strength zero."""
    methods, check = trial.methods, "start = pretrained"
    if not methods:
        return [Finding("start = pretrained", None, "does not apply: full fine-tuning has no methods")]
    promised = {name: method for name, method in methods.items() if method.starts_pretrained}
    rest = f" ({', '.join(methods.keys() - promised.keys())} does not promise it)" if promised != methods else ""
    if promised:
        found, expected = (_logits(trial, trial.fresh(chosen)) for chosen in (promised, {}))
        tolerance = START[trial.accelerator.mixed_precision]
        findings = [judged(check, f"logits under {', '.join(promised)}{rest}", largest(found, expected), tolerance)]
    else:
        findings = [Finding(check, None, f"does not apply{rest}")]
    for name, method in methods.items():
        if (off := method.off()) is not None:
            without = {other: m for other, m in trial.methods.items() if other != name}
            outcomes = [trial.steps(trial.fresh(m), 2) for m in ({**trial.methods, name: off}, without)]
            check, detail = f"{name} at zero = off", f"2 steps against those without {name}"
            findings.append(same_steps(check, detail, trial, *outcomes))
    return findings


def _logits(trial: Trial, assembled: Assembled) -> dict[str, Tensor]:
    predictions = _evaluator(trial).predict_alone(assembled.model, trial.task, "test")
    return {"logits": torch.from_numpy(predictions.scores)}


def _evaluator(trial: Trial) -> Evaluator:
    return Evaluator(trial.accelerator, lambda notice: None)


# ---------------------------------------------------------------------------------------------------------------- merge


def merge(trial: Trial) -> list[Finding]:
    """The merged copy of the trained model against that model, on a few test texts."""
    check, (assembled, _) = "merged = unmerged", trial.trained
    if not assembled.merges:
        return [Finding(check, None, "does not apply: no method of this spec can be merged")]
    _stir(assembled.model, trial.seed)
    evaluator = _evaluator(trial)
    before = evaluator.predict_alone(assembled.model, trial.task, "test")
    merged = deployment.merged(assembled)
    changes = deployment.merge_changes(trial.task, assembled.model, merged, before, evaluator)
    flips = int(changes["merge/label_flips"])
    detail = f"logits of {len(before.labels)} texts after {NUM_STEPS} steps and some noise, {flips} labels flipped"
    apart = changes["merge/max_logit_difference"], "a logit"
    found = judged(check, detail, apart, LOGITS[trial.accelerator.mixed_precision])
    may_flip = trial.accelerator.mixed_precision != "no"
    return [dataclasses.replace(found, ok=found.ok and (may_flip or not flips))]


@torch.no_grad()
def _stir(model: nn.Module, seed: int) -> None:
    """Move what trains further than a few steps do, so that an update that gets lost shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * _NOISE)


CHECKS: Mapping[str, Check] = {
    "resume = uninterrupted": resume,
    "any cut = one batch": cuts,
    "out of memory = planned cut": out_of_memory,
    "start = pretrained": strength,
    "merged = unmerged": merge,
}


# ------------------------------------------------------------------------------------------------------------ processes


def two_processes(trial: Trial, patience: float = PATIENCE_SECONDS) -> list[Finding]:
    """The same steps in one process and in two on this CPU, in float64: what differs is not rounding."""
    check, number = "1 process = 2", NUM_STEPS - 1
    if reason := _why_not_two():
        return [Finding(check, None, f"not made: {reason}")]
    assembled = trial.fresh(dropout=False)
    if _draws_anew(trial, assembled, trial.batch(assembled)):
        return [Finding(check, None, _ANEW)]
    with tempfile.TemporaryDirectory() as place:
        folder, is_here = Path(place), _is_plain(trial.accelerator)
        storage.write_text(folder / "spec.yaml", yaml_source.dump({**trial.whole.resolved(), "seeds": [trial.seed]}))
        if is_here:
            _write(_in_float64(trial), folder, 1, 0)
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


def _in_float64(trial: Trial) -> Outcome:
    assembled = trial.fresh(dropout=False)
    assembled.model.double()
    return trial.steps(assembled, NUM_STEPS - 1)


def _write(outcome: Outcome, folder: Path, world: int, rank: int) -> None:
    storage.write_tensors(folder / f"{world}-{rank}.safetensors", {**outcome.weights, **_by_step(outcome.losses)})


def _launch(folder: Path, world: int, patience: float) -> str:
    """Let so many processes work; returns what went wrong, "" if nothing. None of them outlives the call."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    search = os.pathsep.join([str(storage.PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    share = {"OMP_NUM_THREADS": str(max(1, threads.share_of_cores() // world)), "OMP_WAIT_POLICY": "PASSIVE"}
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = {**os.environ, **share, **loopback, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": search}
    command = [*torchrun, "-m", "harness.selftest", str(folder)]
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
        trial = Trial(chosen, data.load(chosen.data), accelerator, chosen.seeds[0])
        _write(_in_float64(trial), folder, world, rank)
        processes.wait(accelerator)
    except Exception as error:
        told = str(error).splitlines() or [""]
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {told[0]}", encoding="utf-8")
        raise


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # gloo aborts at exit now and then
