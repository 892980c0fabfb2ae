"""Kill a training twenty times at random moments, resume it each time, and compare with one that was left alone.

    python benchmarks/soak.py [--kills 20] [--seed 0] [exp=lora] [key=value ...]

Prints one line per kill (when, at which step, what was lost), and whether weights, predictions and curves are those of
the uninterrupted run, bit for bit. SIGKILL cannot be caught: what is not on the disk is lost. It does not test a loss
of power, because the system's page cache survives.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = [
    "train.batch_size=16", "train.epochs=6", "data.limit=240", "checkpoint.every=3 steps", "evaluation.every=10 steps",
    "latency.measure=false", "evaluation.baselines=false", "early_stopping.patience=null",
]  # fmt: skip


def start(output: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """The training, as a process of its own; what it says goes into a log beside the folder."""
    command = [sys.executable, "launch.py", *arguments, f"output={output}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    log = (output.parent / f"{output.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)


def run_folder(output: Path) -> Path | None:
    """The folder of the run, once there is one."""
    return next(iter((output / "runs").glob("*-s*")), None) if (output / "runs").is_dir() else None


def newest(output: Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    folder = run_folder(output)
    names = [path.name for path in (folder / "checkpoints").glob("step-*")] if folder else []
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def outcome(output: Path) -> dict[str, str]:
    """Digests of what the run left, the curves in MLflow among it: every point once."""
    folder = run_folder(output)
    assert folder is not None
    query = """select key, step, value from metrics where (key like 'train/%' or key like 'validation/%')
               and key not like '%per_second' order by 1, 2, 3"""
    with closing(sqlite3.connect(output / "mlflow.db")) as database:
        points = database.execute(query).fetchall()
    files = {name: (folder / name).read_bytes() for name in ("weights/trained.safetensors", "test/predictions.csv")}
    kept = files | {f"{len(points)} points of the curves in MLflow": json.dumps(points).encode()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}


def kill_at(output: Path, arguments: list[str], delay: float) -> bool:
    """Start, and kill after so many seconds beyond the first sign of training; returns whether it lived so long."""
    process = start(output, arguments)
    before, begun = newest(output), None
    while process.poll() is None:
        is_training = (folder := run_folder(output)) is not None and (folder / "start.envelope.json").exists()
        if begun is None and is_training and (newest(output) != before or before == 0):
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun >= delay:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.02)
    return False


def main() -> int:
    """Run the soak; exit code 0 if everything is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options, rest = parser.parse_known_args()
    experiment = [*(rest if any(word.startswith("exp=") for word in rest) else ["exp=lora_mixout_awp", *rest])]
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        begun = time.monotonic()
        assert start(whole, [*experiment, *SETTINGS]).wait() == 0, (Path(folder) / "whole.log").read_text()[-2000:]
        expected = outcome(whole)
        print(f"uninterrupted: {time.monotonic() - begun:.0f} s", flush=True)
        kills = 0
        while True:
            found = run_folder(broken)
            arguments = ["--resume", found.name] if found else [*experiment, *SETTINGS]
            if kills == options.kills:
                code = start(broken, arguments).wait()
                assert code == 0, (Path(folder) / "broken.log").read_text()[-2000:]
                break
            delay = generator.uniform(0, 5)
            assert kill_at(broken, arguments, delay), (Path(folder) / "broken.log").read_text()[-2000:]
            kills += 1
            left = sorted(path.name for path in (run_folder(broken) or broken).glob("checkpoints/.tmp*"))
            note = f", a save was under way ({left[0]})" if left else ""
            print(
                f"kill {kills:2}: {delay:4.1f} s into training; checkpoint of step {newest(broken)}{note}", flush=True
            )
        same = outcome(broken) == expected
        for name, digest in outcome(broken).items():
            print(f"{'same' if expected.get(name) == digest else 'DIFFERENT'}  {name}  {digest[:16]}")
        print(f"{kills} kills: {'bit-identical' if same else 'NOT the same'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
