"""Whether the methods written by hand are copies of library code: structural similarity, and forbidden imports.

    python tests/check_originality.py [--against FOLDER_OR_FILE ...] [--threshold 0.35] [--top 10] [--json]

Ours is every file of harness/methods but `WRAPPERS`. Theirs is what is installed of `LIBRARIES`, read and never
imported, and what `--against` names. Exit code 0: original; 1: too close, or a forbidden import; 2: usage.

Similarity. A file is parsed; names, values, texts, docstrings, annotations and imports are dropped; what is left of
the tree, node types and operators in pre-order, is a stream of tokens. Its runs of K tokens are hashed, and winnowing
(Schleimer, Wilkerson & Aiken 2003, Winnowing: local algorithms for document fingerprinting, SIGMOD) keeps the least
hash of every WINDOW: two streams that share K + WINDOW - 1 = 13 tokens (two or three statements) share a fingerprint.
Functions, classes and the rest of a module are compared, each with each. The similarity is the containment of the
smaller one in the larger: |A & B| / min(|A|, |B|). It is 1 for a function copied into a long one, or the reverse; the
Jaccard index |A & B| / |A | B| of 30 fingerprints inside 1,000 would be 0.03. Units with fewer than SMALLEST
fingerprints (about 50 tokens) are too common to mean anything.

Where THRESHOLD comes from (largest similarity of each unit to those of peft 0.21.2, 1,043 units):
    our 39 units                                                            median 0.06, largest 0.27 (an `__init__`)
    251 units of loralib 0.1.2, lora-pytorch 0.2.0, torchtune 0.6.1,
    opendelta 0.3.2, adapters 1.3.0                                         median 0.11, 99 % below 0.26, largest 0.49
    that largest is loralib's mark_only_lora_as_trainable, which peft took over, and so a true find
Our units against those libraries and pytorch-optimizer 4.1.0: at most 0.23. A renamed copy has 1.0, whatever the
names, values, docstrings, annotations and order of definitions. Edited copies of the 454 units in peft's 38 `layer.py`,
share of units caught, and of files with at least one:
    a + b and a * b turned around, or keyword arguments reversed            100 %    38 of 38
    `if` and `else` swapped with the condition negated                       99 %    38 of 38
    in half of the statements, or in all, one argument made a variable       99.6, 96 %   38 of 38, both
    a foreign statement after every third, second, or single one             95, 88, 40 %  38, 38, 37 of 38
    half of the variables, all swaps and every third statement together      78 %    38 of 38
Not caught: everything at once (all variables, swaps, turned operands, a foreign statement after every one: 5 % of
units, 14 of 38 files); loops turned into comprehensions; code cut into many small functions; the same mathematics
typed anew while reading, which is what nobody can see from a tree. It compares structure, not authorship.

Imports. Allowed: the standard library without what loads code, torch without what is the technique, pydantic,
safetensors, harness without its wrappers. Seen under any alias and as an attribute (`nn.utils.parametrize`), but not
through getattr with a computed name, nor in other modules of harness, for which test_layers.py answers.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

METHODS = Path(__file__).resolve().parent.parent / "harness" / "methods"
WRAPPERS = {"__init__", "peft"}  # they wrap a library by design
LIBRARIES = (
    "peft/tuners",
    "torch/nn/utils/parametrize.py",
    "torch/nn/utils/parametrizations.py",
    "torch/optim/swa_utils.py",
    "adapters/methods",
    "loralib",
    "mixout",
    "opendelta",
    "pytorch_optimizer/optimizer",
    "sam",
    "torchao/quantization",
    "torchtune/modules/peft",
)
K, WINDOW, SMALLEST, THRESHOLD = 10, 4, 20, 0.35

CODE_LOADERS = {"builtins", "ctypes", "importlib", "imp", "pkgutil", "runpy", "subprocess", "zipimport"}
EVALUATORS = {"__import__", "compile", "eval", "exec"}
ALLOWED = (sys.stdlib_module_names - CODE_LOADERS) | {"harness", "pydantic", "safetensors", "torch"}
ALLOWED_MODULES = {"transformers.pytorch_utils"}  # Conv1D
DENIED = {
    "sys.modules",
    "torch.ao",
    "torch.hub",
    "torch.nn.utils.parametrizations",
    "torch.nn.utils.parametrize",
    "torch.nn.utils.prune",
    "torch.optim.swa_utils",
    "torch.quantization",
    *(f"harness.methods.{name}" for name in WRAPPERS),
}

_PRIME, _BASE = 2**61 - 1, 1_000_003
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_DROPPED = (ast.expr_context, ast.Import, ast.ImportFrom, ast.Pass)
_ANNOTATIONS = {"annotation", "returns", "type_params"}
_SAME = {"AnnAssign": "Assign", "AsyncFunctionDef": "FunctionDef", "JoinedStr": "Constant"}


class Unit(NamedTuple):
    """A function, a class with its methods, or the statements of a module outside both."""

    place: str
    """file:line name."""
    fingerprints: set[int]


class Pair(NamedTuple):
    """A unit of ours and the one of theirs that is closest to it."""

    similarity: float
    ours: str
    theirs: str


def children(node: ast.AST) -> Iterator[ast.AST]:
    """The children that count: no annotations, docstrings, imports, contexts, `pass`, bare declarations, texts."""
    for name, value in ast.iter_fields(node):
        if name in _ANNOTATIONS or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            is_text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            is_declaration = isinstance(child, ast.AnnAssign) and child.value is None
            if isinstance(child, ast.AST) and not isinstance(child, _DROPPED) and not is_text and not is_declaration:
                yield child


def streams(root: ast.AST) -> list[list[str]]:
    """Tokens in pre-order: the root's own, then those of every definition inside it, so that their order is free.

    The token of an expression has its number of children, a statement has an end: so the tokens keep the structure.
    """
    own: list[str] = []
    inner: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, _Definition) and node is not root:
            inner.append(node)
            return
        below = list(children(node))
        kind = _SAME.get(type(node).__name__, type(node).__name__)
        own.append(f"{kind}/{len(below)}" if isinstance(node, ast.expr) else kind)
        for child in below:
            visit(child)
        if isinstance(node, ast.stmt):
            own.append("end")

    visit(root)
    return [own, *(stream for node in inner for stream in streams(node))]


@cache
def _code(token: str) -> int:
    """A number for a token, the same in every process, which Python's own hash is not."""
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=7).digest(), "big")


def hashes(tokens: list[str], k: int = K) -> list[int]:
    """Rolling hashes (Karp & Rabin 1987) of all runs of k tokens."""
    codes, rolling, found = [_code(token) for token in tokens], 0, []
    leaving = pow(_BASE, k, _PRIME)
    for i, code in enumerate(codes):
        rolling = (rolling * _BASE + code - (codes[i - k] * leaving if i >= k else 0)) % _PRIME
        if i >= k - 1:
            found.append(rolling)
    return found


def winnow(tokens: list[str], k: int = K, window: int = WINDOW) -> set[int]:
    """The least hash of every window of hashes: whatever run of window + k - 1 tokens two texts share shows in both."""
    runs = hashes(tokens, k)
    starts = range(max(1, len(runs) - window + 1)) if runs else ()
    return {min(runs[start : start + window]) for start in starts}


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, _Definition]]:
    """Every function and class at any depth, with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield f"{prefix}{child.name}", child
            yield from definitions(child, f"{prefix}{child.name}.")
        else:
            yield from definitions(child, prefix)


def units(path: Path, name: str) -> list[Unit]:
    """The units of a file that are large enough to be compared. Raises SyntaxError, ValueError, RecursionError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's escapes
        tree = ast.parse(path.read_bytes())
    candidates = [(1, "<module>", streams(tree)[:1])]
    candidates += [(node.lineno, qualified, streams(node)) for qualified, node in definitions(tree)]
    found = [Unit(f"{name}:{line} {what}", set().union(*map(winnow, tokens))) for line, what, tokens in candidates]
    return [unit for unit in found if len(unit.fingerprints) >= SMALLEST]


def similarity(ours: set[int], theirs: set[int]) -> float:
    """The share of the smaller unit's fingerprints that the larger one contains."""
    return len(ours & theirs) / min(len(ours), len(theirs))


def closest(ours: list[Unit], theirs: list[Unit]) -> list[Pair]:
    """For each unit of ours its closest of theirs, the most similar pair first."""
    pairs = [
        max(Pair(similarity(our.fingerprints, their.fingerprints), our.place, their.place) for their in theirs)
        for our in ours
    ]
    return sorted(pairs, reverse=True)


def own_files() -> list[Path]:
    """The methods written by hand."""
    return [path for path in sorted(METHODS.rglob("*.py")) if path.stem not in WRAPPERS]


def installed() -> dict[str, Path]:
    """Where the installed ones of `LIBRARIES` are. Found without importing them."""
    found: dict[str, Path] = {}
    for library in LIBRARIES:
        package, *rest = library.split("/")
        spec = importlib.util.find_spec(package)
        roots = list(spec.submodule_search_locations or [str(spec.origin)]) if spec else []
        for path in (Path(root, *rest) for root in roots):
            if path.exists():
                found[library] = path
    return found


def read(name: str, root: Path, skip: set[Path]) -> tuple[list[Unit], int]:
    """All units of a folder or file, and how many files are not of this Python."""
    found: list[Unit] = []
    unread = 0
    for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
        if path.resolve() not in skip:
            try:
                found += units(path, (Path(name) / path.relative_to(root)).as_posix())
            except (SyntaxError, ValueError, RecursionError):
                unread += 1
    return found, unread


def refusal(module: str) -> str:
    """Why a method must not use this dotted name; empty if it may."""
    parts = module.split(".")
    heads = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    if parts[0] not in ALLOWED and not heads & ALLOWED_MODULES:
        return f"{module} is not among what a method may use"
    if parts[-1] == "*":
        return f"{module} hides what is imported"
    return f"{module} is the technique itself, or a way around this check" if heads & DENIED else ""


def forbidden_imports(path: Path) -> list[str]:
    """`file:line reason` for each forbidden module, imported by any name or reached through an allowed one."""
    nodes = list(ast.walk(ast.parse(path.read_bytes())))
    full_names: dict[str, str] = {}  # what a local name stands for
    used: list[tuple[int, str]] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            used += [(node.lineno, alias.name) for alias in node.names]
            for alias in node.names:
                top = alias.name.split(".")[0]
                full_names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["harness.methods" if node.level else "", node.module]))
            used += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
            full_names |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}

    def dotted(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            before = dotted(node.value)
            return f"{before}.{node.attr}" if before else ""
        return full_names.get(node.id, "") if isinstance(node, ast.Name) else ""

    for node in nodes:
        if isinstance(node, ast.Name) and node.id in EVALUATORS:
            used.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and (before := dotted(node.value)) and not refusal(before):
            used.append((node.lineno, dotted(node)))
    return [f"{path.name}:{line} {reason}" for line, name in sorted(set(used)) if (reason := refusal(name))]


def compare(against: list[Path]) -> dict[str, Any]:
    """Everything the report says, for any threshold. Raises ValueError if there is nothing to compare."""
    files = own_files()
    ours = [unit for path in files for unit in units(path, path.relative_to(METHODS.parent.parent).as_posix())]
    sources = installed() | {path.as_posix(): path for path in against}
    readings = {name: read(name, path, {file.resolve() for file in files}) for name, path in sources.items()}
    theirs = [unit for found, _ in readings.values() for unit in found]
    if not ours or not theirs:
        raise ValueError("nothing to compare: no method of ours, or neither a library nor --against")
    return {
        "num_units_of_ours": len(ours),
        "num_units_of_theirs": {name: len(found) for name, (found, _) in readings.items()},
        "num_unread_files": sum(unread for _, unread in readings.values()),
        "pairs": [pair._asdict() for pair in closest(ours, theirs)],
        "forbidden_imports": [line for path in files for line in forbidden_imports(path)],
    }


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    theirs = ", ".join(f"{name} ({count})" for name, count in report["num_units_of_theirs"].items())
    lines = [
        f"{report['num_units_of_ours']} units of ours; of theirs: {theirs}; {report['num_unread_files']} files unread"
    ]
    lines += [f"{pair['similarity']:.2f}  {pair['ours']}  |  {pair['theirs']}" for pair in report["pairs"]]
    lines += [f"forbidden: {line}" for line in report["forbidden_imports"]]
    verdict = "original" if report["original"] else "NOT original"
    return "\n".join([*lines, f"{verdict}: {report['num_close']} pairs reach {report['threshold']:g}"])


def main(arguments: list[str] | None = None) -> int:
    """Compare, report, return the exit code."""
    parser = argparse.ArgumentParser(description="Are the methods written by hand copies of library code?")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="more folders or files to compare with")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="from this similarity a pair is too close")
    parser.add_argument("--top", type=int, default=10, help="how many of the closest pairs to show")
    parser.add_argument("--json", action="store_true", help="write the report as JSON")
    options = parser.parse_args(arguments)
    if absent := [str(path) for path in options.against if not path.exists()]:
        parser.error(f"no such folder or file: {', '.join(absent)}")
    if not 0 < options.threshold <= 1 or options.top < 0:
        parser.error("--threshold is in (0, 1], --top is at least 0")
    try:
        report = compare(options.against)
    except (ValueError, SyntaxError) as error:
        parser.error(str(error))
    num_close = sum(pair["similarity"] >= options.threshold for pair in report["pairs"])
    report["pairs"] = report["pairs"][: max(options.top, num_close)]
    report |= {"threshold": options.threshold, "num_close": num_close}
    report["original"] = not num_close and not report["forbidden_imports"]
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 0 if report["original"] else 1


if __name__ == "__main__":
    sys.exit(main())
