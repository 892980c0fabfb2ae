"""Where data come from: built-ins, files, folders and data sets of the Hub, part by part, as tables of cells."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from harness.catalogue import builtin, hub
from harness.data import builtin_tables
from harness.data.builtin_tables import RATED_LABELS
from harness.data.files import SUFFIXES, name_tags, read_file
from harness.data.splitting import SPLITS
from harness.data.synthetic_entities import Sentences
from harness.data.tables import Anew, Cells, Parts, Table
from harness.errors import DataError, did_you_mean
from harness.settings import Settings

Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]


class Source(Settings):
    """What is read, and which of its columns are used."""

    name: Name
    """A built-in such as `builtin:product_reviews`, a folder, a csv, tsv, jsonl, json, parquet, txt, conll, bio or iob
    file, or else an id on the Hub."""
    subset: Name | None = None
    """Hub only: the configuration of the data set."""
    revision: Name | None = None
    """Hub only: branch, tag or commit; name a commit to read the same rows forever."""
    text: Name | Annotated[list[Name], Field(min_length=2, max_length=2)]
    """The column with the text, or two columns for pairs of texts. Built-ins: `text`;
    `builtin:instructions`: `prompt`."""
    label: Name | None
    """The column with what is to be learnt; null for a task that learns from text alone. Classes are text, whatever the
    file says. Built-ins: `label`; `builtin:instructions`: `completion`."""
    group: Name | None = None
    """Rows with the same value in this column stay in one split. Built-ins: `document` if none is named."""
    cuts: list[Annotated[float, Field(gt=-4, lt=4)]] = Field(default=[-0.5, 0.5])
    """Built-ins: a mean rating below the first cut is negative, above the last positive, else neutral; with one cut
    negative up to the cut, the cut included, and positive above."""
    sentences: Sentences | None = None
    """What `builtin:ner` is made of; null: its defaults. Other data are what they are."""
    encoding: Name = "utf-8"
    """Of csv, tsv, jsonl, json, txt and CoNLL files; anything that does not decode is an error."""

    @field_validator("cuts")
    @classmethod
    def _cuts_make_classes(cls, cuts: list[float]) -> list[float]:
        if len(cuts) not in RATED_LABELS:
            raise ValueError("one cut makes negative and positive, two make negative, neutral and positive")
        if sorted(set(cuts)) != cuts:
            raise ValueError("cuts must be strictly increasing")
        return cuts

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            "text".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError("Python knows no such text encoding; try utf-8, utf-16, latin-1 or cp1252") from None
        return encoding

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = [*self.texts, *([self.label] if self.label else [])]
        if len(set(columns)) < len(columns):
            raise ValueError("text and label must be different columns")
        return self

    @model_validator(mode="after")
    def _sentences_are_used(self) -> Self:
        if self.sentences and self.name != f"{builtin.PREFIX}ner":
            raise ValueError(f"sentences is for {builtin.PREFIX}ner; {self.name} has its own")
        return self

    @property
    def texts(self) -> list[str]:
        """The one or two text columns."""
        return [self.text] if isinstance(self.text, str) else self.text


# ---------------------------------------------------------------------------------------------------------------- parts


def find_parts(source: Source, named: list[str]) -> Parts:
    """The parts of a source: `train` always, `validation`, `test` and those `named` where they exist.

    Raises:
        DataError: nothing has this name, it cannot be reached, or it has no `train`.
    """
    if source.name.startswith(builtin.PREFIX):
        _refuse_hub_settings(source)
        name = source.name.removeprefix(builtin.PREFIX)
        return builtin_tables.parts(name, source.cuts, source.sentences or Sentences())
    try:
        path = Path(source.name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder that is not known
        why = getattr(error, "strerror", None) or str(error)
        raise DataError("no file has such a name", where="data.name", why=why) from error
    if not exists and path.suffix.lower() not in SUFFIXES and not hub.is_path(source.name):
        _refuse_half_a_name(path)
        return _hub_parts(source)
    _refuse_hub_settings(source)
    if not exists:
        near = [file.name for file in path.parent.glob("*") if file.suffix.lower() in SUFFIXES or _has_train(file)]
        fix = did_you_mean(path.name, near) if near else f"there is no data file in {path.parent.resolve()}"
        fix = fix if path.parent.is_dir() else f"there is no folder {path.parent} either"
        raise DataError(f"{source.name} does not exist", where="data.name", fix=fix)
    files = _folder_files(path, named) if path.is_dir() else {"train": path, **_find_files(path.parent, named)}
    return {name: partial(read_file, file, source.encoding) for name, file in files.items()}


def _refuse_hub_settings(source: Source) -> None:
    if source.subset or source.revision:
        raise DataError("only data sets of the Hub have a subset and a revision", where="data.subset, data.revision")


def _refuse_half_a_name(path: Path) -> None:
    """`reviews` beside reviews.csv is no data set of the Hub; one that is called so has an owner's name, too."""
    near = [f"'{path.name}{suffix}'" for suffix in SUFFIXES if path.with_name(f"{path.name}{suffix}").is_file()]
    if near and path.name == str(path):
        fix = f"did you mean {' or '.join(near)}? A data set of the Hub is called owner/{path.name}"
        raise DataError(f"{path} does not exist", where="data.name", fix=fix)


def _has_train(folder: Path) -> bool:
    return any((folder / f"train{suffix}").is_file() for suffix in SUFFIXES)


def _folder_files(folder: Path, named: list[str]) -> dict[str, Path]:
    files = _find_files(folder, [*SPLITS, *named])
    if "train" not in files:
        why = f"it holds: {', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
        fix = f"call one of them train, with one of {', '.join(SUFFIXES)}"
        raise DataError(f"no train file in {folder}", where="data.name", why=why, fix=fix)
    return files


def _find_files(folder: Path, names: list[str]) -> dict[str, Path]:
    """These names, with or without their suffix, as far as the folder has them."""
    files = {}
    for name in names:
        found = [file for suffix in ("", *SUFFIXES) if (file := folder / f"{name}{suffix}").is_file()]
        if len(found) > 1:
            what, fix = f"{folder} has {' and '.join(file.name for file in found)}", "leave only one of them there"
            raise DataError(what, where="data.name", fix=fix)
        if found:
            files[name] = found[0]
    return files


# ------------------------------------------------------------------------------------------------------------------ Hub


def _hub_parts(source: Source) -> Parts:
    """The splits of a data set on the Hub."""
    if not hub.is_id(source.name):
        what = f"'{source.name}' is no built-in, no file or folder, and no id of the Hub"
        fix = did_you_mean(source.name, [builtin.PREFIX + name for name in builtin.DATA])
        raise DataError(what, where="data.name", fix=fix)
    import datasets

    if not datasets.config.HF_HUB_OFFLINE:
        hub.require_reachable(source.name, DataError, "data.name", "datasets")
    fix, absent = "see why; name another subset or revision", datasets.exceptions.DatasetNotFoundError
    with hub.explained("rows", source.name, DataError, "data.name", fix, absent):
        loaded = datasets.load_dataset(source.name, source.subset, revision=source.revision)
    if "train" not in loaded:
        raise DataError("no split is called 'train'", where=source.name, why=f"splits: {', '.join(loaded)}")
    return {name: partial(_hub_table, part, source) for name, part in loaded.items()}


def _hub_table(part: Any, source: Source) -> Table:
    """Only the columns that are used; class numbers, also those of lists, become class names, and -1 (no label)
    nothing.
    """
    wanted = [name for name in (*source.texts, source.label, source.group) if name in part.column_names]
    feature = part.features.get(source.label)
    names: list[str] | None = getattr(feature, "names", None)
    listed: list[str] | None = getattr(getattr(feature, "feature", None), "names", None)

    def rows() -> Iterator[Cells]:
        for number, row in enumerate(part.select_columns(wanted), 1):
            if names and row[source.label] is not None:
                row[source.label] = names[row[source.label]] if row[source.label] >= 0 else None
            yield f"{source.name}, row {number}", row

    if source.label and listed:
        tagged = {source.label: listed}
        return Table(part.column_names, Anew(lambda: name_tags(rows(), tagged)), listed)
    return Table(part.column_names, Anew(rows), names)
