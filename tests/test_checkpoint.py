from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from harness import checkpoint, surgery
from harness.errors import StorageError
from tests.toys import classifier


class Counter(nn.Module):
    """A frozen weight, a trainable one, and a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.trained = nn.Parameter(torch.zeros(2))
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("derived", torch.zeros(1), persistent=False)


def test_what_trains_and_persistent_buffers_are_kept() -> None:
    assert set(checkpoint.trained_state(Counter())) == {"trained", "kept"}


def test_a_state_is_a_copy() -> None:
    model = Counter()
    state = checkpoint.trained_state(model)
    with torch.no_grad():
        model.trained.add_(1)
    assert state["trained"].tolist() == [0, 0]
    checkpoint.restore(model, state)
    assert model.trained.tolist() == [0, 0]


def test_files_follow_the_umask_and_nothing_temporary_stays(tmp_path: Path) -> None:
    path = checkpoint.save(checkpoint.trained_state(Counter()), tmp_path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def current_umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model = classifier()
    surgery.freeze_except(model, {"classifier.bias"})
    with pytest.raises(StorageError, match=r"belong to another model or other methods\n  why: differing: "):
        checkpoint.restore(model, checkpoint.trained_state(Counter()))


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
def test_a_broken_file_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / checkpoint.WEIGHTS).write_bytes(content)
    with pytest.raises(StorageError, match=checkpoint.WEIGHTS):
        checkpoint.load(tmp_path)
    with pytest.raises(StorageError, match="cannot read"):
        checkpoint.load(tmp_path / "absent")
