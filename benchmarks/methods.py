"""Every experiment with the task, data and model of full fine-tuning against it: train what is missing, compare.

    python benchmarks/methods.py                          # or: make methods
    python benchmarks/methods.py --seeds 0 --only lora awp train.epochs=1

Each run is a process of its own, so that its peak memory is its own. `harness compare` compares again. Stopping and
starting again goes on with what is missing. With seeds 0, 1 and 2 it takes hours on a laptop.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from harness.compare import rendering, runs, systems
from harness.compare.comparison import compare
from harness.errors import SpecError
from harness.specs import spec
from harness.storage import PROJECT


def comparable() -> list[str]:
    """The experiments that learn the same from the same as `full_finetune`."""
    learnt = {
        name: [found[section] for section in ("task", "data", "model")]
        for name in spec.names()
        if (found := spec.load(name).resolved())
    }
    return [name for name, own in learnt.items() if own == learnt["full_finetune"]]


def main() -> None:
    """Train what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=comparable(), choices=spec.names(), metavar="EXPERIMENT")
    parser.add_argument("--output", default="mlruns", help="the folder of runs, relative to the project")
    parser.add_argument("overrides", nargs="*", help="key=value, given to every run")
    chosen = parser.parse_intermixed_args()
    folder = PROJECT / chosen.output
    labels = {name: runs.label(spec.load(name, chosen.overrides).resolved()) for name in chosen.only}
    for seed in chosen.seeds:  # seed by seed: the first full table is there after the first round
        for name, label in labels.items():
            if (label, seed) not in trained(folder):
                train(name, [f"seeds=[{seed}]", f"output={chosen.output}", "latency.measure=false", *chosen.overrides])
    rendering.show(*compare(list(labels.values()), folder))


def trained(folder: Path) -> set[tuple[str, int]]:
    """Label and seed of every finished run."""
    try:
        return {(system.label, seed) for system in systems.find([], folder).systems for seed in system.entries}
    except SpecError:
        return set()


def train(name: str, overrides: list[str]) -> None:
    """One run; its failure ends the program with its exit code."""
    print(f"exp={name} {' '.join(overrides)}", file=sys.stderr, flush=True)
    command = [sys.executable, str(PROJECT / "launch.py"), f"exp={name}", *overrides]
    code = subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
