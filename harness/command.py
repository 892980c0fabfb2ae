"""The command line of `launch.py`: exp=<spec>, flags, and overrides. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

from harness import spec, threads
from harness.errors import HarnessError, Interrupted, SpecError, did_you_mean

HELP = """\
Run an experiment, tracked in MLflow.

  accelerate launch launch.py exp=lora_adapter                      one experiment
  accelerate launch launch.py exp=lora_adapter seeds=[0,1,2]        the same, three replicates
  accelerate launch launch.py exp=lora train.learning_rate=1e-3     any setting, by its dotted key
  accelerate launch launch.py exp=full_finetune data.name=my.csv data.text=review data.label=stars
  python launch.py exp=lora --plan                                  what would happen; trains nothing
  python launch.py exp=lora --smoke                                 two steps of everything, under a minute

Options
  exp=NAME        the experiment: {names}
  KEY=VALUE       override a setting (`harness show NAME` lists them all);  ~KEY removes one, such as ~methods.lora
  --plan          show the resolved spec, data, parameters, steps and memory, and stop   (--json for programs)
  --smoke         a few rows, two steps, evaluation, save, reload, latency
  --debug         show Python's traceback for errors as well
  --help          this text
"""
FLAGS = ("--plan", "--json", "--smoke", "--debug", "--help")

SMOKE = [
    "train.max_steps=2", "train.warmup_steps=0", "train.batch_size=12", "data.limit=24", "data.max_test_overlap=1.0",
    "evaluation.baselines=false", "latency.batch_sizes=[1,2]", "latency.lengths=[8,16]", "latency.runs=10",
    "evaluation.every=1 steps", "tracking.experiment=smoke",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run `launch.py` with these arguments; returns the exit code (errors.py lists them)."""
    speaks = os.environ.get("RANK", "0") == "0"
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _main(arguments)
    except HarnessError as error:
        if speaks:
            print(_labelled(error), file=sys.stderr)
            if "--debug" in arguments:
                traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; a run that had begun is recorded as KILLED", file=sys.stderr)
        return 130


def _terminate(number: int, frame: Any) -> None:
    raise Interrupted(143)


def _labelled(error: HarnessError) -> str:
    told = str(error).splitlines() if isinstance(error, SpecError) and not error.fix else []
    count = sum(not line.startswith("  ") for line in told) or 1  # what is indented says why
    return f"error: {error}" if count == 1 else f"{count} errors:\n{error}"


def _main(arguments: list[str]) -> int:
    flags = [argument for argument in arguments if argument.startswith("-")]
    words = [argument for argument in arguments if not argument.startswith("-")]
    if "--help" in flags or "-h" in flags or not arguments:
        print(HELP.format(names=", ".join(spec.names())))
        return 0 if arguments else 2
    for flag in flags:
        if flag not in FLAGS:
            raise SpecError(f"no option {flag}", fix=did_you_mean(flag, FLAGS))
    for word in words:
        if word.startswith("sweep="):
            raise SpecError("sweeps are not available in this version", where=word, fix="run the experiment alone")
    chosen = [word.removeprefix("exp=") for word in words if word.startswith("exp=")]
    if len(chosen) != 1:
        raise SpecError("name exactly one experiment", fix=f"exp=<name>; known: {', '.join(spec.names())}")
    overrides = [word for word in words if not word.startswith("exp=")]
    if "--smoke" in flags:
        overrides = [*SMOKE, *overrides]
    resolved = spec.load(chosen[0], overrides)
    if "--plan" in flags:
        from harness import plan

        made = plan.make(resolved)
        print(json.dumps(made, indent=2, ensure_ascii=False) if "--json" in flags else plan.render(made))
        return 0
    threads.choose_wait_policy()
    from harness.run import run

    run(resolved)
    return 0
