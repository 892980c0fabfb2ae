"""Every experiment against full fine-tuning: train what has not been trained yet, then print the table.

    python benchmarks/methods.py                          # or: make methods
    python benchmarks/methods.py --seeds 0 --only lora awp train.epochs=1

Each run is a process of its own, so that its peak memory is its own. `harness table` prints the table again. Stopping
and starting again goes on with what is missing. With seeds 0, 1 and 2 it takes hours on a laptop.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from harness import spec, table
from harness.storage import PROJECT


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=spec.names(), choices=spec.names(), metavar="EXPERIMENT")
    parser.add_argument("--output", default="mlruns", help="the folder of runs, relative to the project")
    parser.add_argument("overrides", nargs="*", help="key=value, given to every run")
    chosen = parser.parse_intermixed_args()
    folder = PROJECT / chosen.output
    for seed in chosen.seeds:  # seed by seed: the first full table is there after the first round
        for name in chosen.only:
            wanted = label(name, chosen.overrides)
            if not any((row.experiment, row.seed) == (wanted, seed) for row in table.read(folder)):
                train(name, [f"seeds=[{seed}]", f"output={chosen.output}", "latency.measure=false", *chosen.overrides])
    rows = [row for row in table.read(folder) if row.experiment in {label(n, chosen.overrides) for n in chosen.only}]
    print(table.render(rows))


def label(name: str, overrides: list[str]) -> str:
    """What the table calls an experiment under these overrides."""
    return table.label(spec.load(name, overrides).resolved())


def train(name: str, overrides: list[str]) -> None:
    """One run; its failure ends the program with its exit code."""
    print(f"exp={name} {' '.join(overrides)}", file=sys.stderr, flush=True)
    command = [sys.executable, str(PROJECT / "launch.py"), f"exp={name}", *overrides]
    code = subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
