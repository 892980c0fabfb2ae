"""A comparison on the terminal, as Markdown, CSV, JSON, and as a page that needs no network."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from harness import figures, storage
from harness.compare import drawing
from harness.compare.comparison import Comparison
from harness.compare.runs import Entry
from harness.compare.texts import Text, texts
from harness.console import Terminal
from harness.markdown import markdown_table

LEGEND = (
    "n: seeds. ±: standard deviation over seeds (n - 1). 95 %: Student's t, not cut off at 0 or 1. p: paired t over "
    "seeds, adjusted for all pairs with the reference (Holm). Seconds and memory belong to the machine and to what "
    "else ran on it."
)


def show(comparisons: list[Comparison], notes: list[str]) -> None:
    """On the terminal."""
    terminal = Terminal()
    for one in comparisons:
        for table in one.tables():
            terminal.say()
            terminal.title(table.title)
            if left_out := terminal.table(table.columns, table.rows, spare=table.spare):
                terminal.prose(f"Too narrow here for {', '.join(left_out)}: see --md, --html or --json.")
        terminal.say()
        for sentence in one.sentences():
            terminal.prose(sentence)
    terminal.prose(f"\n{LEGEND}")
    for note in notes:
        terminal.prose(f"NOTE {note}")


def to_markdown(comparisons: list[Comparison], notes: list[str]) -> str:
    """The same for a README or a lab log."""
    parts = []
    for one in comparisons:
        parts += [f"### {table.title}\n\n{markdown_table(table.columns, table.rows)}" for table in one.tables()]
        parts += one.sentences()
    return "\n\n".join([*parts, LEGEND, *(f"NOTE {note}" for note in notes)])


def to_report(comparisons: list[Comparison], notes: list[str], title: str, studies: Sequence[str] = ()) -> str:
    """The same with the short texts, and the reports of studies."""
    told = [_text(text) for one in comparisons for text in texts(one)]
    return "\n\n".join([f"# {title}", to_markdown(comparisons, notes), *told, *studies]) + "\n"


def to_csv(comparisons: list[Comparison]) -> str:
    """One line per run, with every score that any of them has."""
    entries = [
        (system.name, entry) for one in comparisons for system in one.systems for entry in system.entries.values()
    ]
    keys = sorted({key for _, entry in entries for key in entry.scores})
    own = ("seed", "run", "test_rows", "test", "trainable", "share", "weights_mib")
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["system", *own, *keys])
    for name, entry in entries:
        table.writerow([name, *(getattr(entry, key) for key in own), *(entry.scores.get(key, "") for key in keys)])
    return file.getvalue().rstrip("\n")


def to_json(comparisons: list[Comparison], notes: list[str]) -> str:
    """Everything as values: systems with their runs, pairs with their tests, groups, sentences."""
    told = [
        {
            "metric": one.metric,
            "reference": one.reference.name,
            "systems": [
                {"name": of.name, "runs": [_run(entry) for entry in of.entries.values()]} for of in one.systems
            ],
            "pairs": [storage.finite(asdict(pair)) for pair in one.pairs],
            "groups": one.groups,
            "sentences": one.sentences(),
        }
        for one in comparisons
    ]
    return json.dumps({"comparisons": told, "notes": notes}, indent=2, ensure_ascii=False)


def _run(entry: Entry) -> Any:
    return storage.finite({key: value for key, value in vars(entry).items() if key not in ("predictions", "curves")})


_STYLE = """
body { font: 15px/1.5 Inter, "Helvetica Neue", Arial, sans-serif; color: #1f2933; margin: 2.5rem auto; max-width: 75rem;
  padding: 0 1.5rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e4e9ee; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: #6b7885; font-weight: 500 }
.said { font-weight: 600 } .small { color: #6b7885; font-size: .85rem }
"""


def write_page(
    comparisons: list[Comparison], notes: list[str], file: Path, title: str = "", studies: Sequence[str] = ()
) -> None:
    """The same as a page with pictures and short texts; `studies`: their reports, which follow. Raises StorageError."""
    parts: list[str] = []
    for one in comparisons:
        parts += [f'<p class="said">{escape(sentence)}</p>' for sentence in one.sentences()]
        parts += [_section(table.title, table.columns, table.rows) for table in one.tables()]
        for figure in filter(None, (draw(one) for draw in drawing.PICTURES)):
            library = not any("plotly.js" in part[:5000] for part in parts)
            parts.append(figures.as_part(figure, library=library))
        columns, rows = drawing.disagreements(one)
        if rows:
            parts.append(_section("Where they differ most: seeds that were right", columns, rows))
        parts += [_html(_text(text)) for text in texts(one)]
    parts += [f"<hr>{_html(study)}" for study in studies]
    parts += [f'<p class="small">{escape(text)}</p>' for text in (LEGEND, *(f"NOTE {note}" for note in notes))]
    title = title or f"Compared with {', '.join(dict.fromkeys(one.reference.name for one in comparisons))}"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    page = f"<!doctype html><html lang=en><head>{head}</head><body><h1>{escape(title)}</h1>"
    storage.write_text(file, f"{page}{''.join(parts)}</body></html>\n")


def _text(text: Text) -> str:
    """A short text as Markdown."""
    table = [markdown_table(text.table.columns, text.table.rows)] if text.table else []
    return "\n\n".join([f"## {text.title}", *text.sentences, *table])


def _html(markdown: str) -> str:
    """Markdown as HTML; HTML within it stays text."""
    from markdown_it import MarkdownIt

    return str(MarkdownIt("js-default").render(markdown))


def _section(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """A table under its title."""
    lines = [_line("th", columns), *(_line("td", row) for row in rows)]
    return f'<h2>{escape(title)}</h2><div class="wide"><table>{"".join(lines)}</table></div>'


def _line(kind: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
