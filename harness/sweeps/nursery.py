"""What the workers of a study import, imported once: they are forked from a process that has loaded this module.

Nothing here may start a thread of its own or touch a GPU: neither survives a fork.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal

from harness.tracking import mlflow_store

_NEEDED = (
    "harness.run",
    "harness.sweeps.sampling",
    "harness.sweeps.worker",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "tokenizers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)

for _signal in (signal.SIGTERM, signal.SIGUSR1):  # sent to all of a job: the workers answer, this process outlives them
    signal.signal(_signal, signal.SIG_IGN)
for _name, _value in mlflow_store.ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
for _module in _NEEDED:
    importlib.import_module(_module)
gc.collect()
gc.freeze()  # pages that nobody writes to are shared with every worker
