"""The engine's promises that one process can prove on a rehearsal of a spec.

resume          a run that is stopped after every step takes the steps of one that never was
cut             however a batch is cut into micro-batches, the gradient is that of the uncut batch
out of memory   a step in which memory runs out is the step of a run that planned the smaller cut
start, off      a method starts at the pretrained model; at strength zero a step is one without it
merge           merged weights predict what the unmerged model does
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import checkpoint, seeding
from harness.assembly import Assembled
from harness.batch import Batch
from harness.checkpoint import Checkpoints, Snapshot
from harness.checks.findings import Finding, judged, largest
from harness.checks.rehearsal import BOUNDLESS, NUM_STEPS, Outcome, Rehearsal, same_steps, take
from harness.evaluate import Evaluator
from harness.fingerprint import Statement
from harness.method import Backward
from harness.models import surgery
from harness.results import deployment
from harness.train import Training

GRADIENT = {"no": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""Largest difference of two gradients, as a share of the largest entry, by precision."""
IN_FLOAT64 = 1e-9
"""The same where float32 alone differs by more."""
START = {"no": 1e-6, "fp16": 1e-2, "bf16": 1e-1}
"""Largest difference of logits where a method promises to start at the pretrained model."""
LOGITS = {"no": 1e-4, "fp16": 1e-2, "bf16": 1e-1}
"""Largest difference that merging may make."""
_NOISE = 0.02

Check = Callable[[Rehearsal], list[Finding]]


# --------------------------------------------------------------------------------------------------------------- resume


def resume(rehearsal: Rehearsal) -> list[Finding]:
    """Steps without a stop against steps that are each taken by a new model, from the checkpoint of the one before."""
    _, expected = rehearsal.trained
    name = "selftest"
    statement = Statement(rehearsal.spec, rehearsal.seed, name, rehearsal.loaded, rehearsal.accelerator, None)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        before = Checkpoints(Path(place) / "0" / name, 1, statement)
        for number in range(1, NUM_STEPS + 1):
            assembled, training = _go_on(rehearsal, before)
            losses += take(training, 1)
            before = Checkpoints(Path(place) / str(number) / name, 1, statement)
            before.save(_snapshot(assembled, training, number))
            shutil.rmtree(Path(place) / str(number - 1), ignore_errors=True)
        assembled, _ = _go_on(rehearsal, before)
    found = Outcome(losses, expected.start, checkpoint.trained_state(assembled.model))
    detail = f"{NUM_STEPS} steps in 2 epochs, stopped after each and read back from a checkpoint"
    return [same_steps("resume = uninterrupted", detail, rehearsal, found, expected)]


def _snapshot(assembled: Assembled, training: Training, number: int) -> Snapshot:
    progress = {"training": training.state(), "random": seeding.to_json(seeding.capture())}
    return Snapshot(number, checkpoint.trained_state(assembled.model), training.optimizer_state(), {}, progress)


def _go_on(rehearsal: Rehearsal, checkpoints: Checkpoints) -> tuple[Assembled, Training]:
    """A new model where the newest checkpoint left it, or at its start."""
    assembled = rehearsal.fresh()
    training = rehearsal.training(assembled)
    if snapshot := checkpoints.newest():
        checkpoint.restore(assembled.model, snapshot.trained)
        training.load_state(snapshot.optimizer, snapshot.progress["training"])
        seeding.restore(seeding.from_json(snapshot.progress["random"]))
    return assembled, training


# ------------------------------------------------------------------------------------------------------------------ cut


def cuts(rehearsal: Rehearsal) -> list[Finding]:
    """The gradient of one batch, computed whole by torch alone and cut by the engine, after some steps."""
    check, (assembled, _) = "any cut = one batch", rehearsal.trained
    surgery.disable_dropout(assembled.model)
    batch = rehearsal.batch(assembled)
    if draws_anew(rehearsal, assembled, batch):
        return [Finding(check, None, DRAWS_ANEW)]
    precision = rehearsal.accelerator.mixed_precision
    detail, worst = _worst_cut(rehearsal, assembled, batch)
    if precision == "no" and worst[0] > GRADIENT[precision]:  # AWP's direction amplifies what is rounded
        assembled.model.double()
        detail, exact = _worst_cut(rehearsal, assembled, batch)
        assembled.model.float()
        return [judged(check, f"{detail}, in float64 (in float32 rounding makes {worst[0]:.2g})", exact, IN_FLOAT64)]
    return [judged(check, detail, worst, GRADIENT[precision])]


def _worst_cut(rehearsal: Rehearsal, assembled: Assembled, batch: Batch) -> tuple[str, tuple[float, str]]:
    """What was compared, and the largest difference as a share of the largest entry of the whole gradient."""
    expected = _gradient(assembled, _uncut(rehearsal, assembled, batch))
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    tokens = len(batch) * int(batch.lengths.max())
    worst, numbers = (0.0, ""), list[str]()
    for budget in (tokens, tokens // 2, tokens // 4, 1):
        training = rehearsal.training(assembled, budget)
        training.exact.load(batch)
        difference, where = largest(_gradient(assembled, training.backward), expected)
        numbers.append(str(training.exact.num_micro_batches))
        worst = max(worst, (difference / scale, f"{where}, {numbers[-1]} micro-batches"))
    shown = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    return f"gradient of {len(batch)} rows in {shown} micro-batches, without dropout", worst


DRAWS_ANEW = "does not apply: beside dropout something draws anew in every forward (as mixout does with scope: forward)"


def draws_anew(rehearsal: Rehearsal, assembled: Assembled, batch: Batch) -> bool:
    """Whether two gradients of the uncut batch differ although dropout is off."""
    first, second = (_gradient(assembled, _uncut(rehearsal, assembled, batch)) for _ in range(2))
    scale = max(float(gradient.abs().max()) for gradient in first.values())
    return largest(first, second)[0] > GRADIENT[rehearsal.accelerator.mixed_precision] * scale


def _uncut(rehearsal: Rehearsal, assembled: Assembled, batch: Batch) -> Backward:
    """The gradient of the whole batch by one forward and one backward, through the methods."""

    def whole() -> Tensor:
        for parameter in assembled.model.parameters():
            parameter.grad = None
        with rehearsal.accelerator.autocast():
            loss: Tensor = rehearsal.task.loss(
                assembled.model, batch.to(rehearsal.accelerator.device), rehearsal.task.count(batch)
            )
        rehearsal.accelerator.backward(loss)
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


def out_of_memory(rehearsal: Rehearsal) -> list[Finding]:
    """A step in which memory runs out and one more, against the same two with the smaller cut from the start."""
    check, assembled = "out of memory = planned cut", rehearsal.fresh()
    start = checkpoint.trained_state(assembled.model)
    training = rehearsal.training(assembled, BOUNDLESS)
    shortage = _Shortage(assembled.model)
    losses = take(training, 1)
    shortage.end()
    budget = training.exact.micro_batch_tokens
    found = Outcome(losses + take(training, 1), start, checkpoint.trained_state(assembled.model))
    if not shortage.count:
        return [Finding(check, False, "memory never ran out, though the test made it")]
    planned = rehearsal.fresh()
    losses = take(rehearsal.training(planned, budget), 2)
    expected = Outcome(losses, start, checkpoint.trained_state(planned.model))
    detail = f"2 steps, the first without memory for more than {shortage.limit} tokens, with dropout"
    return [same_steps(check, detail, rehearsal, found, expected)]


# ----------------------------------------------------------------------------------------------------------- start, off


def strength(rehearsal: Rehearsal) -> list[Finding]:
    """Every method at its start, and those that have one at their strength zero."""
    methods, check = rehearsal.methods, "start = pretrained"
    if not methods:
        return [Finding("start = pretrained", None, "does not apply: full fine-tuning has no methods")]
    promised = {name: method for name, method in methods.items() if method.starts_pretrained}
    rest = f" ({', '.join(methods.keys() - promised.keys())} does not promise it)" if promised != methods else ""
    if promised:
        found, expected = (_logits(rehearsal, rehearsal.fresh(chosen)) for chosen in (promised, {}))
        tolerance = START[rehearsal.accelerator.mixed_precision]
        findings = [judged(check, f"logits under {', '.join(promised)}{rest}", largest(found, expected), tolerance)]
    else:
        findings = [Finding(check, None, f"does not apply{rest}")]
    for name, method in methods.items():
        if (off := method.off()) is not None:
            without = {other: m for other, m in rehearsal.methods.items() if other != name}
            outcomes = [rehearsal.steps(rehearsal.fresh(m), 2) for m in ({**rehearsal.methods, name: off}, without)]
            check, detail = f"{name} at zero = off", f"2 steps against those without {name}"
            findings.append(same_steps(check, detail, rehearsal, *outcomes))
    return findings


def _logits(rehearsal: Rehearsal, assembled: Assembled) -> dict[str, Tensor]:
    predictions = _evaluator(rehearsal).predict_alone(assembled.model, rehearsal.task, "test")
    return {"logits": torch.from_numpy(predictions.values)}


def _evaluator(rehearsal: Rehearsal) -> Evaluator:
    return Evaluator(rehearsal.accelerator, lambda notice: None)


# ---------------------------------------------------------------------------------------------------------------- merge


def merge(rehearsal: Rehearsal) -> list[Finding]:
    """The merged copy of the trained model against that model, on a few test texts."""
    check, (assembled, _) = "merged = unmerged", rehearsal.trained
    if not assembled.merges:
        return [Finding(check, None, "does not apply: no method of this spec can be merged")]
    _stir(assembled.model, rehearsal.seed)
    evaluator = _evaluator(rehearsal)
    before = evaluator.predict_alone(assembled.model, rehearsal.task, "test")
    merged = deployment.merged(assembled)
    changes = deployment.merge_changes(rehearsal.task, assembled.model, merged, before, evaluator)
    flips = int(changes["merge/label_flips"])
    detail = f"logits of {len(before.rows)} texts after {NUM_STEPS} steps and some noise, {flips} labels flipped"
    apart = changes["merge/max_logit_difference"], "a logit"
    found = judged(check, detail, apart, LOGITS[rehearsal.accelerator.mixed_precision])
    may_flip = rehearsal.accelerator.mixed_precision != "no"
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
