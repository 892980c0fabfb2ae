"""Who may import whom: a module imports only from lower layers, and each heavy library has its doors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parent.parent / "harness"
LAYERS = [
    ["errors", "settings", "units", "threads", "notes"],
    ["faults", "interruption", "entities"],
    [
        "windows",
        "storage",
        "registry",
        "keys",
        "digests",
        "batch",
        "losses",
        "seeding",
        "surgery",
        "dropout",
        "embedding_gradients",
        "splitting",
        "figures",
        "console",
        "device",
        "optim",
        "findings",
        "significance",
        "markdown",
        "model",
        "tables",
        "predictions",
        "dequantised",
        "generation",
        "instructions",
        "landmarks",
        "cleaning",
        "kneser_ney",
    ],
    [
        "heatmap",
        "conll",
        "item_significance",
        "labelling",
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
        "layout",
        "masking",
        "chunks",
        "progress",
        "packing",
        "completions",
    ],
    [
        "synthetic_entities",
        "tagging",
        "padding_free",
        "pairs",
        "chain",
        "hub",
        "processes",
        "spool",
        "tracking_mlflow",
        "metrics",
        "methods",
        "answers",
        "squad_file",
        "transformer",
    ],
    ["files", "builtin_tables", "tracking_writer", "tokenizing", "spans"],
    ["sources"],
    ["data", "tracking_queue", "tracking_sync", "writing"],
    ["tracking_worker", "language_modelling"],
    ["tracking"],
    [
        "pretrained",
        "tag_baselines",
        "liveness",
        "task",
        "schema",
        "baselines",
        "completion_yardsticks",
        "answer_baselines",
    ],
    ["explaining"],
    ["spec"],
    ["changes", "tasks", "checkpoint", "gradients", "rollback", "evaluate", "compression"],
    ["train", "assembly", "verification"],
    ["fingerprint", "report", "footprint", "curves", "deployment", "rehearsal"],
    ["selection"],
    ["doctor", "prediction", "origins", "plan", "record", "proofs", "replicates", "variants", "session"],
    ["selftest", "judgement", "banners"],
    ["run"],
    ["sweeps", "compare", "cli_signatures"],
    ["cli_compare", "cli_predict"],
    ["command", "cli"],
]
ROOMS = {
    "sweeps": [
        ["trials", "axes", "distribution"],
        ["space"],
        ["trial_figures", "plan"],
        ["facts", "comparison", "mistakes", "sampling", "view"],
        ["figures", "store"],
        ["study"],
        ["worker", "report", "crew"],
        ["nursery"],
        ["conclusion"],
        ["sweep"],
    ],
    "compare": [
        ["runs"],
        ["systems"],
        ["verdicts"],
        ["comparison"],
        ["drawing", "texts"],
        ["rendering"],
        ["publishing"],
    ],
}
"""The same within rooms of several floors."""
DOORS = {
    "mlflow": {"tracking_mlflow", "tracking_writer"},
    "hydra": {"composing"},
    "omegaconf": {"composing"},
    "yaml": {"yaml_source", "origins"},
    "accelerate": {
        "doctor",
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
    "transformers": {
        "tasks",
        "pretrained",
        "optim",
        "baselines",
        "hub",
        "padding_free",
        "tokenizing",
        "transformer",
        "dequantised",
        "language_modelling",
        "writing",
    },
    "peft": {"methods"},
    "datasets": {"sources"},
    "huggingface_hub": {"hub"},
    "sklearn": {"metrics", "baselines", "tag_baselines", "completion_yardsticks"},
    "scipy": {"significance", "item_significance", "sweeps"},
    "plotly": {"figures", "metrics", "report"},
    "matplotlib": {"figures", "heatmap", "metrics"},
    "optuna": {"sweeps"},
    "markdown_it": {"compare"},
}
HEAVY = {"torch", *DOORS} - {"yaml"}
LIGHT_AT_START = (
    "command",
    "spec",
    "cli",
    "cli_compare",
    "cli_predict",
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


PACKAGES = ("harness", *(f"harness.{name}" for name in ROOMS))


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
            found |= names if node.module in PACKAGES else {node.module}
    return found


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.stem != "__init__"]
WITHIN = {room: {name: i for i, names in enumerate(floors) for name in names} for room, floors in ROOMS.items()}
LAYER = {name: digit for digit, names in enumerate(LAYERS) for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_only_from_lower_layers_and_through_the_doors(path: Path) -> None:
    here = room(path)
    assert here in LAYER, f"give {here} a layer"
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        top, *rest = name.split(".")
        if rest[:1] == [here] and here in WITHIN:
            assert WITHIN[here][rest[1]] < WITHIN[here][path.stem], f"{path.stem} imports {rest[1]}"
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


def test_an_installation_has_all_rooms() -> None:
    found = read_configuration(ROOT.parent / "pyproject.toml")["tool"]["setuptools"]["packages"]
    assert set(found) == {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("*.py")}
