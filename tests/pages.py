"""What pages for people say can be done: their code blocks, commands and links, read for tests."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer

from harness import spec
from harness.cli import app
from harness.storage import PROJECT
from harness.sweeps import mistakes, space


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks in a language; "": those in none, which are shell commands and what they print."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for of, block in fenced if of == language]


def commands(text: str) -> list[str]:
    """The lines of the blocks without a language, continued ones whole, without what stands beside them."""
    lines = "\n".join(blocks(text)).replace("\\\n", " ").splitlines()
    return [re.split(r" {3,}|\s# ", line)[0].strip() for line in lines if line.strip()]


def launches(text: str) -> list[str]:
    """What stands behind `launch.py`, without how it is launched."""
    return re.findall(r"^(?:accelerate launch|python) launch\.py (exp=.+?)(?:  .*)?$", text, flags=re.MULTILINE)


def accept(line: str) -> None:
    """Judge the words behind `launch.py` as `launch.py` does. Raises SpecError."""
    words = [word for word in shlex.split(line) if not word.startswith("--")]
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
    """Where links lead that stay in the project, without the place on the page."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
