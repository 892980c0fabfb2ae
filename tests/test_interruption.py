from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import interruption
from harness.errors import Interrupted
from harness.storage import PROJECT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_while_training_a_signal_leaves_a_note(number: int, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    with interruption.listening(), interruption.polled():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # an echo from the launcher
        assert interruption.requested() == code
    assert "finishing this step and saving it" in capfd.readouterr().err


def test_elsewhere_it_ends_what_is_done() -> None:
    with interruption.listening():
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
    with interruption.listening(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_signal_that_is_no_echo_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with interruption.listening(), interruption.polled():
        os.kill(os.getpid(), signal.SIGTERM)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 10)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruption.listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


CHILD = """
import ctypes, os, sys, time
from harness import interruption
with interruption.listening():
    print(os.getpid(), flush=True)
    {waits}
"""
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("launched", [True, False])
def test_a_run_dies_with_its_launcher_but_outlives_a_shell(launched: bool) -> None:
    """F11: `accelerate launch` with one process passes no signal on; a shell may be left."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment |= {"ACCELERATE_MIXED_PRECISION": "no"} if launched else {}
    script = CHILD.format(waits="time.sleep(60)")
    command = [sys.executable, "-c", PARENT, script]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        for _ in range(100):
            if not is_alive(child):
                break
            time.sleep(0.05)
        survived = is_alive(child)
        if survived:
            os.kill(child, signal.SIGKILL)
        assert survived is not launched


@pytest.mark.slow
def test_a_process_that_waits_for_a_dead_one_inside_c_code_is_ended_all_the_same() -> None:
    """Python's handlers run between two bytecodes only; a collective that never returns is none."""
    waits = "interruption._PATIENCE_SECONDS; ctypes.CDLL(None).pthread_barrier_wait(barrier)"
    script = CHILD.format(waits=waits).replace(
        "with interruption",
        "interruption._PATIENCE_SECONDS = 0.5\n"
        "barrier = ctypes.create_string_buffer(64)\n"
        "ctypes.CDLL(None).pthread_barrier_init(barrier, None, 2)\n"
        "with interruption",
        1,
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "WORLD_SIZE": "2"}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 143
        assert "a process that this one waits for does not answer" in errors
