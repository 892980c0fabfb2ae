"""What `harness` has for signatures: make, list, rotate and retire keys, sign again, verify runs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from harness.errors import SpecError

if TYPE_CHECKING:
    from harness.signing.chain import Link
    from harness.signing.provenance import Verification

keys_app = typer.Typer(no_args_is_help=True)


def keygen(
    path: Annotated[Path | None, typer.Argument(help="default: ~/.config/harness/keys/active")] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="retire the active key; what it signed still verifies")
    ] = False,
) -> None:
    """Make a signing key."""
    from harness.signing import keys

    key, place = keys.keygen(path, rotate=rotate), path or keys.key_file()
    print(f"key {key.keyid} in {place}")
    if os.environ.get(keys.VARIABLE):
        print(f"Runs are still signed with the key in {keys.VARIABLE}: unset it to use this one.")
    elif place.absolute() != keys.key_file().absolute():
        print(f"To sign runs with it: export {keys.FILE_VARIABLE}={shlex.quote(str(place.absolute()))}")
    else:
        print("Runs are signed with it from now on.")
    print("Keep a copy: without it nothing it signed can be verified. Who holds it can sign, too.")


@keys_app.command("list")
def list_keys() -> None:
    """Every key at hand by its id, and which one signs."""
    from harness.signing import keys

    found = keys.listed()
    for key in found:
        print(f"{key.keyid}  {'signs and verifies' if key.signs else 'verifies':18}  {key.place}")
    if not any(key.signs for key in found):
        print("No key signs: runs are left unsigned. Make one with `harness keygen`.")


@keys_app.command()
def rotate() -> None:
    """Make a new key that signs from now on; what the old one signed still verifies."""
    from harness.errors import UserError
    from harness.signing import keys

    if not keys.key_file().exists():
        raise UserError("there is no key to rotate", where=str(keys.key_file()), fix="make one with `harness keygen`")
    keygen(None, rotate=True)


@keys_app.command()
def retire(keyid: Annotated[str, typer.Argument(help="16 digits, as `harness keys list` shows them")]) -> None:
    """Let the key of the key file sign no more; what it signed still verifies."""
    from harness.signing import keys

    print(f"key {keyid} is now in {keys.retire(keyid)}")
    print("Runs are left unsigned until there is another key: `harness keygen`.")


@keys_app.command()
def resign(
    run: Annotated[str, typer.Argument(help="a run's name, MLflow id, or folder")],
    output: Annotated[Path, typer.Option(help="the folder of runs, relative to the project")] = Path("mlruns"),
) -> None:
    """Add a signature with the active key to a run's statements, which stay as they are."""
    from harness.checks import verification
    from harness.storage import folder_of_runs

    key, added = verification.resign_run(run, folder_of_runs(output))
    print(f"{added} signature{'s' * (added != 1)} added with key {key.keyid}")


def verify(
    run: Annotated[str | None, typer.Argument(help="a run's name, MLflow id, or folder; a checkpoint's folder")] = None,
    output: Annotated[Path, typer.Option(help="the folder of runs, relative to the project")] = Path("mlruns"),
    chain: Annotated[bool, typer.Option("--chain", help="every statement from the start to the end")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="also weights, data, code, MLflow's copies")] = False,
    ledger: Annotated[bool, typer.Option("--ledger", help="all runs that were ever entered, instead of one")] = False,
    head: Annotated[str, typer.Option(help="with --ledger: a head that was kept must still be part of it")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Was anything edited since the run was signed? Exit code 0 no, 1 yes, 3 cannot tell, 4 newer format, 5 I/O.

    Of the parent of replicates each is verified, and the worst exit code counts.

    With --json one object is printed; "chain" stands there with --chain only:

    {"exit_code": 0, "verdict": "...", "checks": [{"name", "ok": true | false | null, "detail"}],
    "chain": [{"name", "kind": start | checkpoint | end, "step", "attempt", "time", "key", "ok", "detail"}]}

    Of a parent: {"exit_code": 0, "verdict": "...", "runs": [{"name", and the same}]}
    """
    from harness.checks import verification
    from harness.storage import folder_of_runs

    if ledger == (run is not None) or (head and not ledger) or (ledger and (chain or deep)):
        raise SpecError("name a run, with --chain or --deep if you like; or none, with --ledger and --head")
    output = folder_of_runs(output)
    if run is None:
        _tell([verification.verify_ledger(output, head)], True, False, as_json)
    found = verification.verify_runs(run, output)
    if deep:
        from harness.checks import origins
        from harness.signing import keys

        for one in found:
            one.checks += origins.check(one, keys.load_keyring())
    _tell(found, False, chain, as_json)


def _tell(found: Sequence[Verification], of_ledger: bool, with_chain: bool, as_json: bool) -> NoReturn:
    """Print a verdict, or those of replicates under their names, and end with the worst exit code."""
    from harness.checks import verification
    from harness.signing.provenance import Verification

    def verdict(one: Verification) -> dict[str, Any]:
        return {"exit_code": one.exit_code, "verdict": verification.sentence(one.exit_code, of_ledger=of_ledger)}

    def values(one: Verification) -> dict[str, Any]:
        checks = [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in one.checks]
        chain = {"chain": [vars(link) for link in verification.links(one)]} if with_chain else {}
        return {**verdict(one), "checks": checks, **chain}

    whole = Verification([check for one in found for check in one.checks])
    if as_json:
        runs = [{"name": one.folder.name if one.folder else "", **values(one)} for one in found]
        print(json.dumps(values(found[0]) if len(found) == 1 else {**verdict(whole), "runs": runs}, indent=2))
        raise typer.Exit(whole.exit_code)
    for one in found:
        if len(found) > 1:
            print(one.folder.name if one.folder else "")
        for link in verification.links(one) if with_chain else ():
            _print_link(link)
        for check in one.checks:
            print_check(check.ok, f"{check.name}: {check.detail}")
    print(verdict(whole)["verdict"])
    raise typer.Exit(whole.exit_code)


def _print_link(link: Link) -> None:
    step = "" if link.step is None else f"step {link.step}"
    attempt = "" if link.attempt is None else f"attempt {link.attempt}"
    columns = f"{link.kind:10}  {step:12}  {attempt:10}  {link.time:25}  {link.key or '-':16}"
    print_check(link.ok, f"{columns}  {link.detail.partition(';')[0] if link.key else link.detail}")


def print_check(ok: bool | None, text: str) -> None:
    """One line with its mark in colour."""
    mark, colour = {True: ("ok", "green"), False: ("NO", "red"), None: ("??", "yellow")}[ok]
    typer.secho(f"{mark}  {text}", fg=colour)
