"""Who may import whom: a module imports only from lower layers, and each heavy library has its doors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parent.parent / "harness"
LAYERS = [
    ["batch", "console", "errors", "losses", "markdown", "notes", "seeding", "settings", "statistics", "units"],
    ["faults", "figures", "interruption", "optim", "registry", "signing", "storage"],
    ["catalogue", "checkpoint", "heatmap", "latency", "machine", "method", "tracking"],
    ["data", "liveness", "models", "progress", "replicates", "rollback"],
    ["extraction", "methods", "predictions", "specs"],
    ["compression", "metric", "task", "yardsticks"],
    ["assembly", "evaluate", "gradients", "language", "metrics"],
    ["fingerprint", "prediction", "tasks", "train"],
    ["curves", "session"],
    ["selection"],
    ["results"],
    ["banners", "checks", "compare", "plan"],
    ["run"],
    ["sweeps"],
    ["cli"],
]
ROOMS = {
    "catalogue": [
        ["dequantised", "instructions", "landmarks"],
        ["builtin"],
        ["hub"],
    ],
    "checks": [
        ["doctor", "findings", "verification"],
        ["origins", "rehearsal"],
        ["proofs"],
        ["selftest"],
    ],
    "cli": [
        ["compare", "launching", "predict", "signatures"],
        ["commands"],
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
    "data": [
        ["entities", "kept_texts", "splitting", "squad_file", "tables"],
        ["conll", "labelling"],
        ["files", "synthetic_entities"],
        ["builtin_tables"],
        ["sources"],
        ["dataset"],
    ],
    "extraction": [
        ["answers", "tagging", "windows"],
        ["spans"],
    ],
    "language": [
        ["chunks", "cleaning", "completions", "generation", "kneser_ney", "masking", "packing"],
        ["modelling", "writing"],
        ["pretraining"],
    ],
    "machine": [
        ["threads"],
        ["device"],
        ["memory"],
        ["processes"],
    ],
    "models": [
        ["dropout", "embedding_gradients", "model", "surgery"],
        ["layout", "tokenizing", "transformer"],
        ["padding_free", "pretrained"],
    ],
    "results": [
        ["deployment", "footprint", "report"],
        ["record", "variants"],
        ["judgement"],
    ],
    "signing": [
        ["digests", "keys"],
        ["ledger", "provenance"],
        ["chain"],
    ],
    "specs": [
        ["composing", "schema", "yaml_source"],
        ["explaining"],
        ["spec"],
        ["changes"],
    ],
    "statistics": [
        ["significance"],
        ["item_significance"],
        ["pairs"],
    ],
    "sweeps": [
        ["axes", "distribution", "nursery", "trials"],
        ["space", "trial_figures"],
        ["comparison", "crew", "plan", "sampling", "store", "view"],
        ["facts", "figures", "mistakes", "study"],
        ["report", "worker"],
        ["conclusion"],
        ["sweep"],
    ],
    "tracking": [
        ["mlflow_store", "tracker"],
        ["spool", "writer"],
        ["sending", "waiting"],
        ["worker"],
        ["stores"],
    ],
}
"""The same within rooms of several floors."""
DOORS = {
    "mlflow": {"tracking.mlflow_store", "tracking.writer"},
    "hydra": {"specs.composing"},
    "omegaconf": {"specs.composing"},
    "yaml": {"specs.yaml_source", "checks.origins"},
    "accelerate": {
        "checks.doctor",
        "machine.memory",
        "machine.processes",
        "gradients",
        "train",
        "evaluate",
        "selection",
        "results.variants",
        "session",
        "fingerprint",
        "checks.rehearsal",
        "checks.selftest",
    },
    "transformers": {
        "tasks",
        "models.pretrained",
        "optim",
        "yardsticks.baselines",
        "catalogue.hub",
        "models.padding_free",
        "models.tokenizing",
        "models.transformer",
        "catalogue.dequantised",
        "language.modelling",
        "language.writing",
    },
    "peft": {"methods"},
    "datasets": {"data.sources"},
    "huggingface_hub": {"catalogue.hub"},
    "sklearn": {"metrics", "yardsticks.baselines", "yardsticks.tag_baselines", "yardsticks.completion_baselines"},
    "scipy": {"statistics.significance", "statistics.item_significance", "sweeps"},
    "plotly": {"figures", "metrics", "results.report"},
    "matplotlib": {"figures", "heatmap", "metrics"},
    "optuna": {"sweeps"},
    "markdown_it": {"compare"},
}
HEAVY = {"torch", *DOORS} - {"yaml"}
LIGHT_AT_START = (
    "cli/launching",
    "specs/spec",
    "cli/commands",
    "cli/compare",
    "cli/predict",
    "cli/signatures",
    "data/dataset",
    "latency",
    "tracking/stores",
    "liveness",
    "optim",
    "registry",
    "machine/threads",
    "statistics/significance",
    "statistics/item_significance",
)


PACKAGES = {"harness", *(f"harness.{path.parent.name}" for path in ROOT.glob("*/__init__.py"))}


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
        assert {here, f"{here}.{path.stem}"} & DOORS.get(top, {here}), f"{top} is not {path.stem}'s to import"
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
