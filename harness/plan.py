"""What a spec would do: data, parameters, steps, memory, folder. Loads everything, trains nothing, writes nothing."""

from __future__ import annotations

import json
from typing import Any

import torch

from harness import assembly, storage
from harness.data import dataset
from harness.machine import device
from harness.markdown import text_table
from harness.results import footprint, report
from harness.signing import keys
from harness.specs.schema import Spec
from harness.tracking import stores


def make(spec: Spec) -> dict[str, Any]:
    """The plan as values. Raises UserError for whatever would stop the run."""
    loaded = assembly.load(spec)
    assembled = assembly.assemble(spec, loaded, spec.seeds[0])
    per_epoch = loaded.task.num_batches(spec.train.batch_size)
    total = spec.train.total_steps(per_epoch)
    notes = list[str]()
    precision = device.resolve_precision(spec.precision, notes.append)
    key = keys.load_key()
    output = storage.PROJECT / spec.output
    return {
        "spec": spec.resolved(),
        "data": {**loaded.splits.report, "tokens": loaded.tokens},
        "parameters": report.parameters(assembled),
        "steps": {
            "per_epoch": per_epoch,
            "total": total,
            "warmup": spec.train.num_warmup_steps(total),
            "validation_every": spec.evaluation.every.steps(per_epoch),
            "runs": len(spec.seeds),
        },
        "precision": precision,
        "notes": notes,
        "memory_estimate_gib": footprint.estimate(assembled, spec, precision),
        "run_folder": str(output / "runs" / f"{spec.name}-s{spec.seeds[0]}-****"),
        "tracking": stores.ui_command(spec.tracking.uri, output),
        "signing_key": key.keyid if key else None,
        "description": dataset.describe(loaded.splits),
    }


def render(plan: dict[str, Any]) -> str:
    """The plan for the terminal."""
    steps, memory, parameters = plan["steps"], plan["memory_estimate_gib"], plan["parameters"]
    families = [[family, f"{number:,}"] for family, number in parameters["trainable_by_family"].items() if number]
    settings = "\n".join(f"  {key}: {_shown(value)}" for key, value in _flat(plan["spec"]))
    tokens = ", ".join(f"{split} {facts['truncated']}" for split, facts in plan["data"]["tokens"].items())
    where = "GPU" if torch.cuda.is_available() else "CPU"
    return "\n".join(
        [
            settings,
            "",
            plan["description"],
            f"truncated rows: {tokens}",
            "",
            text_table(["trains", "parameters"], families),
            f"trainable {parameters['trainable']:,}, {parameters['share_of_full_fine_tuning']:.2%} of full fine-tuning",
            *(f"{method}: {note}" for method, note in parameters["methods"].items()),
            "",
            f"steps       {steps['total']} at most ({steps['per_epoch']} per epoch, {steps['warmup']} of warm-up), "
            f"validation every {steps['validation_every']}, {steps['runs']} run(s)",
            f"precision   {plan['precision'].replace('no', 'float32')} on {where}",
            f"memory      about {memory['total']:.2f} GiB: "
            + ", ".join(f"{part} {value:.2f}" for part, value in memory.items() if part != "total"),
            f"folder      {plan['run_folder']}",
            f"MLflow      {plan['tracking']}",
            f"signing     {plan['signing_key'] or 'none: the run will be unsigned (harness keygen)'}",
            *plan["notes"],
            "nothing was trained or written",
        ]
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        pair
        for key, value in tree.items()
        for pair in (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
        )
    ]


def _shown(value: Any) -> str:
    """As a spec has it: `null`, `true`."""
    return value if isinstance(value, str) else json.dumps(value)
