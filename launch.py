"""Run an experiment.  accelerate launch launch.py exp=lora_adapter train.learning_rate=1e-3 seeds=[0,1,2]"""

from __future__ import annotations

import sys

from harness.cli.launching import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
