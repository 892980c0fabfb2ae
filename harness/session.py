"""What the runs of one process share: device, keys, data, terminal; and how each of them is begun and ended."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from harness import assembly, storage, train
from harness.assembly import Loaded
from harness.console import Terminal
from harness.data import dataset
from harness.errors import Interrupted, Stopped, TrainingError, UnusableRun, UserError
from harness.fingerprint import Statement
from harness.machine import device, processes
from harness.signing import keys, ledger
from harness.specs import changes
from harness.specs.schema import Spec
from harness.storage import RunLock
from harness.tracking import stores
from harness.tracking.tracker import Tracker


@dataclass(frozen=True)
class Session:
    """What the runs of one process share."""

    spec: Spec
    loaded: Loaded
    accelerator: Accelerator
    key: keys.Key | None
    keyring: list[keys.Key]
    """What authenticates the statements and checkpoints of a run that goes on."""
    output: Path
    terminal: Terminal
    yardsticks: list[dict[str, Any]] = field(default_factory=list)
    """Scores of the baselines, filled by the first run: they depend on the data only."""
    loss_scale: dict[str, Any] = field(default_factory=dict)
    """Where the scaler of fp16 begins, for every run anew."""
    insecure: bool = False
    """Go on from checkpoints that are not signed with a key of the keyring."""
    tags: dict[str, str] = field(default_factory=dict)
    """Facts to search by, for every run."""
    is_resumed: bool = False
    """Runs were begun before, maybe on another machine, which is known to be gone: the tracker looks for them."""
    known: dict[str, Loaded] = field(default_factory=dict)
    """Data that was read and turned into tokens, by what decides them."""

    def of(self, spec: Spec, *, tags: dict[str, str], terminal: Terminal) -> Session:
        """The same for another spec; data that was read for the same task and model is not read again.

        Raises:
            DataError, ModelError, SpecError: as `assembly.load` does.
        """
        loaded = assembly.load(spec, self.known)
        return replace(self, spec=spec, loaded=loaded, tags=tags, terminal=terminal)

    @contextmanager
    def all_processes(self) -> Iterator[None]:
        """Inside, work; afterwards all processes end together, also when they were asked to stop."""
        try:
            yield
        except Interrupted as error:
            if error.is_agreed:  # a launcher ends the others as soon as one is gone: the first one needs time
                with suppress(TrainingError):
                    processes.wait(self.accelerator)
            raise
        if self.accelerator.num_processes > 1:
            processes.wait(self.accelerator)
            self.accelerator.end_training()

    # A run of it

    def same_name(self, name: str) -> str:
        """The first process's name for the run, on all."""
        return str(processes.from_first(self.accelerator, name))

    def enter(self, statement: Statement, kind: str, folder: Path) -> None:
        """Enter the latest statement in the ledger of all runs."""
        ledger.append(self.output, ledger.Entry(statement.latest, kind, folder.name))

    def start_tracker(self, name: str, parent: str | None = None, *, is_resumed: bool = False) -> Tracker:
        """The run's tracker on the first process; one that records nothing on the others."""
        spec, folder = self.spec, self.output / "runs" / name
        if not self.accelerator.is_main_process:
            return Tracker()
        tags = {"spec": spec.name, "methods": "+".join(spec.methods) or "full_finetune", "folder": str(folder)}
        return stores.start(
            spec.tracking, self.output, spec.name, name,
            parent=parent, tags=tags | self.tags, note=changes.story(spec),
            resume=is_resumed or self.is_resumed,
        )  # fmt: skip

    @contextmanager
    def working(self, name: str, tracker: Tracker, *, of_group: bool = False) -> Iterator[RunLock | None]:
        """Hold the run's lock, and tell the tracker how the run ended, and the person how it goes on, whatever happens.

        `of_group`: who goes on with the group goes on with this run; nothing is said about it.
        """
        lock = RunLock(self.output, name) if self.accelerator.is_main_process else None
        if lock:
            lock.acquire(is_gone=self.is_resumed)
        status, can_go_on = "FAILED", True
        try:
            yield lock
            status, can_go_on = "FINISHED", False
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        except Stopped as error:
            status, can_go_on = "KILLED", False
            tracker.tags({"ended": error.what})
            raise
        except (UserError, UnusableRun, train.NonFinite):  # it would end the same way again
            can_go_on = False
            raise
        finally:
            tracker.finish(status)
            if lock:
                lock.release()
            if status != "FINISHED" and not of_group and (self.output / "runs" / name).is_dir():
                self._say_unfinished(name, tracker, status, can_go_on)

    def _say_unfinished(self, name: str, tracker: Tracker, status: str, can_go_on: bool) -> None:
        """Where a run is that did not end, and how it goes on; said in quiet runs, too."""
        self.terminal.say(f"\nrun     {name}, {status}, MLflow id {tracker.run_id or 'none: not recorded'}")
        self.terminal.say(f"folder  {self.output / 'runs' / name}")
        if tracker.problem:
            self.terminal.say(f"NOTE    {tracker.problem}")
        if can_go_on:
            self.terminal.say(f"resume  {self.resume_command(name)}", always=True)

    def resume_command(self, name: str) -> str:
        """How a run of this name goes on, launched as this process was."""
        place = [] if self.spec.output == "mlruns" else [f"output={self.spec.output}"]
        return f"{self.launch_command} " + shlex.join(["--resume", name, *place])

    @property
    def launch_command(self) -> str:
        """How this process was launched, by which launcher and with which path, or a like one is."""
        number, script = self.accelerator.num_processes, sys.argv[0]
        launch = "accelerate launch" if processes.is_from_accelerate() else shlex.quote(sys.orig_argv[0])
        if number > 1:
            cpu = "ACCELERATE_USE_CPU=true " if self.accelerator.device.type == "cpu" else ""
            launch = f"{cpu}accelerate launch --multi_gpu --num_processes {number}"
        return f"{launch} {shlex.quote(script) if Path(script).name == 'launch.py' else 'launch.py'}"


def begin(spec: Spec, insecure: bool = False, *, quiet: bool = False) -> Session:
    """Key, folder, device and data; `quiet`: of them, only notes are said.

    Raises:
        UserError: there is no signing key although one is required; or as `assembly.load` does.
        StorageError: nothing can be written into the folder of runs.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    keyring = keys.load_keyring() if is_first else []
    key = keys.take_key() if is_first else None
    keys.forget()
    if spec.provenance.require_signature and is_first and key is None:
        fix = "make one with `harness keygen`, or name it in HARNESS_SIGNING_KEY_FILE"
        raise UserError("there is no signing key", where="provenance.require_signature", fix=fix)
    output = storage.writable(storage.PROJECT / spec.output)
    terminal = Terminal(is_first, quiet=quiet)
    accelerator = processes.build_accelerator(device.resolve_precision(spec.precision, terminal.say))
    device.use_all_cores(terminal.say)
    device.use_fast_matmul(terminal.say)
    known: dict[str, Loaded] = {}
    loaded = assembly.load(spec, known)
    terminal.say(dataset.describe(loaded.splits))
    tokens = (f"{split} {t['tokens']:,} ({t['truncated']} rows truncated)" for split, t in loaded.tokens.items())
    terminal.say(f"tokens: {', '.join(tokens)}")
    scale = accelerator.scaler.state_dict() if accelerator.scaler else {}
    return Session(
        spec, loaded, accelerator, key, keyring, output, terminal, loss_scale=scale, insecure=insecure, known=known
    )
