"""Train, validate as often as the spec says, stop early, keep the best checkpoint, and lose nothing when stopped."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from harness import checkpoint, evaluate, interruption, seeding, train
from harness.assembly import Assembled
from harness.checkpoint import Checkpoints, Snapshot
from harness.console import Terminal
from harness.curves import Curves
from harness.errors import Interrupted, Stopped, StorageError, TrainingError
from harness.machine import processes
from harness.metric import History, Metric
from harness.progress import Pace, ProgressLine
from harness.specs.schema import Spec
from harness.storage import RunLock
from harness.task import Task
from harness.tracking.tracker import Tracker

SAVE_ATTEMPTS = 3
"""A run ends when so many checkpoints in a row could not be saved."""


@dataclass
class Selected:
    """The best checkpoint of a run, and how it was found."""

    history: History = field(default_factory=lambda: defaultdict(list))
    score: float | None = None
    step: int = 0
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    num_steps: int = 0
    num_examples: int = 0
    train_seconds: float = 0.0
    num_out_of_memory: int = 0
    seconds_lost: float = 0.0
    seconds_before: float = 0.0
    """What the run took in processes before this one, up to the checkpoint it goes on from."""
    is_done: bool = False
    """Whether training is over: nothing is left but to judge the best checkpoint."""

    @property
    def best_scores(self) -> dict[str, float]:
        """The validation scores of the best checkpoint."""
        found = {key: dict(points) for key, points in self.history.items() if key.startswith("validation/")}
        return {key: points[self.step] for key, points in found.items() if self.step in points}


@dataclass(frozen=True)
class Oversight:
    """Who looks at a run from outside, and may end it early (a study's pruner)."""

    report: Callable[[dict[str, float], int], str]
    """Called on the first process after each validation with its scores and its number, from 1; returns why the run
    should end, or ""."""
    seconds: float | None = None
    """The run ends when it took longer than this."""
    of_seed: Callable[[int, list[dict[str, float]]], Oversight | None] = lambda number, before: None
    """For the n-th of several seeds, given the scores of those before it. Raises Stopped."""


class Selection:
    """One run's training: `Training` yields steps, this decides what follows each."""

    def __init__(
        self, spec: Spec, task: Task, assembled: Assembled, metrics: dict[str, Metric[Any]],
        accelerator: Accelerator, tracker: Tracker, terminal: Terminal,
        checkpoints: Checkpoints | None = None, lock: RunLock | None = None,
        evaluator: evaluate.Evaluator | None = None, oversight: Oversight | None = None,
    ) -> None:  # fmt: skip
        """`checkpoints` and `lock` are those of the first process; the others have none."""
        self.spec, self.task, self.assembled, self.metrics = spec, task, assembled, metrics
        self.accelerator, self.tracker, self.terminal = accelerator, tracker, terminal
        self.checkpoints, self.lock, self.oversight = checkpoints, lock, oversight
        self.curves = Curves(tracker)
        self.evaluator = evaluator or evaluate.Evaluator(accelerator, terminal.say)
        self.found = Selected(self.curves.history)
        self.per_epoch = task.num_batches(spec.train.batch_size)
        self.total = spec.train.total_steps(self.per_epoch)
        self.failed_saves = 0
        self.saved_at = self.clock = self.begun = time.monotonic()

    def select(self, seed: int, snapshot: Snapshot | None = None) -> Selected:
        """Take steps until the end or until nothing got better for the patience; `seed` orders the examples.

        Args:
            seed: of the order of the examples.
            snapshot: where to go on, on every process; None: from the beginning.

        Raises:
            TrainingError: the loss or the gradient is not finite, memory does not suffice, a process is gone.
            StorageError: several checkpoints in a row could not be saved.
            Interrupted: as asked for by a signal, with a checkpoint saved.
            Stopped: by its oversight.
        """
        model = self.assembled.model.to(self.accelerator.device)
        generator = torch.Generator().manual_seed(seed)
        methods, settings = list(self.assembled.methods.values()), self.spec.train
        say = self.terminal.say
        self.training = train.Training(model, self.task, methods, settings, self.accelerator, generator, say)
        every = self.spec.checkpoint.every.seconds
        self.training.agreement.is_save_due = lambda: every is not None and time.monotonic() - self.saved_at >= every
        if self.oversight and (limit := self.oversight.seconds) is not None:
            self.training.agreement.is_time_over = lambda: self._seconds() > limit
        self._same_start(seed)
        if snapshot is not None:
            self._restore(snapshot)
            self.curves.tell()
        with interruption.polled():
            for _ in range(settings.max_nonfinite):
                try:
                    found = self._train()
                    break
                except train.NonFinite as error:
                    if settings.nonfinite != "rollback":
                        raise
                    self._roll_back(error)
            else:
                found = self._train()
        if (code := interruption.requested()) and self.accelerator.num_processes == 1:
            raise Interrupted(code)  # it came after the last look
        return found

    def _train(self) -> Selected:
        if not self.found.is_done:
            with self._line() as line:
                self.clock = time.monotonic()
                for step in self.training.steps():
                    self._note(step)
                    line.take(step.number, step.loss, step.num_tokens, step.learning_rate)
                    is_over = self._follow(step)
                    line.followed(self._score_at(step.number))
                    if is_over:
                        break
            self.found.is_done = True
            self._save(self.found.num_steps)
        if code := self.training.agreement.reach().exit_code:
            raise Interrupted(code, is_agreed=True)
        return self.found

    def _line(self) -> ProgressLine:
        """The progress line, from where the training stands."""
        metric, begun = self.spec.early_stopping.metric, self.training.progress.number
        pace = Pace(self.total, self.per_epoch, self.spec.evaluation.every.steps(self.per_epoch))
        score = next((score for _, score in reversed(self.found.history[metric])), None)
        return ProgressLine(self.terminal, pace, metric, step=begun, score=score)

    def _score_at(self, step: int) -> float | None:
        """The score that selects, of the validation after this step; None: there was none."""
        at, score = next(reversed(self.found.history[self.spec.early_stopping.metric]), (0, 0.0))
        return score if at == step else None

    def _follow(self, step: train.Step) -> bool:
        """What follows a step: validation, checkpoint, a stop that was asked for; returns whether training is over."""
        is_last, agreed = step.number == self.total, self.training.agreement.agreed
        is_over, why = is_last, ""
        if is_last or step.number % self.spec.evaluation.every.steps(self.per_epoch) == 0:
            self._log()
            self.found.train_seconds += time.monotonic() - self.clock
            why = self._validate(step)
            self.clock = time.monotonic()
            is_over = self._is_out_of_patience(step) or is_last
            agreed = self.training.agreement.reach()  # validating took its time
        self.found.is_done = is_over
        if agreed.exit_code:
            self._save(step.number, goes_on=False)
            raise Interrupted(agreed.exit_code, is_agreed=True)
        if why and not is_over:
            raise Stopped(why)
        if agreed.stop and not is_over:
            raise Stopped(f"out of time after {step.number} steps", is_infeasible=True)
        every = self.spec.checkpoint.every
        if not is_over and (agreed.save or (every.seconds is None and step.number % every.steps(self.per_epoch) == 0)):
            self._save(step.number)
        return is_over

    def _note(self, step: train.Step) -> None:
        self.found.num_steps, self.found.num_examples = step.number, self.found.num_examples + step.num_examples
        if self.curves.add(step):
            self._log()

    def _log(self) -> None:
        """Hand the values of the waiting steps to the tracker."""
        self.curves.flush()
        at = self.training.progress
        if at.num_out_of_memory > self.found.num_out_of_memory:
            lost = {"oom/events": float(at.num_out_of_memory), "oom/seconds_lost": at.seconds_lost}
            self.curves.record(lost, self.found.num_steps)
            self.found.num_out_of_memory, self.found.seconds_lost = at.num_out_of_memory, at.seconds_lost
        if self.lock:
            self.lock.touch()

    def _validate(self, step: train.Step) -> str:
        """Score the validation split; keep the weights if it is the best so far. Returns why the run should end."""
        predictions = self.evaluator.predict(self.assembled.model, self.task, "validation")
        scores = evaluate.score(predictions, self.metrics, "validation")
        self.curves.record(scores, step.number)
        stopping = self.spec.early_stopping
        score, sign = scores[stopping.metric], 1 if stopping.direction == "maximize" else -1
        if not math.isfinite(score):
            what = f"{stopping.metric} is {score} at step {step.number}"
            raise train.NonFinite(what, fix="lower train.learning_rate")
        is_better = self.found.score is None or sign * score > sign * self.found.score
        if is_better:
            self.found.score, self.found.step, self.found.epoch = score, step.number, step.epoch
            self.found.state = checkpoint.trained_state(self.assembled.model)
        best = "  best so far" if is_better else ""
        self.terminal.say(f"epoch {step.epoch}  step {step.number}  {stopping.metric} {score:.4f}{best}")
        if not self.oversight:
            return ""
        number, is_first = len(self.found.history[stopping.metric]), self.accelerator.is_main_process
        return str(processes.from_first(self.accelerator, self.oversight.report(scores, number) if is_first else ""))

    def _is_out_of_patience(self, step: train.Step) -> bool:
        patience = self.spec.early_stopping.patience
        is_out = patience is not None and step.number - self.found.step >= patience.steps(self.per_epoch)
        if is_out and step.number < self.total:
            self.terminal.say(f"stopped early: nothing better for {patience}")
        return is_out

    # Checkpoints

    def _save(self, step: int, *, goes_on: bool = True) -> None:
        """Save a checkpoint on the first process, with the generators of all. Raises StorageError at the third failure.

        A disk that is full now may have room later: the run goes on, on the checkpoint it has.
        """
        self._log()
        random_states = processes.gather(self.accelerator, seeding.to_json(seeding.capture()))
        self.found.train_seconds += time.monotonic() - self.clock
        problem = ""
        if self.checkpoints:
            try:
                self.checkpoints.save(self._snapshot(step, random_states))
            except StorageError as error:
                problem = str(error)
        problem = processes.from_first(self.accelerator, problem)
        self.saved_at = self.clock = time.monotonic()
        self.failed_saves = self.failed_saves + 1 if problem else 0
        if not problem:
            if not goes_on:
                self.terminal.say(f"saved the checkpoint of step {step}")
            return
        if self.failed_saves >= SAVE_ATTEMPTS and goes_on:
            raise StorageError(f"{SAVE_ATTEMPTS} checkpoints in a row could not be saved", why=problem)
        what = f"training goes on ({self.failed_saves} of {SAVE_ATTEMPTS} failures)" if goes_on else "nothing was saved"
        self.terminal.say(f"NOTE {problem}\n  {what}")

    def _snapshot(self, step: int, random_states: list[Any]) -> Snapshot:
        found = {key: value for key, value in vars(self.found).items() if key != "state"}
        progress: dict[str, Any] = {"training": self.training.state(), "selected": found, "random": random_states}
        progress["evaluation_tokens"] = self.evaluator.tokens
        progress["seconds"] = self._seconds()
        trained = checkpoint.trained_state(self.assembled.model)
        return Snapshot(step, trained, self.training.optimizer_state(), self.found.state, progress)

    def _restore(self, snapshot: Snapshot) -> None:
        """Go on where the snapshot was taken."""
        checkpoint.restore(self.assembled.model, snapshot.trained)
        self.training.load_state(snapshot.optimizer, snapshot.progress["training"])
        selected = {key: value for key, value in snapshot.progress["selected"].items() if key != "history"}
        self.curves.restore(snapshot)
        self.found = Selected(self.curves.history, state=snapshot.best, **selected)
        self.found.seconds_before, self.begun = snapshot.progress["seconds"], time.monotonic()
        self.evaluator.tokens = snapshot.progress["evaluation_tokens"]
        states = snapshot.progress["random"]
        if self.accelerator.process_index < len(states):
            seeding.restore(seeding.from_json(states[self.accelerator.process_index]))
        if len(states) != self.accelerator.num_processes:
            now = self.accelerator.num_processes
            self.terminal.say(f"NOTE {len(states)} processes became {now}: dropout draws other masks from here on")

    def _roll_back(self, error: TrainingError) -> None:
        """Put the newest checkpoint back. Raises the error if there is none."""
        found = self.checkpoints.newest() if self.checkpoints else None
        snapshot = processes.from_first(self.accelerator, found)
        if snapshot is None:
            raise train.NonFinite(error.what, why="there is no checkpoint yet to go back to", fix=error.fix)
        self.terminal.say(f"NOTE {error.what}: computing again from the checkpoint of step {snapshot.step}")
        self._restore(snapshot)
        self.curves.compute_again()

    def _seconds(self) -> float:
        """What the run took so far, in all its processes one after the other."""
        return self.found.seconds_before + time.monotonic() - self.begun

    def _same_start(self, seed: int) -> None:
        """Give every process its own dropout masks, and make sure that all hold the same weights.

        Raises:
            TrainingError: they do not: nobody broadcasts weights, every process makes them from the same seed.
        """
        if self.accelerator.num_processes == 1:
            return
        state = checkpoint.trained_state(self.assembled.model)
        sums = processes.gather(self.accelerator, [float(tensor.double().sum()) for tensor in state.values()])
        if any(own != sums[0] for own in sums):
            raise TrainingError("the processes do not start with the same weights", fix="use the same versions on all")
        if self.accelerator.process_index:
            seeding.seed_everything((seed + 7919 * self.accelerator.process_index) % 2**32)
