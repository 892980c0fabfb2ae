"""Where checkpoints come from (built-in, a local folder, the Hugging Face Hub), and why the Hub did not give something.

The only door to `huggingface_hub`. Its own client waits for minutes where there is no network: it is asked only after
`require_reachable`.
"""

from __future__ import annotations

import logging
import re
import ssl
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from harness import notes
from harness.catalogue import builtin
from harness.errors import HarnessError, ModelError, UserError

PROBE_SECONDS = 6.0
_LOCAL = "or name a copy on this machine"
_NO_TEXT_MODEL = (
    "see that it holds a text model (config.json, model.safetensors, tokenizer files) without code of its own"
)


def resolve(name: str, revision: str | None = None, where: str = "model.name") -> str:
    """What `from_pretrained` can read: a folder, or an id on the Hub.

    An id that is in the cache is told as the folder it has there if the Hub cannot be asked, so that no network is
    needed; a note says so. `where`: the setting that names it.

    Raises:
        ModelError: no such built-in, folder or id, an id that is not in the cache while the Hub cannot be asked, or a
            revision of something that is not on the Hub.
    """
    if folder := _local_folder(name, where):
        if revision:
            raise ModelError("only models of the Hub have a revision", where="model.revision", fix="leave it out")
        return str(folder)
    try:
        require_reachable(name, ModelError, where)
    except ModelError:
        if folder := _cached_folder(name, revision):
            from huggingface_hub import constants

            if not constants.HF_HUB_OFFLINE:  # else that is what was asked for
                notes.note(f"the Hub cannot be asked: {name} as it lies in the cache, {folder}")
            return str(folder)
        raise
    return name


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Loading a checkpoint prints neither a progress bar nor the table of weights it lacks or has too many."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level = logger.level
    transformers_logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def weights_file(name: str) -> Path | None:
    """The single safetensors file of a built-in or local checkpoint, if that is how it is kept. Raises ModelError."""
    folder = _local_folder(name)
    path = folder / "model.safetensors" if folder else None
    return path if path and path.is_file() else None


def is_path(name: str) -> bool:
    """Whether this can only be meant as a path."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1


def is_id(name: str) -> bool:
    """Whether this could be an id on the Hub: `name` or `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) is not None


def _local_folder(name: str, where: str = "model.name") -> Path | None:
    """The folder of a built-in or of a path; None of what may be an id. Raises ModelError."""
    if name.startswith(builtin.PREFIX):
        return builtin.model_path(name.removeprefix(builtin.PREFIX), where)
    fix = f"give a folder with config.json, an id on the Hub, or a built-in: {builtin.PREFIX}{builtin.MODELS[0]}"
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder that is not known
        raise ModelError("no folder has such a name", where=where, why=str(error), fix=fix) from error
    if is_file:
        raise ModelError(f"{name} is a file", where=where, fix=f"give the folder it is in: {path.parent}")
    if is_path(name) or not is_id(name):
        raise ModelError(f"there is no folder {name}", where=where, fix=fix)
    return None


def state() -> tuple[bool, str]:
    """Whether the Hub answers or nobody asks it, in words, and where what it gave lies."""
    from huggingface_hub import constants

    why = "" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    told = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} answers"
    cannot = f"cannot be reached, only what is in the cache is at hand ({why})"
    return not why, f"{cannot if why else told}; cache {constants.HF_HUB_CACHE}"


def _cached_folder(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent if isinstance(path, str) else None


def require_reachable(
    name: str, error: type[UserError], where: str, kind: Literal["models", "datasets"] = "models"
) -> None:
    """Ask once whether the Hub answers, for `PROBE_SECONDS` at most.

    Raises:
        UserError: of the given type, if it does not, or if `HF_HUB_OFFLINE` forbids asking.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        what = f"'{name}' is neither here nor in the cache, and HF_HUB_OFFLINE is set"
        raise error(what, where=where, fix=f"unset HF_HUB_OFFLINE, {_LOCAL}")
    if why := _unreachable(f"{constants.ENDPOINT}/api/{kind}/{name}"):
        what = f"'{name}' is not on this machine, and the Hub cannot be reached"
        fix = f"connect to the internet, set HF_HUB_OFFLINE=1 to use what is in the cache, {_LOCAL}"
        raise error(what, where=where, why=why, fix=fix)


def _unreachable(url: str) -> str:
    """Why there is no answer, or nothing if there is one."""
    found = [f"{url} does not answer within {PROBE_SECONDS:g} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
                found[0] = ""
        except urllib.error.HTTPError as answer:  # refused or not found is an answer; the client will say more
            found[0] = f"{url} answers {answer.code}" if answer.code >= 500 else ""
            answer.close()
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            # The client may trust other certificates than Python does.
            found[0] = "" if isinstance(reason, ssl.SSLError) else f"{url}: {reason}"

    thread = threading.Thread(target=ask, daemon=True)  # asking a name server has no timeout of its own
    thread.start()
    thread.join(PROBE_SECONDS)
    return found[0]


@contextmanager
def explained(
    what: str,
    name: str,
    error: type[UserError] = ModelError,
    where: str = "model.name",
    fix: str = _NO_TEXT_MODEL,
    absent: type[Exception] | None = None,
) -> Iterator[None]:
    """Turn whatever libraries raise while they load into one error of the given type, with cause and remedy.

    `fix` is for what lies in the thing itself, not in its name, the access to it, the network or the cache; `absent`
    is what a library raises for a name, a revision or an access it has not, if it hides the error of the Hub's client.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as problem:  # parsers and model code of others: there is no list of what they raise
        chain: list[BaseException] = [problem]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        found = _refused(chain, name, absent) or _undelivered(chain, name)
        cause, happened, remedy = found or (problem, f"the {what} of '{name}' cannot be loaded", fix)
        raise error(happened, where=where, why=_reason(cause), fix=remedy) from problem


_Diagnosis = tuple[BaseException, str, str]
"""The error behind the error, what it means, what to do."""


def _refused(chain: list[BaseException], name: str, absent: type[Exception] | None) -> _Diagnosis | None:
    """The Hub answered, and did not give it."""
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`"
    meanings = (  # the first is a special case of the last
        (errors.GatedRepoError, "gated", "is gated", f"accept its terms on its page, then {log_in}"),
        (errors.RevisionNotFoundError, "Revision", "has no such revision", "name a branch, a tag or a commit of it"),
        (errors.RepositoryNotFoundError, "", "is not on the Hub, or is private", f"check the name, {log_in}"),
    )
    for kind, word, what, fix in meanings:
        for cause in chain:
            if isinstance(cause, kind) or (absent and isinstance(cause, absent) and word in str(cause)):
                return cause, f"'{name}' {what}", f"{fix}, {_LOCAL}"
    for cause in chain:
        if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code in (401, 403):
            fix = f"{log_in}, with a token that may read it, {_LOCAL}"
            return cause, f"the Hub refuses access to '{name}'", fix
    return None


def _undelivered(chain: list[BaseException], name: str) -> _Diagnosis | None:
    """The Hub was not asked, or did not answer."""
    from huggingface_hub import constants, errors

    if not any(isinstance(cause, errors.LocalEntryNotFoundError | ConnectionError) for cause in chain):
        return None
    if constants.HF_HUB_OFFLINE or any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in chain):
        what = f"'{name}' is not in the cache, or not all of it, and HF_HUB_OFFLINE is set"
        return chain[-1], what, f"unset HF_HUB_OFFLINE, {_LOCAL}"
    return chain[-1], f"the Hub does not deliver '{name}'", f"try again later, {_LOCAL}"


def _reason(cause: BaseException) -> str:
    """On one line; what the Hub answered is told without the client's advice."""
    if (response := getattr(cause, "response", None)) is not None:
        said = getattr(cause, "server_message", None)
        return f"{response.url} answers {response.status_code}" + (f": {said}" if said else "")
    kind = "" if isinstance(cause, OSError | ValueError) else f"{type(cause).__name__}: "
    return kind + (textwrap.shorten(str(cause), 400, placeholder=" …") or "no reason given")
