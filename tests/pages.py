"""What pages for people say can be done: their code blocks, commands and links, read for tests."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer

from harness import registry
from harness.cli.commands import app
from harness.data.synthetic_entities import Sentences
from harness.models.model import Architecture
from harness.specs import schema, spec
from harness.storage import PROJECT
from harness.sweeps import mistakes, space


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks in a language; "": those in none, which are shell commands and what they print."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for of, block in fenced if of == language]


def _joined(text: str) -> str:
    """Lines that end in a backslash, and those that go on with them, as one."""
    return re.sub(r"\\\n\s*", "", text)


def commands(text: str) -> list[str]:
    """The shell's lines of the blocks without a language, without what stands beside them.

    Of a block that shows what commands print only those lines that begin with `$`.
    """
    found = []
    for block in blocks(text):
        lines = _joined(block).splitlines()
        shown = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
        found += [re.split(r" {3,}", line)[0].strip() for line in shown if line.strip() and line[0] != "#"]
    return found


def launches(text: str) -> list[str]:
    """What stands behind `launch.py`, without how it is launched."""
    launcher = r"^(?:\$ )?(?:[A-Z_]+=\S+ )?(?:accelerate launch|python|torchrun|srun) (?:.* )?"
    return re.findall(launcher + r"launch\.py ((?:exp|sweep)=.+?)(?:  .*)?$", _joined(text), flags=re.MULTILINE)


def accept(line: str) -> None:
    """Judge the words behind `launch.py` as `launch.py` does, a variable of the shell as 1. Raises SpecError."""
    words = [word for word in shlex.split(re.sub(r"\$[A-Z_]+", "1", line)) if not word.startswith("--")]
    exp = next((word.removeprefix("exp=") for word in words if word.startswith("exp=")), None)
    rest = [word for word in words if not word.startswith(("exp=", "sweep="))]
    if sweep := [word.removeprefix("sweep=") for word in words if word.startswith("sweep=")]:
        own = [word for word in rest if space.is_setting(word)]
        mistakes.check(space.load(sweep[0], own), exp, [word for word in rest if word not in own])
    else:
        spec.load(str(exp), rest)


def harness_commands(text: str) -> set[str]:
    """The first word behind each `harness` that begins a line."""
    return set(re.findall(r"^harness ([a-z]+)", text, flags=re.MULTILINE))


def known_commands() -> set[str]:
    """What `harness` understands."""
    named = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return named | {str(group.name) for group in app.registered_groups}


def parse(words: list[str]) -> None:
    """Read the words behind `harness`, and run nothing. Raises KeyError for a command, typer's own for an option."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, words).close()


def make_targets() -> set[str]:
    """What `make` can make."""
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))


def links(text: str) -> list[str]:
    """Where links lead that stay in the project; behind `#` the place on the page."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


def places(text: str) -> set[str]:
    """What `#` may name on a page: its headings, in small letters, without punctuation, joined by hyphens."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def keys(text: str) -> list[str]:
    """Settings that are named in the prose between backticks, such as `train.batch_size` or `data.test=0.66`."""
    spans = re.findall(r"`'?([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    files = (".csv", ".json", ".jsonl", ".md", ".parquet", ".py", ".tsv", ".txt", ".yaml")
    return [span for span in spans if span.partition(".")[0] in _SECTIONS and not span.endswith(files)]


_SECTIONS = {*schema.Spec.model_fields, *space.KEYS}


def known_keys() -> set[str]:
    """Every setting of a spec and of a study with a dot in it, and every section."""
    found = set(spec.load("full_finetune").flat())
    for section, kind in (("task", "task"), ("methods", "method"), ("metrics", "metric")):
        for name in registry.names(kind):
            found |= {f"{section}.{name}", *(f"{section}.{name}.{one}" for one in _fields(kind, name))}
    found |= {f"model.architecture.{one}" for one in Architecture.model_fields}
    found |= {f"data.sentences.{one}" for one in Sentences.model_fields}
    for name, inner in (("baseline", space.Baseline), ("confirm", space.Confirm), ("objective", space.Objective)):
        found |= {f"{name}.{one}" for one in inner.model_fields}
    return found | {key.rpartition(".")[0] for key in found}


def _fields(kind: str, name: str) -> list[str]:
    return list(registry.settings_class(kind, name).model_fields)
