"""The pages in `docs/` cannot rot: commands run, or are read as their programs read them; numbers are recomputed."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.cli.launching import main
from harness.data.files import read_file
from harness.specs import spec
from harness.storage import PROJECT
from tests import pages

DOCS = PROJECT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
COPIED = "adding.md"
"""Its commands need the files that stand on it: test_docs_adding.py puts them into a copy of the project."""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# all pages


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in pages.links(page(name)):
        file, _, place = target.partition("#")
        found = (DOCS / file).resolve() if file else DOCS / name
        assert found.exists(), target
        assert not place or place in pages.places(found.read_text(encoding="utf-8")), target


def test_the_readme_names_every_page() -> None:
    assert [name for name in PAGES if f"docs/{name}" not in (PROJECT / "README.md").read_text(encoding="utf-8")] == []


LAUNCHES = sorted({line for name in PAGES if name != COPIED for line in pages.launches(page(name))})


@pytest.mark.parametrize("line", [line for line in LAUNCHES if "data.validaton" not in line])  # shown with its error
def test_launch_commands_are_accepted(line: str) -> None:
    pages.accept(line)


@pytest.mark.parametrize("name", PAGES)
def test_console_commands_are_understood(name: str) -> None:
    for line in (line for line in pages.commands(page(name)) if line.startswith("harness ")):
        _, *words = shlex.split(line)
        pages.parse(words)
        if words[0] in ("baselines", "selftest", "show") and name != COPIED:
            spec.load(words[1], words[2:])


@pytest.mark.parametrize("name", PAGES)
def test_harness_commands_in_the_prose_exist(name: str) -> None:
    named = re.findall(r"`harness ([a-z]+)", page(name))
    assert set(named) <= pages.known_commands() | ({"table"} if name == "CHANGELOG.md" else set())


@pytest.mark.parametrize("name", [name for name in PAGES if name != COPIED])
def test_settings_in_the_prose_exist(name: str) -> None:
    assert set(pages.keys(page(name))) - pages.known_keys() == set()


@pytest.mark.parametrize("name", PAGES)
def test_shell_lines_are_the_shells(name: str) -> None:
    lines = "\n".join(pages.commands(page(name)))
    done = subprocess.run(["bash", "-n"], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PAGES)
def test_launchers_know_their_options(name: str) -> None:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    for line in pages.commands(page(name)):
        words = shlex.split(re.sub(r"\$[A-Za-z_]+", "1", line))
        words = words[1:] if "=" in words[0] or words[0] == "srun" else words
        if words[:2] == ["accelerate", "launch"]:
            assert launch_command_parser().parse_args(words[2:]).training_script == "launch.py"
        elif words[0] == "torchrun":
            assert get_args_parser().parse_args(words[1:]).training_script == "launch.py"


@pytest.mark.parametrize("name", PAGES)
def test_programs_targets_and_files_exist(name: str) -> None:
    for line in pages.commands(page(name)):
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in pages.make_targets()
        elif words[0] == "python" and words[1] != "-m" and name != COPIED:
            assert (PROJECT / words[1]).is_file(), line
    for program in re.findall(r"`python (benchmarks/\w+\.py)[ `]", page(name)):
        assert (PROJECT / program).is_file()
    for option in re.findall(r"benchmarks/soak\.py[^`]*(--\w+)", page(name)):
        assert option in (PROJECT / "benchmarks/soak.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in PAGES if name not in (COPIED, "own_data.md")])
def test_files_of_the_project_that_are_named_exist(name: str) -> None:
    for path in re.findall(r"`((?:harness|tests|benchmarks|docs|experiments|search_spaces)/[\w/]+\.\w+)`", page(name)):
        assert (PROJECT / path).is_file(), path


def test_scores_of_the_log_stand_where_it_took_them_from() -> None:
    """As they are, or as the ends of an interval with a sign."""
    known = page("studies.md") + (PROJECT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    known += (PROJECT / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"(?<![\d.])0\.\d{3}(?!\d)", page("lab_log.md")))
    assert len(told) > 15
    assert told <= set(re.findall(r"0\.\d{3}", known))


# own_data.md

CLAUSES = ["the battery lasts long", "it broke after a week", "sound is fine", "never again", "works as it should"]
Row = tuple[str, str, str]


def csv_text(rows: list[Row]) -> str:
    return "review,stars,product\n" + "".join(f'"{review}",{stars},{product}\n' for review, stars, product in rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with the names and faults that the page speaks of."""
    folder = tmp_path_factory.mktemp("own")
    stars = ["good", "bad", "fine"]
    rows = [(f"{CLAUSES[i % 5]}, bought {i} days ago", stars[i % 3], f"p{i % 25}") for i in range(120)]
    (folder / "reviews.csv").write_text(csv_text(rows))
    (folder / "blank.csv").write_text(csv_text([*rows, ("no stars given", "", "p3"), ("none here either", "", "p4")]))
    (folder / "ragged.csv").write_text("review,stars\ngreat, really great,good\nbad,bad\n")
    (folder / "latin.csv").write_bytes("review,stars\ncafé,good\nbad,bad\n".encode("latin-1"))
    lines = [f'{{"review": "{review}", "stars": "{star}"}}' for review, star, _ in rows]
    (folder / "reviews.jsonl").write_text("\n".join(lines))
    tests = {"fixed": rows[100:], "overlap": rows[85:110], "strange": [*rows[100:], ("odd one", "godo", "p1")]}
    for name, test in tests.items():
        (folder / name).mkdir()
        train = rows[:95] if name == "overlap" else rows[:80]
        for split, part in (("train", train), ("validation", rows[80:100]), ("test", test)):
            (folder / name / f"{split}.csv").write_text(csv_text(part))
    return folder


SHOWN = re.findall(r"^\$ python launch\.py (.+)\n((?:.+\n)+)", page("own_data.md"), flags=re.MULTILINE)


@pytest.mark.parametrize(("line", "told"), SHOWN, ids=[line.split()[1] for line, _ in SHOWN])
def test_mistakes_in_data_are_told_as_shown(
    line: str, told: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    assert main(shlex.split(line)) == 2
    assert capsys.readouterr().err == told.removesuffix("```\n")


def test_all_mistakes_are_shown() -> None:
    assert len(SHOWN) == len(re.findall(r"^error: ", page("own_data.md"), flags=re.MULTILINE)) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reviews.csv", "reviews.jsonl", "fixed"])
def test_plans_of_own_data_are_made(
    name: str, files: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    shown = pages.launches("\n".join(pages.blocks(page("own_data.md"))[:2]))
    (line,) = (line for line in shown if f"data.name={name} " in line and "--plan" in line)
    model = [word for word in tiny if word.startswith("model.name=")]
    assert main([*shlex.split(line), *model]) == 0
    assert "3 labels" in capsys.readouterr().out


def test_the_csv_and_the_experiment_on_the_page_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,), (experiment,) = pages.blocks(page("own_data.md"), "csv"), pages.blocks(page("own_data.md"), "yaml")
    (tmp_path / "reviews.csv").write_text(table)
    (tmp_path / "base.yaml").write_text((spec.EXPERIMENTS / "base.yaml").read_text())
    (tmp_path / "reviews.yaml").write_text(experiment)
    assert len(list(read_file(tmp_path / "reviews.csv").cells)) == 3
    monkeypatch.setattr(spec, "EXPERIMENTS", tmp_path)
    assert spec.load("reviews").data.group == "product"


# statistics.md


def scope() -> dict[str, Any]:
    """What the code on the page defines."""
    names: dict[str, Any] = {}
    for block in pages.blocks(page("statistics.md"), "python"):
        exec(block, names)  # noqa: S102 - the page's own
    return names


SCOPE = scope()
CELLS = dict(re.findall(r"^\| `([^`]+)` \| (-?[\d.]+) \|$", page("statistics.md"), flags=re.MULTILINE))


def digits(value: str) -> float:
    """Half of the last place that is printed."""
    return 0.5001 * 10.0 ** -len(value.partition(".")[2])


@pytest.mark.parametrize("code", CELLS)
def test_the_numbers_are_those_of_the_harness(code: str) -> None:
    assert float(eval(code, SCOPE)) == pytest.approx(float(CELLS[code]), abs=digits(CELLS[code]))


def by_scipy() -> dict[str, float]:
    """The same numbers from SciPy, or from the formula on the page."""
    a, b, d = (np.array(SCOPE[name]) for name in "abd")
    full, adapter = np.array(SCOPE["full_finetune"]), np.array(SCOPE["bottleneck_adapter"])
    labels, one, other = SCOPE["labels"], SCOPE["one"], SCOPE["other"]
    of_five, of_three = stats.ttest_rel(b, a), stats.ttest_rel(adapter, full)
    five, three = of_five.confidence_interval(), of_three.confidence_interval()
    p = sorted(SCOPE["three"])  # SciPy has no Holm: by the formula
    adjusted = [max(min(1.0, (3 - j) * p[j]) for j in range(i + 1)) for i in range(3)]
    flips = partial(stats.permutation_test, statistic=np.sum, permutation_type="samples", n_resamples=np.inf)
    only = int(((one == labels) & (other != labels)).sum()), int(((one != labels) & (other == labels)).sum())
    wilson = stats.binomtest(15, 20).proportion_ci(method="wilson")
    return {
        "paired_t_interval(a, b).mean": float(d.mean()),
        "paired_t_interval(a, b).sd": float(d.std(ddof=1)),
        "paired_t_interval(a, b).low": five.low,
        "paired_t_interval(a, b).high": five.high,
        "paired_t(a, b)": of_five.pvalue,
        "sign_flip(d)": flips((d,)).pvalue,
        "smallest_sign_flip_p(5)": flips((np.ones(5),)).pvalue,
        "wilcoxon(d)": stats.wilcoxon(d, method="exact").pvalue,
        "holm(three)[0]": adjusted[0],
        "holm(three)[1]": adjusted[1],
        "holm(three)[2]": adjusted[2],
        "paired_t_interval(full_finetune, bottleneck_adapter).mean": float((adapter - full).mean()),
        "paired_t_interval(full_finetune, bottleneck_adapter).low": three.low,
        "paired_t_interval(full_finetune, bottleneck_adapter).high": three.high,
        "paired_t(full_finetune, bottleneck_adapter)": of_three.pvalue,
        "sign_flip([-0.028, -0.025, -0.007])": flips((adapter - full,)).pvalue,
        "mcnemar(one == labels, other == labels)": stats.binomtest(only[0], sum(only)).pvalue,
        "wilson_interval(15, 20)[0]": wilson.low,
        "wilson_interval(15, 20)[1]": wilson.high,
    }


def test_the_numbers_are_those_of_scipy() -> None:
    for code, value in by_scipy().items():
        assert value == pytest.approx(float(CELLS[code]), abs=digits(CELLS[code])), code


def power(shift: float, n: int) -> float:
    """Of the two-sided paired t test at 0.05, for a true difference of `shift` standard deviations."""
    critical = stats.t.ppf(0.975, n - 1)
    return float(stats.nct.sf(critical, n - 1, shift * n**0.5) + stats.nct.sf(critical, n - 1, -shift * n**0.5))


def test_smallest_detectable_differences_have_that_power() -> None:
    ((heading, row),) = re.findall(r"^(\| seeds \|.*)\n.*\n(.*)$", page("statistics.md"), flags=re.MULTILINE)
    pairs = zip(heading.split("|")[2:-1], row.split("|")[2:-1], strict=True)
    for n, shift in ((int(n), float(shift)) for n, shift in pairs):
        assert power(shift, n) == pytest.approx(0.8, abs=0.01), n
    assert power(0.00708 / 0.00421, 5) == pytest.approx(0.8, abs=0.01)
    assert power(0.0371 / 0.01136, 3) == pytest.approx(0.8, abs=0.01)


def test_the_bootstrap_is_scipys() -> None:
    """Up to the noise of two times ten thousand resamples."""

    def f1(labels: Any, predicted: Any) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predicted, labels=[0, 1, 2], average="macro", zero_division=0))

    sample = tuple(SCOPE[name] for name in ("labels", "one", "other"))
    assert f1(sample[0], sample[2]) - f1(sample[0], sample[1]) == pytest.approx(SCOPE["boot"].estimate, abs=1e-12)

    def difference(labels: Any, one: Any, other: Any) -> float:
        weights = np.ones((1, len(labels)))
        return float(SCOPE["f1"](labels, other, weights)[0] - SCOPE["f1"](labels, one, weights)[0])

    found = stats.bootstrap(
        sample, difference, paired=True, vectorized=False, method="percentile", n_resamples=4000,
        random_state=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((SCOPE["boot"].low, SCOPE["boot"].high), abs=0.02)


def test_numbers_in_the_prose() -> None:
    text = page("statistics.md")
    assert "2.776" in text
    assert stats.t.ppf(0.975, 4) == pytest.approx(2.776, abs=5e-4)
    at_least_one = 1 - 0.95**8
    assert at_least_one == pytest.approx(1 / 3, abs=0.01)
    misses = [2 * stats.t.sf(1.96 * math.sqrt((s - 1) / s), s - 1) for s in (3, 5, 10)]
    told = re.search(
        r"miss in (\d+) % of cases with 3 seeds, (\d+) % with 5 and (\d+) % with 10", " ".join(text.split())
    )
    assert told
    assert [round(100 * share) for share in misses] == [int(share) for share in told.groups()]
