"""A language model out of a GGUF file: kept whole or made again, with the numbers that the file stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.catalogue import builtin, dequantised
from harness.errors import ModelError, StorageError


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows by each file that is converted, which here copies it."""
    found: list[Path] = []

    def copy(file: Path, folder: Path) -> None:
        found.append(file)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(file.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(dequantised, "convert", copy)
    return found


def kept(folder: Path, content: str, digest: str = "d1") -> Path:
    file = folder / "model.gguf"
    file.write_text(content)
    return dequantised.kept(folder / "cache" / "one", digest, lambda: file)


def test_it_is_made_once_and_again_where_something_is_missing_damaged_or_of_another_file(
    tmp_path: Path, made: list[Path]
) -> None:
    folder = kept(tmp_path, "a")
    assert kept(tmp_path, "b") == folder
    assert len(made) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "dequantised.json", "model.safetensors"]
    (folder / "config.json").write_text("{ }")
    kept(tmp_path, "a")
    assert ((folder / "config.json").read_text(), len(made)) == ("{}", 2)
    (folder / "model.safetensors").unlink()
    kept(tmp_path, "a")
    (folder / "dequantised.json").write_text("not JSON")
    kept(tmp_path, "a")
    assert len(made) == 4
    kept(tmp_path, "other", "d2")
    assert (folder / "model.safetensors").read_text() == "other"
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == [], "nothing half-made stays"


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, folder: Path) -> None:
        folder.mkdir()
        raise ModelError("broken")

    monkeypatch.setattr(dequantised, "convert", fail)
    with pytest.raises(ModelError, match="broken"):
        kept(tmp_path, "a")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["one.lock"]


def test_without_the_package_that_reads_it_the_error_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    def fail(*_: object, **__: object) -> None:
        raise ImportError("Please install torch and gguf>=0.10.0")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"cannot read x\.gguf\n.*Please install .*\n.*pip install 'gguf"):
        dequantised.convert(tmp_path / "x.gguf", tmp_path / "out")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot keep smollm2 in"):
        builtin.model_path("smollm2")


@pytest.mark.slow
def test_smollm2_has_the_numbers_of_its_file() -> None:
    """Q4_1: 32 weights share a scale d and a minimum m; weight = d q + m, the first 16 in the low halves of bytes."""
    from gguf import GGUFReader
    from safetensors import safe_open

    folder = builtin.model_path("smollm2")
    reader = GGUFReader(builtin.fetch(builtin._SMOLLM2) / builtin._GGUF)
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.3.ffn_down.weight")
    assert tensor.tensor_type.name == "Q4_1"
    blocks = np.asarray(tensor.data).view(np.uint8).reshape(-1, 20)
    scales = blocks[:, :4].copy().view(np.float16).astype(np.float32)  # d, m
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    expected = scales[:, :1] * nibbles + scales[:, 1:]
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        found = weights.get_tensor("model.layers.3.mlp.down_proj.weight")
        assert weights.get_slice("model.embed_tokens.weight").get_shape() == [49152, 576]
    assert found.shape == (576, 1536)
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
