"""Reading, splitting and checking data: bad input is told with its place, good input gives the same splits."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.data import dataset as module
from harness.data.dataset import Data, Splits, describe
from harness.data.labelling import Classes
from harness.data.splitting import SPLITS
from harness.errors import DataError, StorageError

Row = dict[str, Any]


def rows_of(count: int, offset: int = 0) -> list[Row]:
    """Rows of two labels, each with its own text, five to a group."""
    return [
        {"text": f"text, number {i}\nin group g{i // 5}", "label": ["bad", "good"][i % 2], "by": f"g{i // 5}"}
        for i in range(offset, offset + count)
    ]


def write(path: Path, rows: list[Row]) -> Path:
    """Write rows in the format of the path's suffix."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return path


def data(name: Path | str, **fields: Any) -> Data:
    return Data(**{"name": str(name), "text": "text", "label": "label"} | fields)


def load(settings: Data) -> Splits:
    return module.load(settings, Classes())


def sides(splits: Splits) -> list[set[str]]:
    """The ids of each split."""
    return [{example.id for example in getattr(splits, name).examples} for name in SPLITS]


# ------------------------------------------------------------------------------------------------------------ built-ins


def test_product_reviews() -> None:
    splits = load(data("builtin:product_reviews"))
    everything = [example for name in SPLITS for example in getattr(splits, name).examples]
    assert splits.labels == ["negative", "neutral", "positive"]
    shares = [sum(example.label == label for example in everything) / len(everything) for label in range(3)]
    assert shares == pytest.approx([0.33, 0.21, 0.47], abs=0.01)
    assert len({example.id for example in everything}) == len(everything) == splits.report["rows"] == 3708
    documents = [{id.split("_")[0] for id in ids} for ids in sides(splits)]
    assert not documents[0] & documents[1] and not documents[0] & documents[2] and not documents[1] & documents[2]
    assert [len(ids) / 3708 for ids in sides(splits)] == pytest.approx([0.7, 0.15, 0.15], abs=0.005)
    assert all(len(example.ratings) == 20 for example in everything)


def test_the_split_depends_on_its_seed_only() -> None:
    first, again = load(data("builtin:tweets")), load(data("builtin:tweets"))
    other = load(data("builtin:tweets", split_seed=1))
    assert first == again
    assert sides(first)[2] != sides(other)[2]
    assert first.test.digest != other.test.digest


def test_cuts_make_classes() -> None:
    one = load(data("builtin:product_reviews", cuts=[0.0]))
    assert one.labels == ["negative", "positive"]
    from harness.catalogue.builtin import ratings

    means = {row.id: row.mean for row in ratings("product_reviews")}
    assert all((means[e.id] > 0) == (e.label == 1) for e in one.train.examples)
    three = load(data("builtin:product_reviews"))
    at_the_cut = [e for name in SPLITS for e in getattr(three, name).examples if abs(means[e.id]) == 0.5]
    assert len(at_the_cut) > 20 and {e.label for e in at_the_cut} == {1}


def test_a_built_in_has_its_own_columns() -> None:
    with pytest.raises(DataError, match=r"data.label: no column is called 'lable'\n.*text, label, doc.*\n.*'label'"):
        load(data("builtin:tweets", label="lable"))
    with pytest.raises(DataError, match=r"(?s)data\.label: .*fix: name one of them: data\.label=<column>$"):
        load(data("builtin:tweets", label="xyz"))
    with pytest.raises(DataError, match=r"(?s)data\.group: .*data\.group=<column>; data\.group=null if the rows"):
        load(data("builtin:tweets", group="xyz"))
    with pytest.raises(DataError, match=r"no built-in data set is called 'tweet'"):
        load(data("builtin:tweet"))
    with pytest.raises(DataError, match=r"only data sets of the Hub have a subset"):
        load(data("builtin:tweets", revision="main"))


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_splits(tmp_path: Path, suffix: str) -> None:
    reference = load(data(write(tmp_path / "a.csv", rows_of(40))))
    other = load(data(write(tmp_path / f"a{suffix}", rows_of(40))))
    assert [getattr(other, name) for name in SPLITS] == [getattr(reference, name) for name in SPLITS]
    assert other.report == reference.report
    assert reference.train.examples[0].text.count("\n") == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_a_folder_brings_its_splits(tmp_path: Path, suffix: str) -> None:
    parts = {"train": rows_of(20), "validation": rows_of(6, 20), "test": rows_of(8, 26)}
    for name, rows in parts.items():
        write(tmp_path / f"{name}{suffix}", rows)
    splits = load(data(tmp_path))
    for name, rows in parts.items():
        examples = getattr(splits, name).examples
        assert [(e.id, e.text) for e in examples] == [(f"{name}-{i}", row["text"]) for i, row in enumerate(rows, 1)]
        assert [splits.labels[e.label] for e in examples] == [row["label"] for row in rows]
        assert splits.report["splits"][name]["taken_from"] == name


def test_splits_by_other_names(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows_of(40))
    write(tmp_path / "dev.csv", rows_of(6, 40))
    write(tmp_path / "validation.jsonl", rows_of(8, 46))
    for name in (tmp_path, tmp_path / "train.csv"):
        splits = load(data(name, test="validation", validation="dev.csv"))
        assert [len(ids) for ids in sides(splits)] == [40, 6, 8]
    carved = load(data(tmp_path, test="dev"))
    assert [len(ids) for ids in sides(carved)] == [40, 8, 6], "the source's own validation is used"
    without = load(data(tmp_path, test="validation"))
    assert [len(ids) for ids in sides(without)] == [34, 6, 8], "a split serves once; validation is a share of train"
    with pytest.raises(DataError, match=r"data.test: the source has no 'tset'"):
        load(data(tmp_path, test="tset"))
    write(tmp_path / "train.tsv", rows_of(4))
    with pytest.raises(DataError, match=r"train.csv and train.tsv"):
        load(data(tmp_path))


def test_pairs_of_texts(tmp_path: Path) -> None:
    rows = [row | {"other": f"other {i}"} for i, row in enumerate(rows_of(40))]
    splits = load(data(write(tmp_path / "a.csv", rows), text=["text", "other"]))
    assert all(e.text == rows[int(e.id) - 1]["text"] for e in splits.train.examples)
    assert all(e.pair == rows[int(e.id) - 1]["other"] for e in splits.train.examples)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([10, 9, 2], ["2", "9", "10"]),
        ([True, False], ["false", "true"]),
        ([1.0, 0.0, -1.0], ["-1", "0", "1"]),
        ([0.5, 2.0], ["0.5", "2"]),
        (["NA", "None", "null", "nan"], ["NA", "None", "nan", "null"]),
        (["10", "9", "b"], ["10", "9", "b"]),
    ],
)
def test_labels_are_text(tmp_path: Path, values: list[Any], labels: list[str]) -> None:
    rows = [row | {"label": values[i % len(values)]} for i, row in enumerate(rows_of(60))]
    for suffix in (".jsonl", ".parquet"):
        assert load(data(write(tmp_path / f"a{suffix}", rows))).labels == labels


def test_a_huge_row_is_read(tmp_path: Path) -> None:
    rows = rows_of(40)
    rows[0]["text"] = "long " * 2_000_000
    splits = load(data(write(tmp_path / "a.csv", rows)))
    assert max(facts["characters"]["max"] for facts in splits.report["splits"].values()) == 10_000_000


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    good = "text,label\n" + "".join(f"größe {i},{i % 2}\n" for i in range(40))
    path.write_bytes(good.encode("latin-1"))
    with pytest.raises(DataError, match=r"a.csv:2: not utf-8: byte offset 13 is 0xf6\n.*\n.*data.encoding=latin-1"):
        load(data(path))
    reference = load(data(path, encoding="latin-1"))
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(good.encode(encoding))
        assert load(data(path, encoding=encoding.removesuffix("-sig"))).test == reference.test
    lines = write(tmp_path / "a.jsonl", rows_of(40))
    expected, text = load(data(lines)), lines.read_text()
    for encoding in ("utf-16", "utf-8-sig", "cp1252"):
        lines.write_bytes(text.encode(encoding))
        assert load(data(lines, encoding=encoding.removesuffix("-sig"))).test == expected.test
    path.write_bytes(b"\xef\xbb\xbf" + good.encode()[:20] + b"\xff")
    with pytest.raises(DataError, match=r"a.csv:2: not utf-8: byte offset 23 is 0xff"):
        load(data(path))


BAD_FILES: dict[str, tuple[str, str]] = {
    "cells.csv": ('text,label\n"two\nlines",x\na,b,c\n', r"cells.csv:4: 3 cells, but the header has 2"),
    "quote.csv": ('text,label\n"open,x\n', r"quote.csv:2: wrong quoting"),
    "twice.csv": ("text,text,label\n", r"twice.csv:1: two columns are called 'text'"),
    "nul.csv": ("text,label\na,x\nb\0b,y\n", r"nul.csv:3: column 'text' holds a NUL character"),
    "half.jsonl": (
        '{"text": "a", "label": "\\ud800"}\n',
        r"half.jsonl:1: column 'label' holds half a surrogate.*ud800",
    ),
    "broken.jsonl": ('{"text": "a", "label": "x"}\n\n{"text": \n', r"broken.jsonl:3: not JSON"),
    "list.jsonl": ("[1, 2]\n", r"list.jsonl:1: not an object"),
    "broken.json": ('[{"text": "a"},\n{"text" 1}]', r"broken.json:2: not JSON"),
    "one.json": ('[{"text": "a", "label": "b"}, 3]', r"one.json, item 2: not an object.*\n.*list of objects"),
    "nested.json": ('[{"text": ["a"], "label": "b"}]', r"nested.json, item 1: column 'text' holds a list"),
    "torn.parquet": ("PAR1 no", r"torn.parquet is no parquet file"),
    "header.csv": ("text,label\n", r"train has no rows"),
    "empty.csv": ("\n", r"data.name: .*empty.csv is empty\n  fix: write rows"),
    "empty.jsonl": ("", r"data.name: .*empty.jsonl is empty\n  fix: write rows"),
    "semi.csv": ("text;label\na, or b;x\n", r'semi.csv:1: the header is one cell, .* looks like ";"\n.*by commas'),
    "tabs.csv": ("text\tlabel\na\tx\n", r'tabs.csv:1: the header is one cell, .* looks like "\\t"\n.*by commas'),
    "commas.tsv": ("text,label\na,x\n", r'commas.tsv:1: the header is one cell, .* looks like ","\n.*by tabs'),
    "measured.csv": (
        "text,label\n" + "".join(f"t{i},{i / 7e4}\n" for i in range(40)),
        r"train has 40 labels that are numbers, .*: is this regression\?\n  fix: regression is not supported",
    ),
    "column.csv": ("Text,label\n", r"data.text: no column is called 'text'\n.*columns: Text, label\n.*'Text'"),
    "blank.csv": ("text,label\n  ,x\na,\nb,x\n", r"blank.csv:2: 2 of 3 rows are incomplete\n.*1 × text, 1 × label"),
    "single.csv": (
        "text,label\n" + "".join(f"t{i},x\n" for i in range(20)),
        r"train has one label only\n.*14 × 'x'\n.*another label$",
    ),
    "rare.csv": ("text,label\na,x\nb,x\nc,x\nd,y\n", r"train has fewer than 2 rows labelled 'y'"),
    "reviews.xlsx": ("text", r"reviews.xlsx is none of .csv, .tsv"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_told_with_their_place(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(data(tmp_path / name))


def test_a_parquet_file_with_a_damaged_page(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows_of(40))
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet is no parquet file that can be read"):
        load(data(path))


def test_incomplete_rows_can_be_dropped(tmp_path: Path) -> None:
    rows = [*rows_of(40), {"text": None, "label": "good", "by": "g"}, {"text": "x", "label": " ", "by": "g"}]
    for suffix in (".csv", ".jsonl", ".parquet"):
        splits = load(data(write(tmp_path / f"a{suffix}", rows), missing="drop"))
        assert splits.report["rows"] == 40
        assert splits.report["dropped"] == splits.report["splits"]["train"]["dropped"] == 2
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": NaN}\n{"label": "x"}\n')
    with pytest.raises(DataError, match=r"2 of 2 rows are incomplete\n.*1 × label, 1 × text"):
        load(data(tmp_path / "b.jsonl"))


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", rows_of(20))
    with pytest.raises(DataError, match=r"data.name: .*review.csv does not exist\n.*did you mean 'reviews.csv'"):
        load(data(tmp_path / "review.csv"))
    with pytest.raises(DataError, match=r"does not exist\n.*there is no folder"):
        load(data(tmp_path / "nowhere" / "reviews.csv"))
    with pytest.raises(DataError, match=r"no train file in .*\n.*it holds: reviews.csv"):
        load(data(tmp_path))
    with pytest.raises(DataError, match=r"'no such thing' is no built-in, no file or folder, and no id"):
        load(data("no such thing"))
    with pytest.raises(DataError, match=r"data.name: no file has such a name\n.*too long"):
        load(data("a" * 300))
    with pytest.raises(DataError, match=r"data.name: no file has such a name\n.*home"):
        load(data("~nobody-of-this-name/reviews.csv"))
    with pytest.raises(DataError, match=r"some/deep/folder does not exist\n.*there is no folder"):
        load(data("some/deep/folder"))
    (tmp_path / "folder.csv").mkdir()
    write(tmp_path / "folder.csv" / "train.csv", rows_of(40))
    assert load(data(tmp_path / "folder.csv")).report["rows"] == 40


def test_a_name_without_its_suffix_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "reviews.csv", rows_of(20))
    monkeypatch.chdir(tmp_path)
    told = (
        r"data.name: reviews does not exist\n  fix: did you mean 'reviews.csv'\? A data set of the Hub .* owner/reviews"
    )
    with pytest.raises(DataError, match=told):
        load(data("reviews"))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> BinaryIO:
        raise PermissionError(13, "Permission denied")

    paths = [write(tmp_path / f"a{suffix}", rows_of(20)) for suffix in (".csv", ".jsonl", ".parquet")]
    monkeypatch.setattr(Path, "open", refuse)  # file modes do not stop root
    for path in paths:
        with pytest.raises(StorageError, match=rf"cannot read .*{path.name}\n.*Permission denied"):
            load(data(path))


# ---------------------------------------------------------------------------------------------------- splits and checks


@given(
    sizes=st.lists(st.integers(1, 9), min_size=12, max_size=30),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.1, 0.3),
)
def test_groups_never_share_a_side(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, share: float
) -> None:
    rows = [
        {"text": f"{group}: {side} {i}", "label": side, "by": f"g{group}"}
        for group, size in enumerate(sizes)
        for i in range(size)
        for side in ("a", "b")
    ]
    path = write(tmp_path_factory.getbasetemp() / "groups.jsonl", rows)
    splits = load(data(path, group="by", split_seed=seed, validation=share, test=share))
    groups = [{e.text.split(":")[0] for e in getattr(splits, name).examples} for name in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(sizes)
    largest = 2 * max(sizes)
    for name in ("validation", "test"):
        assert abs(len(getattr(splits, name).examples) - share * len(rows)) <= largest / 2 + 1
    backwards = load(data(write(path, rows[::-1]), group="by", split_seed=seed, validation=share, test=share))
    for name in SPLITS:
        texts = sorted(e.text for e in getattr(splits, name).examples)
        assert texts == sorted(e.text for e in getattr(backwards, name).examples)


def test_without_groups_labels_keep_their_shares_and_texts_their_side(tmp_path: Path) -> None:
    rows = [{"text": f"Text  {i}", "label": "yes" if i % 4 else "no"} for i in range(200)]
    rows += [{"text": f"text {i} ", "label": "yes" if i % 4 else "no"} for i in range(0, 200, 3)]
    splits = load(data(write(tmp_path / "a.csv", rows)))
    for name in SPLITS:
        facts = splits.report["splits"][name]
        assert facts["labels"]["yes"] / facts["rows"] == pytest.approx(0.75, abs=0.03)
        assert facts["in_train"] == {"exact": 0, "normalised": 0}
    assert sum(splits.report["splits"][name]["duplicates"]["normalised"] for name in SPLITS) == 67
    assert sum(splits.report["splits"][name]["duplicates"]["exact"] for name in SPLITS) == 0


def test_labels_that_train_does_not_know(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows_of(20))
    write(tmp_path / "test.csv", [*rows_of(6, 20), {"text": "z", "label": "goood", "by": "g"}])
    told = r"test has the label 'goood' \(1 rows\), which train has not\n  fix: did you mean 'good'\?$"
    with pytest.raises(DataError, match=told):
        load(data(tmp_path))
    drawn = [{"text": f"t{i}", "label": "ab"[i % 2] if i < 38 else "c", "by": f"p{i // 2}"} for i in range(40)]
    file = write(tmp_path / "one.csv", drawn)
    refused: list[str] = []
    for seed in range(20):
        try:
            load(data(file, split_seed=seed, group="by"))
        except DataError as error:
            refused.append(str(error))
    assert refused and all("fix: known: a, b (or draw another split with data.split_seed)" in one for one in refused)


def test_overlap_between_train_and_test(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows_of(20))
    write(tmp_path / "validation.csv", rows_of(6, 40))
    repeated = [row | {"text": str(row["text"]).upper()} for row in rows_of(2)]
    write(tmp_path / "test.csv", repeated + rows_of(8, 60))
    with pytest.raises(DataError, match=r"2 of 10 test texts \(20.0%\) also stand in train\n.*0.1\n.*max_test_overlap"):
        load(data(tmp_path))
    splits = load(data(tmp_path, max_test_overlap=0.2))
    assert splits.report["splits"]["test"]["in_train"] == {"exact": 0, "normalised": 2}


def test_validation_that_overlaps_train_is_said(tmp_path: Path) -> None:
    """Refused of test, a NOTE of validation; of a text that stands in several groups, too."""
    write(tmp_path / "train.csv", rows_of(20))
    write(tmp_path / "test.csv", rows_of(8, 60))
    write(tmp_path / "validation.csv", rows_of(3) + rows_of(6, 40))
    note = "NOTE 3 of 9 validation texts also stand in train: what it chooses has seen them"
    splits = load(data(tmp_path))
    assert splits.report["notes"] == [note] and describe(splits).endswith(f"\n{note}")
    assert "NOTE" not in describe(load(data(tmp_path, max_test_overlap=0.4)))
    grouped = [{"text": f"text {i % 9}", "label": ["good", "bad"][i % 9 % 2], "by": f"p{i % 20}"} for i in range(200)]
    splits = load(data(write(tmp_path / "a.csv", grouped), group="by", test="test.csv", max_test_overlap=0))
    assert "validation texts also stand in train" in describe(splits)


def test_limit_keeps_every_label() -> None:
    splits = load(data("builtin:product_reviews", limit=30))
    for name in SPLITS:
        facts = splits.report["splits"][name]
        assert facts["rows"] == 30
        assert min(facts["labels"].values()) >= 4, "in proportion"
    assert splits == load(data("builtin:product_reviews", limit=30))
    everything = sides(load(data("builtin:product_reviews")))
    assert all(few < all_ for few, all_ in zip(sides(splits), everything, strict=True))
    with pytest.raises(DataError, match=r"data.limit: train has 3 labels, too many for 4 rows\n.*at least 6"):
        load(data("builtin:product_reviews", limit=4))


def test_the_report_is_json_and_the_table_says_the_same(tmp_path: Path) -> None:
    splits = load(data(write(tmp_path / "a.csv", rows_of(40))))
    assert json.loads(json.dumps(splits.report, allow_nan=False)) == splits.report
    facts = splits.report["splits"]["train"]
    assert facts["rows"] == len(splits.train.examples) and sum(facts["labels"].values()) == facts["rows"]
    assert facts["characters"] == {"p50": 27, "max": 27}
    lines = describe(splits).split("\n")
    assert lines[0].endswith("a.csv: 40 rows, 2 labels")
    assert lines[1].split()[:4] == ["split", "rows", "bad", "good"]
    assert lines[2].split()[:4] == ["train", "28", "14", "14"] and splits.train.digest[:19] in lines[2]
    many = [{"text": f"t{i}", "label": str(i % 9)} for i in range(90)]
    assert "per label" in describe(load(data(write(tmp_path / "b.csv", many))))


def test_the_digest_is_over_the_content(tmp_path: Path) -> None:
    import hashlib

    splits = load(data(write(tmp_path / "a.csv", rows_of(40))))
    content = "".join(
        json.dumps([e.id, e.text, None, splits.labels[e.label], []], separators=(",", ":")) + "\n"
        for e in splits.test.examples
    )
    assert splits.test.digest == f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cuts": [0.5, -0.5]}, "strictly increasing"),
        ({"cuts": [-1.0, 0.0, 1.0]}, "one cut makes negative and positive, two make"),
        ({"cuts": []}, "one cut makes"),
        ({"cuts": [5.0]}, "less than 4"),
        ({"validation": 0.5, "test": 0.5}, "must leave something for train"),
        ({"validation": "dev", "test": "dev"}, "must be different splits"),
        ({"test": "train"}, "'train' cannot be used"),
        ({"test": 0.0}, "greater than 0"),
        ({"test": True}, "valid"),
        ({"text": ["text"]}, "at least 2 items"),
        ({"text": ["text", "text"]}, "must be different columns"),
        ({"text": "label"}, "must be different columns"),
        ({"encoding": "utf-88"}, "no such text encoding"),
        ({"encoding": "base64"}, "no such text encoding"),
        ({"split_seed": -1}, "greater than or equal to 0"),
        ({"max_test_overlap": 1.1}, "less than or equal to 1"),
        ({"limit": 3}, "greater than or equal to 4"),
        ({"missing": "ignore"}, "'error' or 'drop'"),
        ({"name": ""}, "at least 1 character"),
    ],
)
def test_settings_are_judged_before_anything_is_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        data(**({"name": "nothing.csv"} | fields))


# ------------------------------------------------------------------------------------------------------------------ Hub


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as the library returns them: numbered classes, no label as -1, columns of no interest."""
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["world", "never", "business"]),
            "image": datasets.Value("binary"),
        }
    )

    def part(count: int, offset: int) -> datasets.Dataset:
        numbers = range(offset, offset + count)
        columns = {"text": [f"t{i}" for i in numbers], "label": [i % 2 * 2 for i in numbers], "image": [b"x"] * count}
        return datasets.Dataset.from_dict(columns, features=features)

    loaded = datasets.DatasetDict(train=part(40, 0), test=part(10, 40), unsupervised=part(1, 99))
    asked: list[Any] = []

    def load_dataset(*names: str, **options: str) -> datasets.DatasetDict:
        asked.append((names, options))
        return loaded

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # no network is asked for
    splits = load(data("some/thing", subset="small", revision="abc"))
    assert asked == [(("some/thing", "small"), {"revision": "abc"})]
    assert splits.source == "some/thing[small]@abc"
    assert splits.labels == ["world", "business"], "in the order of the source, those that occur"
    assert [len(ids) for ids in sides(splits)] == [34, 6, 10]
    assert all(splits.labels[e.label] == ["world", "business"][int(e.text[1:]) % 2] for e in splits.train.examples)
    unlabelled = datasets.Dataset.from_dict({"text": ["a"], "label": [-1], "image": [b""]}, features=features)
    loaded["test"] = unlabelled
    with pytest.raises(DataError, match=r"some/thing, row 1: 1 of 1 rows are incomplete\n.*1 × label"):
        load(data("some/thing"))
    with pytest.raises(DataError, match=r"data.text: no column is called 'txt'"):
        load(data("some/thing", text="txt"))


def test_importing_stays_light() -> None:
    heavy = "torch,pandas,pyarrow,datasets,sklearn,transformers"
    code = f"import sys, harness.data.dataset; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
