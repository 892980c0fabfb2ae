"""What a finished run says of new texts: its own weights in its own model, as its statements name them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import assembly, checkpoint, storage
from harness.console import Terminal
from harness.data import dataset
from harness.data.dataset import Example
from harness.data.tables import Table
from harness.errors import DataError, SpecError, UserError, did_you_mean
from harness.evaluate import Evaluator
from harness.machine import device, processes
from harness.models.model import Model
from harness.predictions import Predictions
from harness.signing import digests, keys, provenance
from harness.signing.provenance import Envelope
from harness.specs import spec
from harness.specs.schema import Spec
from harness.tracking import stores

_READ = ("spec.yaml", "data.json", "weights/trained.safetensors")
_TOKENIZER = "weights/tokenizer"


class Predictor:
    """A finished run, ready to predict."""

    def __init__(self, run: str, output: Path, terminal: Terminal) -> None:
        """
        Args:
            run: its name, MLflow id, or folder.
            output: the folder of runs.
            terminal: where it says what it falls back to.

        Raises:
            UserError: no such run, one that did not finish, that was changed since, or whose pretrained model is
                another one here.
        """
        self.folder = _find(run, output)
        signed = _statement(self.folder)
        _check(self.folder, _READ, signed)
        end = signed.predicate or {}
        self.spec: Spec = spec.reload(self.folder / "spec.yaml", {})
        self.model = self._model(signed)
        if self.spec.tracking.experiment == stores.REHEARSALS:
            terminal.say(f"NOTE {self.folder.name} is a rehearsal (--smoke): trained for two steps on a few rows")
        base, known = end.get("baseModel", {}), assembly.identify(self.spec)
        if known.get("sha256") and base.get("sha256") and known["sha256"] != base["sha256"]:
            what = f"the pretrained weights of '{self.spec.model.name}' are not those that the run was trained on"
            raise UserError(what, where=str(self.folder), fix="bring back the model, or its revision, that it names")
        report = json.loads((self.folder / "data.json").read_text(encoding="utf-8"))
        self.labels = list(report["splits"]["train"]["labels"])
        self._seed, self._terminal = int(end["seeds"][0]), terminal
        self.task = assembly.task_of(self.spec)
        if not self.task.answer_columns(self.labels):
            what = f"{self.folder.name} was trained on the task {next(iter(self.spec.task))}"
            raise UserError(f"{what}, which does not answer single texts", where=str(self.folder))

    @property
    def texts(self) -> list[str]:
        """The one or two columns with text in the data that it was trained on."""
        return self.spec.data.texts

    def predict(self, examples: list[Example]) -> Predictions:
        """What the model says of each, in order. Raises ModelError, DataError, StorageError, TrainingError."""
        say = self._terminal.say
        accelerator = processes.build_accelerator(device.resolve_precision(self.spec.precision, say))
        device.use_all_cores(say)
        device.use_fast_matmul(say)
        task = self.task
        facts = task.load_inputs(examples, self.labels, self.model)
        if count := facts.get("truncated"):
            say(f"NOTE {count} of {len(examples)} texts are longer than the {facts['longest']} tokens that are read")
        assembled = assembly.rebuild(self.spec.model_copy(update={"model": self.model}), task, self._seed)
        checkpoint.restore(assembled.model, checkpoint.load(self.folder / "weights"))
        assembled.model.to(accelerator.device).eval()
        return Evaluator(accelerator, say).predict_alone(assembled.model, task, "inputs")

    def _model(self, signed: Envelope) -> Model:
        """The spec's, with the tokenizer that was trained in the run, if one was."""
        model = self.spec.model
        if not model.is_own or model.tokenizer:
            return model
        _check(self.folder, [f"{_TOKENIZER}/tokenizer.json"], signed)
        return model.model_copy(update={"tokenizer": str(self.folder / _TOKENIZER)})


def _find(run: str, output: Path) -> Path:
    """The folder of a run, by its name, id or folder, or of a registered model."""
    place = Path(run)
    if not (place / "spec.yaml").is_file() and not run.startswith("models:/"):
        place = output / "runs" / storage.safe_name(run)
    if not place.is_dir() and (found := stores.find_run(None, output, run)):
        place = output / "runs" / found.name
    if not (place / "spec.yaml").is_file():
        known = [path.parent.name for path in (output / "runs").glob("*/end.envelope.json")]
        raise UserError(f"no run is called '{run}'", where=str(output / "runs"), fix=did_you_mean(run, known))
    if (place / "replicates.json").is_file():
        names = ", ".join(json.loads((place / "replicates.json").read_text(encoding="utf-8")))
        raise UserError(f"{place.name} is a group of replicates", fix=f"name one of {names}")
    return place


def _statement(folder: Path) -> Envelope:
    """The end statement. Raises UserError."""
    if not (folder / "end.envelope.json").is_file():
        raise UserError(f"{folder.name} did not finish", where=str(folder), fix=f"launch.py --resume {folder.name}")
    envelope = provenance.open_envelope(folder / "end.envelope.json", keys.load_keyring())
    if envelope.predicate is None:
        raise UserError("the end statement cannot be trusted", where=str(folder), why=envelope.check.detail)
    return envelope


def _check(folder: Path, names: Sequence[str], envelope: Envelope) -> None:
    """Raise UserError unless these files are there, and as the end statement signs them."""
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{name} is not there", where=str(folder), fix="only runs that kept their weights predict")
        if digests.file_digest(folder / name) != envelope.subjects.get(name):
            raise UserError(f"{name} was changed after the run", where=str(folder), fix=f"harness verify {folder.name}")


def examples_of(table: Table, texts: list[str], predictor: Predictor) -> list[Example]:
    """The rows of a file.

    Raises:
        DataError: also where a column of the answer stands in it already.
        SpecError: one text column where the run was trained on pairs, or the reverse.
    """
    if len(texts) != len(predictor.texts):
        given, wanted = (f"{n} text column{'s' * (n != 1)}" for n in (len(texts), len(predictor.texts)))
        fix = f"give {wanted}: {' '.join(f'--column <{name}>' for name in predictor.texts)}"
        raise SpecError(f"{given}, the run was trained on {wanted}", where="--column", fix=fix)
    answer = predictor.task.answer_columns(predictor.labels)
    if taken := [name for name in answer if name in table.columns]:
        raise DataError(f"a column is called '{taken[0]}' already", fix="rename it: the answer is written there")
    return dataset.unlabelled(table, texts, predictor.task.labelling, "--column")


def write(table: Table, answers: list[dict[str, Any]], file: Path | None) -> str:
    """The rows of a table with their answers: CSV, or JSON lines where the file is called so; returned if no file."""
    rows: list[dict[str, Any]] = [{**cells, **answer} for (_, cells), answer in zip(table.cells, answers, strict=True)]
    if file and file.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    else:
        made = io.StringIO(newline="")
        writer = csv.DictWriter(made, [*table.columns, *answers[0]], lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        text = made.getvalue()
    if file:
        storage.write_text(file, text)
    return text


def _cell(value: Any) -> Any:
    """A value as CSV holds it: lists and maps as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
