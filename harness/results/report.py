"""What a run leaves for people: learning curves, a table of parameters, a model card."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import figures, registry, storage
from harness.assembly import Assembled, Loaded
from harness.markdown import markdown_table
from harness.metric import History
from harness.specs import changes
from harness.specs.schema import Spec


def parameter_rows(assembled: Assembled) -> list[list[str]]:
    """Trainable parameters by family, with their share of what full fine-tuning trains."""
    count = assembled.count
    rows = [
        [f"  {family}", f"{number:,}", f"{number / count.pretrained:.2%}"]
        for family, number in assembled.by_family.items()
        if number
    ]
    total = ["trainable", f"{count.trainable:,}", f"{count.share:.2%}"]
    return [["model with methods", f"{count.total:,}", ""], total, *rows]


def parameters(assembled: Assembled) -> dict[str, Any]:
    """The same as values."""
    count = assembled.count
    return {
        "total": count.total,
        "trainable": count.trainable,
        "full_fine_tuning": count.pretrained,
        "share_of_full_fine_tuning": count.share,
        "trainable_by_family": assembled.by_family,
        "methods": assembled.notes,
    }


def write_history(history: History, best_step: int, folder: Path) -> None:
    """learning_curves.json: for each metric its steps and values, for those who draw several runs."""
    storage.write_json(folder / "learning_curves.json", {"kept": best_step, "curves": storage.finite(dict(history))})


def learning_curves(history: History, best_step: int, headline: Iterable[str], folder: Path) -> None:
    """learning_curves.html (self-contained) and learning_curves.png; a line marks the checkpoint that was kept.

    Loss, validation loss and the task's headline, learning rate.
    """
    validated = (f"validation/{key}" for key in dict.fromkeys(("nll", *headline)))
    shown = [name for name in ("train/loss", *validated, "train/learning_rate") if name in history]
    page = figures.subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.05, subplot_titles=shown)
    figures.dress(page, "Learning curves", 900, 220 * len(shown) + 80)
    image = figures.image("Learning curves", 9, 2.1 * len(shown))
    axes = image.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for row, (name, axis, colour) in enumerate(zip(shown, axes, figures.COLOURS, strict=False), start=1):
        steps, values = zip(*history[name], strict=True)
        points = "lines" if len(steps) > 40 else "lines+markers"
        page.add_scatter(
            x=steps, y=values, mode=points, line={"color": colour}, name=name, showlegend=False, row=row, col=1
        )
        page.add_vline(x=best_step, line={"color": figures.MUTED, "dash": "dot"}, row=row, col=1)
        figures.calm(axis).plot(steps, values, color=colour, marker="o" if len(steps) <= 40 else None, markersize=3)
        axis.axvline(best_step, color=figures.MUTED, linestyle=":", linewidth=1)
        axis.set_title(name, fontsize=9, loc="left", color=figures.MUTED)
    page.update_xaxes(title_text="step (dotted: the checkpoint that was kept)", row=len(shown), col=1)
    axes[-1].set_xlabel("step (dotted: the checkpoint that was kept)")
    figures.save_html(page, folder / "learning_curves.html")
    figures.save_png(image, folder / "learning_curves.png")


def score_rows(own: dict[str, float], yardsticks: list[dict[str, Any]], name: str) -> list[list[str]]:
    """This run's scores among the yardsticks of the same test split, best last."""
    return ladder_rows([*yardsticks, {"name": f"{name} (this run)", **own}], list(own))


def ladder_rows(found: list[dict[str, Any]], keys: list[str]) -> list[list[str]]:
    """Names with these scores, best last by the first of them; – for one that a yardstick cannot have."""
    ladder = sorted(found, key=lambda row: row[keys[0]], reverse=registry.is_less_better(keys[0]))
    return [[str(row["name"]), *(f"{row[key]:.3f}" if key in row else "–" for key in keys)] for row in ladder]


def model_card(
    spec: Spec,
    loaded: Loaded,
    assembled: Assembled,
    name: str,
    own: dict[str, float],
    ladder: list[list[str]],
    scores: dict[str, float],
    signed: str,
    compressed: str = "",
) -> str:
    """Data, method, scores, limits and fingerprint in one page of Markdown; `compressed` is a section of its own."""
    report = loaded.splits.report["splits"]
    has_labels = any(facts["labels"] for facts in report.values())
    data_rows = [
        [
            split, f"{facts['rows']:,}", *[", ".join(f"{k} {v:,}" for k, v in facts["labels"].items())] * has_labels,
            facts["digest"][:19],
        ]
        for split, facts in report.items()
    ]  # fmt: skip
    scored = ", ".join(f"{title} {own[key]:.3f}" for key, title in loaded.task.headline.items())
    labels = f"; labels: {', '.join(loaded.splits.labels)}" if loaded.splits.labels else ""
    beside = (
        "; a folder beside it holds one method and the head, in the format of that method's users, without the other "
        "methods"
    ) * bool(spec.methods)
    kind = "Random weights of" if spec.model.is_own else "Pretrained model"
    wanted = ("test/", "merge/", "memory/", "time/")
    numbers = [[key, f"{value:.4g}"] for key, value in sorted(scores.items()) if key.startswith(wanted)]
    return (
        "\n\n".join(
            [
                f"# {name}",
                f"**test {scored}**, training {assembled.count.trainable:,} parameters "
                f"({assembled.count.share:.2%} of full fine-tuning)",
                changes.story(spec),
                f"{kind} `{spec.model.name}`, data `{spec.data.name}`. {signed}",
                "## Scores on the test split",
                markdown_table(["", *loaded.task.headline.values()], ladder),
                "The checkpoint was chosen on the validation split; the test split was read once, at the end.",
                markdown_table(["metric", "value"], numbers),
                *([compressed] if compressed else []),
                "## Training",
                markdown_table(["setting", "value"], _settings(spec, scores)),
                "## Parameters",
                markdown_table(["", "parameters", "of full fine-tuning"], parameter_rows(assembled)),
                *(f"`{method}`: {note}" for method, note in assembled.notes.items()),
                "## Data",
                markdown_table(["split", "rows", *["labels"] * has_labels, "digest"], data_rows),
                "## Limits",
                "One seed says nothing about a method: compare replicates. The scores hold for texts like those above, "
                f"truncated as the spec says{labels}.",
                f"`weights/trained.safetensors` holds everything that was trained{beside}.",
            ]
        )
        + "\n"
    )


def _settings(spec: Spec, scores: dict[str, float]) -> list[list[str]]:
    """How it was trained; spec.yaml has every setting."""
    known = {key: value for key, value in spec.flat().items() if key.startswith(("task.", "methods.", "train."))}
    known |= {"precision": spec.precision, "steps taken": int(scores["train/steps"])}
    return [
        [f"`{key}`" if "." in key else key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for key, value in known.items()
    ]


def write_card(text: str, folder: Path) -> None:
    """model_card.md."""
    storage.write_text(folder / "model_card.md", text)
