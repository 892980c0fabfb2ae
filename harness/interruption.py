"""Signals that ask a run to stop: SIGTERM (exit code 143), SIGINT (130), and SIGUSR1 for preemption (75).

While training they only leave a note, which is read between two steps, so that a checkpoint can be saved; elsewhere
they raise. A second signal, more than three seconds after the first, ends the run at once: launchers pass on what the
terminal has sent already, and such an echo is not a second wish.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from harness.errors import Interrupted

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}
_ECHO_SECONDS = 3.0
_PATIENCE_SECONDS = 20.0
"""How long a process among several may take to answer: it may be waiting for one that is gone. Launchers kill at 30."""
_PR_SET_PDEATHSIG = 1
_LAUNCHED = ("ACCELERATE_MIXED", "TORCHELASTIC_", "HARNESS_WORKER")
"""Variables that launchers, and a study that has workers, set for their processes."""


class _State:
    exit_code = 0
    since = 0.0
    is_polled = False


def requested() -> int:
    """The exit code that was asked for; 0 as long as nobody did."""
    return _State.exit_code


@contextmanager
def polled() -> Iterator[None]:
    """Inside, the first signal is noted only: ask `requested()` at moments where stopping loses nothing."""
    _State.is_polled = True
    try:
        yield
    finally:
        _State.is_polled = False


@contextmanager
def listening() -> Iterator[None]:
    """Inside, the signals are ours, and the death of the launcher counts as SIGTERM; afterwards they are as before."""
    _State.exit_code, _State.is_polled = 0, False
    before = {number: signal.signal(number, _handle) for number in EXIT_CODES}
    _follow_launcher(True)
    stop = _watch() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    try:
        yield
    finally:
        if stop:
            stop()
        _follow_launcher(False)
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.exit_code = 0


def _handle(number: int, frame: FrameType | None) -> None:
    is_first, now = _State.exit_code == 0, time.monotonic()
    if is_first:
        _State.exit_code, _State.since = EXIT_CODES[signal.Signals(number)], now
        _follow_launcher(False)  # it may die now, having passed the signal on
        if _State.is_polled:
            _say(
                f"{signal.Signals(number).name}: finishing this step and saving it; wait for the line that begins with "
                f"'resume' (a second signal, {_ECHO_SECONDS:.0f} s after this one, ends the run at once)"
            )
    if (is_first and _State.is_polled) or (not is_first and now - _State.since < _ECHO_SECONDS):
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Interrupted(EXIT_CODES[signal.Signals(number)])


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


def _follow_launcher(follows: bool) -> None:
    """Ask Linux for SIGTERM when the launcher dies: `accelerate launch` with one process passes no signal on.

    Only below a launcher, or as the worker of a study: started from a shell a run may outlive it.
    """
    if sys.platform == "linux" and any(name.startswith(_LAUNCHED) for name in os.environ):
        libc: Any = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM) if follows else 0)


def _watch() -> Any:
    """End this process if it does not answer a signal, because its main thread waits for another process."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        if os.read(reader, 1) == b"\0":  # written below: the run is over
            return
        time.sleep(_PATIENCE_SECONDS)
        if _State.exit_code == 0:  # Python's handler never ran
            _say("stopped: a process that this one waits for does not answer")
            os._exit(143)

    threading.Thread(target=wait, name="interruption", daemon=True).start()

    def stop() -> None:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")

    return stop
