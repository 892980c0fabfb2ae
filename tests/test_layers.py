"""Who may import whom: a module imports only from lower layers, and each heavy library has its doors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "harness"
LAYERS = [
    ["errors", "settings", "units", "threads"],
    ["faults", "interruption"],
    [
        "storage",
        "registry",
        "keys",
        "digests",
        "batch",
        "losses",
        "seeding",
        "surgery",
        "splitting",
        "figures",
        "console",
        "device",
        "optim",
        "findings",
        "significance",
    ],
    [
        "item_significance",
        "composing",
        "builtin",
        "ledger",
        "memory",
        "provenance",
        "metric",
        "method",
        "tracker",
        "yaml_source",
        "latency",
    ],
    ["chain", "hub", "processes", "spool", "tracking_mlflow", "metrics", "methods"],
    ["sources", "tracking_writer"],
    ["data", "tracking_queue", "tracking_sync"],
    ["tracking_worker"],
    ["tracking"],
    ["liveness", "task", "spec"],
    ["tasks", "checkpoint", "gradients", "rollback", "evaluate", "baselines", "compression"],
    ["train", "assembly", "verification"],
    ["fingerprint", "report", "selection", "deployment", "rehearsal"],
    ["origins", "plan", "record", "proofs", "replicates", "table", "variants", "session"],
    ["selftest", "judgement"],
    ["run"],
    ["sweeps", "cli_signatures"],
    ["command", "cli"],
]
SWEEPS = [
    ["trials", "axes", "distribution"],
    ["space"],
    ["trial_figures", "plan"],
    ["facts", "comparison", "mistakes", "sampling", "view"],
    ["figures", "store"],
    ["study"],
    ["worker", "report", "crew"],
    ["conclusion"],
    ["sweep"],
]
"""The same within that room."""
DOORS = {
    "mlflow": {"tracking_mlflow", "tracking_writer"},
    "hydra": {"composing"},
    "omegaconf": {"composing"},
    "yaml": {"yaml_source", "table", "origins"},
    "accelerate": {
        "memory",
        "processes",
        "gradients",
        "train",
        "evaluate",
        "selection",
        "variants",
        "session",
        "fingerprint",
        "rehearsal",
        "selftest",
    },
    "transformers": {"tasks", "optim", "baselines"},
    "peft": {"methods"},
    "datasets": {"sources"},
    "huggingface_hub": {"hub"},
    "sklearn": {"metrics", "baselines"},
    "scipy": {"significance", "item_significance", "sweeps"},
    "plotly": {"figures", "metrics", "report"},
    "matplotlib": {"figures", "metrics"},
    "optuna": {"sweeps"},
}
HEAVY = {"torch", *DOORS} - {"yaml"}
LIGHT_AT_START = (
    "command",
    "spec",
    "cli",
    "cli_signatures",
    "data",
    "latency",
    "tracking",
    "liveness",
    "optim",
    "registry",
    "threads",
    "significance",
    "item_significance",
)


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module in ("harness", "harness.sweeps") else {node.module}
    return found


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.stem != "__init__"]
WITHIN = {name: digit for digit, names in enumerate(SWEEPS) for name in names}
LAYER = {name: digit for digit, names in enumerate(LAYERS) for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_only_from_lower_layers_and_through_the_doors(path: Path) -> None:
    here = room(path)
    assert here in LAYER, f"give {here} a layer"
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        top, *rest = name.split(".")
        if rest[:1] == ["sweeps"] and here == "sweeps":
            assert WITHIN[rest[1]] < WITHIN[path.stem], f"{path.stem} imports {rest[1]}"
        elif top == "harness" and rest and rest[0] != "__version__":
            assert LAYER[rest[0]] < LAYER[here], f"{here} ({LAYER[here]}) imports {rest[0]} ({LAYER[rest[0]]})"
        assert here in DOORS.get(top, {here}), f"{top} is not {here}'s to import"
        assert top != "launch"


@pytest.mark.parametrize("name", LIGHT_AT_START)
def test_nothing_heavy_is_imported_before_it_is_needed(name: str) -> None:
    """At module level; what stands under `if TYPE_CHECKING` or inside functions is not imported at start."""
    tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
    at_start = {top.split(".")[0] for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If)
                for top in imports(node)}  # fmt: skip
    assert not at_start & HEAVY


def test_no_room_without_a_name() -> None:
    assert not {"utils", "helpers", "common"} & {path.stem for path in FILES}
