"""What workers are forked from: nothing in it hinders them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_SCRIPT = """
import gc, os, signal, sys, threading
import harness.sweeps.nursery as nursery

assert threading.active_count() == 1, threading.enumerate()
assert all(name in sys.modules for name in nursery._NEEDED)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
assert gc.get_freeze_count() > 100_000
import torch
assert not torch.cuda.is_initialized()
forked = os.fork()
if not forked:  # OpenMP's threads do not survive a fork if there were any
    signal.alarm(60)
    torch.set_num_threads(2)
    layer = torch.nn.Linear(512, 512)
    layer(torch.randn(512, 512)).relu().sum().backward()
    os._exit(0 if layer.weight.grad.isfinite().all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
"""


def test_a_forked_process_computes_with_several_threads() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
