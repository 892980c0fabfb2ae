"""The command line of `launch.py`: exp=<spec>, flags, and overrides. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import interruption, storage
from harness.errors import HarnessError, Interrupted, SpecError, UserError, did_you_mean
from harness.machine import threads
from harness.specs import explaining, spec
from harness.specs.schema import Spec
from harness.storage import RunLock
from harness.sweeps import space
from harness.tracking.stores import REHEARSALS

HELP = """\
Run an experiment, tracked in MLflow.

  accelerate launch launch.py exp=lora_adapter                      one experiment
  accelerate launch launch.py exp=lora_adapter seeds=[0,1,2]        the same, three replicates
  accelerate launch launch.py exp=lora train.learning_rate=1e-3     any setting, by its dotted key
  accelerate launch launch.py exp=full_finetune data.name=my.csv data.text=review data.label=stars
  accelerate launch launch.py exp=lora sweep=lora_rank              a study of a search space, against full fine-tuning
  python launch.py exp=lora --plan                                  what would happen; trains nothing
  python launch.py exp=lora --smoke                                 two steps of everything, under a minute

Options
  exp=NAME        the experiment: {names}
  KEY=VALUE       override a setting (`harness show NAME` lists them all);  ~KEY removes one, such as ~methods.lora
  sweep=SPACE     a study: {spaces}; its keys stand beside those of the spec, such as
                  trials=8 workers=2 storage=postgresql+psycopg://user@host/database; the same command goes on with it
  --plan          show the resolved spec, data, parameters, steps and memory, and stop
  --smoke         a few rows, two steps, evaluation, save, reload, latency
  --resume RUN    go on with a run that was stopped, by its name or folder: same run, same statements, same weights
                  (--insecure accepts checkpoints that are not signed with your key)
  --quiet         the score in one line, or a study's verdict, on stdout; notes, warnings and errors on stderr
  --json          for programs: one JSON object on stdout (of --plan, of the finished run, or a study's report),
                  everything else on stderr
  --debug         show Python's traceback for errors as well
  --help          this text
"""
atexit.register(gc.freeze)  # else Python looks through all it has imported for garbage as it ends: two seconds
FLAGS = ("--plan", "--json", "--quiet", "--smoke", "--resume", "--insecure", "--debug", "--worker", "--help")
_PLACES = ("output", "tracking.uri")

SMOKE = [
    "train.max_steps=2", "train.warmup_steps=0", "train.batch_size=12", "data.limit=24", "data.max_test_overlap=1.0",
    "evaluation.baselines=false", "latency.batch_sizes=[1,2]", "latency.lengths=[8,16]", "latency.runs=10",
    "evaluation.every=1 steps", f"tracking.experiment={REHEARSALS}", "tracking.register_as=null",
]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run `launch.py` with these arguments; returns the exit code (errors.py lists them)."""
    try:
        with interruption.listening():
            return _main(arguments)
    except HarnessError as error:
        if told := _told(error):
            print(told, file=sys.stderr, flush=True)
            if "--debug" in arguments:
                traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; a run that had begun is recorded as KILLED", file=sys.stderr)
        return 130


def _told(error: HarnessError) -> str:
    """The error as this process says it: all know what is wrong with a spec, only one what it met in training."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return str(error) if isinstance(error, Interrupted) else _labelled(error)
    return "" if isinstance(error, UserError | Interrupted) else f"[process {rank}] error: {error}"


def _labelled(error: HarnessError) -> str:
    told = str(error).splitlines() if isinstance(error, SpecError) and not error.fix else []
    count = sum(not line.startswith("  ") for line in told) or 1  # what is indented says why
    return f"error: {error}" if count == 1 else f"{count} errors:\n{error}"


def _main(arguments: list[str]) -> int:
    resumed, arguments = _take_resume(arguments)
    flags = [argument for argument in arguments if argument.startswith("-")]
    words = [argument for argument in arguments if not argument.startswith("-")]
    if "--help" in flags or "-h" in flags or not (arguments or resumed):
        print(HELP.format(names=", ".join(spec.names()), spaces=", ".join(space.names())))
        return 0 if arguments else 2
    for flag in flags:
        if flag not in FLAGS:
            raise SpecError(f"no option {flag}", fix=_instead_of(flag, arguments))
    if {"--plan", "--quiet"} <= set(flags):
        raise SpecError("does not go with --plan", where="--quiet", fix="leave it out; --plan --json is for programs")
    if any(word.startswith("sweep=") for word in words):
        if resumed:
            raise SpecError("does not go with sweep=", where="--resume", fix="leave it out: the same command goes on")
        return _sweep(flags, words)
    if resumed:
        resolved, name = _resume(resumed, flags, words)
        _run(resolved, flags, name)
        return 0
    chosen = [word.removeprefix("exp=") for word in words if word.startswith("exp=")]
    if len(chosen) != 1:
        meant = next((word for word in words if word in spec.names() and not chosen), "<name>")
        raise SpecError("name exactly one experiment", fix=f"exp={meant}; known: {', '.join(spec.names())}")
    overrides = [word for word in words if not word.startswith("exp=")]
    if of_study := next((word for word in overrides if space.is_setting(word)), None):
        fix = f"add sweep=<name>, or leave it out; known: {', '.join(space.names())}"
        raise SpecError("this is a setting of a study", where=of_study, fix=fix)
    if "--smoke" in flags:
        overrides = [*SMOKE, *overrides]
    resolved = spec.load(chosen[0], overrides)
    if "--plan" in flags:
        from harness import plan

        with _answering(flags):
            made = plan.make(resolved)
        _print(json.dumps(made, indent=2, ensure_ascii=False) if "--json" in flags else plan.render(made))
        return 0
    _run(resolved, flags)
    return 0


def _instead_of(flag: str, arguments: list[str]) -> str:
    """What to write for an option that does not exist: settings have no dashes."""
    key, _, value = flag.lstrip("-").partition("=")
    follows = arguments[arguments.index(flag) + 1 :][:1]
    value = value or next((word for word in follows if "=" not in word and not word.startswith("-")), "<value>")
    if (meant := explaining.setting_called(key)) == "seeds":
        value = f"[{value}]"
    if meant or key in ("exp", "sweep", *space.KEYS) or "." in key:
        return f"settings have no dashes: {meant or key}={value}"
    near = difflib.get_close_matches(key, [name.removeprefix("--") for name in FLAGS], n=1)
    return f"did you mean '--{near[0]}'?" if near else f"known: {', '.join(FLAGS)}"


@contextlib.contextmanager
def _answering(flags: list[str]) -> Iterator[None]:
    """Inside, with --json or --quiet, whatever is printed goes to stderr: stdout is for the answer alone."""
    is_apart = {"--json", "--quiet"} & set(flags)
    with contextlib.redirect_stdout(sys.stderr if is_apart else sys.stdout):
        yield


def _print(answer: str) -> None:
    """The answer, of the first process."""
    if os.environ.get("RANK", "0") == "0":
        print(answer, flush=True)


@spec.held()
def _sweep(flags: list[str], words: list[str]) -> int:
    """Begin a study, or go on with it."""
    from harness.sweeps import crew, mistakes
    from harness.sweeps.plan import Plan, as_values, render

    chosen = {key: [word.removeprefix(key) for word in words if word.startswith(key)] for key in ("sweep=", "exp=")}
    if len(chosen["sweep="]) != 1 or len(chosen["exp="]) > 1:
        fix = f"sweep=<name>; known: {', '.join(space.names())}"
        raise SpecError("name exactly one search space, and one experiment", fix=fix)
    (name,), exp = chosen["sweep="], next(iter(chosen["exp="]), None)
    rest = [word for word in words if not word.startswith(("sweep=", "exp="))]
    own, overrides = [word for word in rest if space.is_setting(word)], [w for w in rest if not space.is_setting(w)]
    if "--smoke" in flags:
        own, overrides = [*_small(name, exp), *own], [*SMOKE, *overrides]
    asked, is_worker = mistakes.read(name, own, overrides), "--worker" in flags
    if not is_worker and "--plan" not in flags:
        crew.prepare(asked)
    plan = Plan(asked, exp, overrides) if is_worker else mistakes.check(asked, exp, overrides)  # who leads has checked
    with _answering(flags):
        threads.before_torch()
        from harness.sweeps import sampling, store

        sampling.check(plan.space)
        store.check(plan.space)
    if "--plan" in flags:
        _print(json.dumps(as_values(plan), indent=2, ensure_ascii=False) if "--json" in flags else render(plan))
        return 0
    storage.writable(storage.PROJECT / plan.spec("search", plan.first("search")).output)
    with _answering(flags):
        from harness.sweeps.sweep import run

        passed_on = [*words, *(flag for flag in flags if flag in ("--smoke", "--debug"))]
        made = run(plan, passed_on, is_worker=is_worker, quiet="--quiet" in flags)
        gc.collect()
    if {"--json", "--quiet"} & set(flags):
        _tell_study(plan.name, made, "--json" in flags)
    return 0


def _tell_study(name: str, made: Path | None, as_json: bool) -> None:
    """A study's report, or its verdict alone; null where another process makes it."""
    report: dict[str, Any] = json.loads(made.read_text(encoding="utf-8")) if made else {"study": name, "verdict": None}
    folder = {"folder": str(made.parent)} if made else {}
    verdict = report["verdict"] or "another process leads it, and makes the report"
    _print(json.dumps({**report, **folder}, indent=2, ensure_ascii=False) if as_json else f"{name}  {verdict}")


def _small(name: str, exp: str | None) -> list[str]:
    """A study as small as it can be, under a name of its own."""
    confirm = ["confirm.top=1", "confirm.seeds=[100,101]"] if space.load(name).confirm else []
    return ["trials=2", *confirm, f"study={'-'.join(filter(None, [name, exp]))[:34]}-smoke"]


def _run(resolved: Spec, flags: list[str], resume: str | None = None) -> None:
    storage.writable(storage.PROJECT / resolved.output)  # before the seconds that importing takes
    with _answering(flags):
        threads.before_torch()
        from harness import banners
        from harness.run import run

        results = run(resolved, resume=resume, insecure="--insecure" in flags, quiet="--quiet" in flags)
        gc.collect()  # gloo aborts at exit now and then while a model is alive
    if "--json" in flags:
        _print(json.dumps(banners.as_values(results), indent=2, ensure_ascii=False))
    elif "--quiet" in flags:
        _print(banners.headline(results, resolved.early_stopping.metric))


def _take_resume(arguments: list[str]) -> tuple[str, list[str]]:
    """The value of `--resume RUN` or `--resume=RUN`, "" without it, and the other arguments."""
    value, rest, waiting = "", [], iter(arguments)
    for argument in waiting:
        if argument == "--resume" or argument.startswith("--resume="):
            value = argument.partition("=")[2] or next(waiting, "")
            if not value or value.startswith("-"):
                raise SpecError("which run?", where="--resume", fix="--resume <name or folder of a run>")
        else:
            rest.append(argument)
    return value, rest


def _resume(run: str, flags: list[str], words: list[str]) -> tuple[Spec, str]:
    """The spec of a run that was stopped, and its name.

    Raises:
        UserError: no such run, a finished one, one that a living process works on.
        SpecError: other settings than it began with.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for word in words:
        if word.split("=", 1)[0] not in (*_PLACES, "exp"):
            fix = f"leave it out (only {' and '.join(_PLACES)} may change), or start the experiment anew"
            raise SpecError("a run keeps the settings it began with", where=word, fix=fix)
    for flag in {"--plan", "--smoke"} & set(flags):
        raise SpecError("does not go with --resume", where=flag, fix="leave it out")
    folder = Path(run)
    if "/" not in run:
        folder = storage.PROJECT / given.get("output", "mlruns") / "runs" / storage.safe_name(run)
    if not (folder / "spec.yaml").is_file():
        known = [path.parent.name for path in folder.parent.glob("*/spec.yaml")]
        fix = f"{did_you_mean(folder.name, known)}; runs elsewhere: output=<folder>"
        raise UserError(f"no run is called '{folder.name}'", where=str(folder), fix=fix)
    folder = folder.resolve()
    if folder.parent.name != "runs":
        fix = "move it back into a folder called 'runs'; MLflow's database lies beside that"
        raise UserError("not where runs are", where=str(folder), fix=fix)
    if (folder / "trial.json").exists():
        study = json.loads((folder / "trial.json").read_text(encoding="utf-8"))["study"]
        fix = "run the study's command again: it goes on, with this trial too"
        raise UserError(f"this run is a trial of the study {study}", where=str(folder), fix=fix)
    is_complete = (folder / "end.envelope.json").exists() and not (folder / "checkpoints").exists()
    if is_complete or (folder / "replicates.json").exists():
        raise UserError(
            "this run is finished", where=str(folder), fix="its score is in model_card.md; see harness compare"
        )
    RunLock(folder.parent.parent, folder.name).refuse_owned()
    changes = {key: value for key, value in given.items() if key not in ("exp", "output")}
    resolved = spec.reload(folder / "spec.yaml", changes)
    if (storage.PROJECT / resolved.output).resolve() != folder.parent.parent:
        changes["output"] = str(folder.parent.parent)
    if ":***@" in (resolved.tracking.uri or ""):  # a spec never keeps a password
        if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
            fix = "give it again: tracking.uri=..., or in MLFLOW_TRACKING_URI"
            raise SpecError("the password of the tracking store was not kept", where="tracking.uri", fix=fix)
        changes["tracking.uri"] = uri
    resolved = spec.reload(folder / "spec.yaml", changes)
    if given.get("exp", resolved.name) != resolved.name:
        raise SpecError(f"{folder.name} is a run of {resolved.name}", where=f"exp={given['exp']}", fix="leave it out")
    return resolved, folder.name
