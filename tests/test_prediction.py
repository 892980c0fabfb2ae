"""A finished run predicts: the same as on its own test split, whatever the door; and nothing that was changed since."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.cli.launching import SMOKE, main
from harness.errors import DataError, SpecError, UserError
from tests.stores import QUIET

pytestmark = QUIET
METHODS = "methods={lora: {rank: 2, alpha: 4.0}, bottleneck_adapter: {size: 4}, mixout: {layers: head, p: 0.3}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A run's folder, in a folder of runs of its own."""
    output = tmp_path_factory.mktemp("output")
    words = ["exp=lora", *SMOKE, *tiny, METHODS, "latency.measure=false", "data.limit=null", f"output={output}"]
    words.append("tracking.register_as=mine@best")
    assert main(words) == 0
    (found,) = (output / "runs").iterdir()
    return found


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "runs" / folder.name))


def predict(folder: Path, *words: str, run: str = "") -> str:
    place = ["--run", run or folder.name, "--output", str(folder.parent.parent)]
    done = CliRunner().invoke(app, ["predict", *place, *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def own_predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "test" / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_says_of_its_test_split_what_it_said_then(folder: Path, tmp_path: Path) -> None:
    """Batched in other company: the same to the rounding of float32."""
    expected = own_predictions(folder)
    texts = tmp_path / "texts.csv"
    with texts.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["text", "note"], *((row["text"], row["id"]) for row in reversed(expected))])
    found = list(csv.DictReader(io.StringIO(predict(folder, "--file", str(texts)))))
    assert [row["note"] for row in found] == [row["id"] for row in reversed(expected)]
    for row, known in zip(reversed(found), expected, strict=True):
        assert row["predicted"] == known["predicted"]
        for key in ("confidence", "probability_a", "probability_b"):
            assert float(row[key]) == pytest.approx(float(known[key]), abs=1e-6)


def test_a_registered_model_is_the_run_whose_weights_it_is(folder: Path) -> None:
    found = predict(folder, "good", "--json", run="models:/mine@best")
    assert found == predict(folder, "good", "--json")
    with pytest.raises(UserError, match="no run is called 'models:/mine@worst'"):
        predict(folder, "good", run="models:/mine@worst")


def test_texts_files_and_programs_are_answered_alike(folder: Path, tmp_path: Path) -> None:
    texts = ["the screen was good", "never again"]
    spoken = predict(folder, *texts).splitlines()
    answers = json.loads(predict(folder, *texts, "--json"))
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"review": text, "n": i}) + "\n" for i, text in enumerate(texts)))
    out = tmp_path / "out.jsonl"
    assert predict(folder, "--file", str(lines), "--column", "review", "--out", str(out)) == f"2 rows in {out}\n"
    written = [json.loads(line) for line in out.read_text().splitlines()]
    for text, line, answer, row in zip(texts, spoken, answers, written, strict=True):
        assert line.startswith(answer["predicted"]) and line.endswith(text)
        assert answer["text"] == row["review"] == text
        assert answer["probability_a"] == row["probability_a"]
        assert answer["probability_a"] + answer["probability_b"] == pytest.approx(1)


def test_a_file_of_another_encoding_is_read(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("text\nel niño\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"not utf-8: .*\n.*\n  fix: --encoding=latin-1, or"):
        predict(folder, "--file", str(table))
    assert "el niño," in predict(folder, "--file", str(table), "--encoding", "latin-1")


@pytest.mark.parametrize("name", ["weights/trained.safetensors", "spec.yaml", "data.json"])
def test_a_run_that_was_changed_since_does_not_predict(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[-3] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} was changed after the run"):
        predict(copied, "good")
    (copied / name).unlink()
    with pytest.raises(UserError, match=r"is not there|no run is called"):
        predict(copied, "good")


def test_what_cannot_predict_says_why(copied: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"did you mean '{folder.name}'"):
        predict(folder.with_name(folder.name[:-1]), "good")
    (copied / "end.envelope.json").unlink()
    with pytest.raises(UserError, match="did not finish"):
        predict(copied, "good")
    table = tmp_path / "in.csv"
    table.write_text("review\ngood\n")
    with pytest.raises(DataError, match="no column is called 'text'"):
        predict(folder, "--file", str(table))
    table.write_text("text,predicted\ngood,a\n")
    with pytest.raises(DataError, match="a column is called 'predicted' already"):
        predict(folder, "--file", str(table))
    table.write_text("text,n\ngood,1\n,2\n")
    with pytest.raises(DataError, match="1 of 2 rows have no text"):
        predict(folder, "--file", str(table))
    table.write_text("text,probability_a\ngood,1\n")
    with pytest.raises(DataError, match="a column is called 'probability_a' already"):
        predict(folder, "--file", str(table))
    with pytest.raises(SpecError, match=r"2 text columns, the run was trained on 1 text column\n.*--column <text>$"):
        predict(folder, "--file", str(table), "--column", "text", "--column", "probability_a")
    with pytest.raises(SpecError, match=r"--out x.json: .* written as \.csv or \.jsonl\n  fix: give it such a name"):
        predict(folder, "--file", str(table), "--out", "x.json")
    with pytest.raises(SpecError, match=r"--out x.csv: --json prints, --out writes"):
        predict(folder, "--file", str(table), "--out", "x.csv", "--json")
    sheet = tmp_path / "in.xlsx"
    sheet.touch()
    with pytest.raises(DataError, match=r"--file: .*in\.xlsx is none of .csv"):
        predict(folder, "--file", str(sheet))
    with pytest.raises(SpecError, match=r"--file: .*im\.csv does not exist\n  fix: did you mean '.*in\.csv'"):
        predict(folder, "--file", str(tmp_path / "im.csv"))
    with pytest.raises(SpecError, match=r"^--encoding latin-x: Python knows no such text encoding\n  fix: try utf-8, "):
        predict(folder, "--file", str(table), "--encoding", "latin-x")
    for words in ([], ["good", "--file", str(table)], ["good", "--out", "x.csv"]):
        with pytest.raises(SpecError, match="give texts, or --file"):
            predict(folder, *words)


def test_other_pretrained_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import assembly

    monkeypatch.setattr(assembly, "identify", lambda spec: {"id": "x", "revision": "", "sha256": "0" * 64})
    with pytest.raises(UserError, match="are not those that the run was trained on"):
        predict(folder, "good")


def test_a_rehearsal_says_that_it_is_one(folder: Path) -> None:
    place = ["predict", "--run", folder.name, "--output", str(folder.parent.parent), "Great."]
    done = CliRunner().invoke(app, place)
    assert f"NOTE {folder.name} is a rehearsal (--smoke): trained for two steps on a few rows" in done.stderr
    assert "NOTE" not in done.stdout


def test_the_texts_are_never_written_over_and_what_is_replaced_is_said(folder: Path, tmp_path: Path) -> None:
    table, out, link = (tmp_path / name for name in ("in.csv", "out.csv", "link.csv"))
    table.write_text("text\ngood\n")
    link.symlink_to(table)
    for same in (table, link):
        with pytest.raises(SpecError, match=r"--out .*: that is the file with the texts\n  fix: name another file"):
            predict(folder, "--file", str(table), "--out", str(same))
    assert table.read_text() == "text\ngood\n"
    assert predict(folder, "--file", str(table), "--out", str(out)) == f"1 rows in {out}\n"
    assert predict(folder, "--file", str(table), "--out", str(out)) == f"1 rows in {out} (replaced)\n"


def test_truncated_texts_are_counted(folder: Path) -> None:
    place = ["predict", "--run", folder.name, "--output", str(folder.parent.parent), "--json"]
    done = CliRunner().invoke(app, [*place, "good", "good " * 200])
    assert "NOTE 1 of 2 texts are longer than the 128 tokens that are read" in done.stderr
    assert "NOTE" not in done.stdout


def test_a_model_with_random_weights_is_made_again_with_the_tokenizer_of_its_run(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frozen weights follow from the seed; without its data and the cache, as on another machine."""
    data = [word for word in tiny if word.startswith("data.")]
    sizes = "{layers: 1, d_model: 8, heads: 2, ffn: 8, vocabulary: 290, max_length: 128}"
    model = ["model.name=builtin:transformer", f"model.architecture={sizes}", "methods={bottleneck_adapter: {size: 2}}"]
    given = [*SMOKE, *data, *model, "latency.measure=false", "data.limit=null", "train.learning_rate=0.1"]
    assert main(["exp=full_finetune", *given, f"output={tmp_path}"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    expected = own_predictions(folder)
    monkeypatch.setattr("harness.models.tokenizing.cache_folder", lambda: tmp_path / "elsewhere")
    texts = tmp_path / "texts.csv"
    with texts.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([row["text"]] for row in expected)])
    found = list(csv.DictReader(io.StringIO(predict(folder, "--file", str(texts)))))
    assert [float(row["confidence"]) for row in found] == pytest.approx([float(row["confidence"]) for row in expected])
    (folder / "weights" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"weights/tokenizer/tokenizer\.json was changed after the run"):
        predict(folder, "good")
