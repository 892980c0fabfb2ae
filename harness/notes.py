"""Notes from places that know no terminal: what was silently replaced would be silently believed."""

from __future__ import annotations

import os
import sys

_told: set[str] = set()


def note(text: str) -> None:
    """Say, as a NOTE on stderr, what is used instead of what was meant: once per process, by the first one alone."""
    if text not in _told and os.environ.get("RANK", "0") == "0":
        _told.add(text)
        print(f"NOTE {text}", file=sys.stderr, flush=True)
