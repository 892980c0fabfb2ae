"""Run an experiment.  accelerate launch launch.py exp=lora_adapter train.learning_rate=1e-3 seeds=[0,1,2]"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once by OpenMP: threads that spin slow each other many-fold

from harness.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
