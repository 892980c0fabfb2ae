"""Names and values that MLflow accepts, judged by MLflow itself."""

from __future__ import annotations

from typing import Any

import pytest

from harness.tracking.mlflow_store import allowed_name, short_digest, without_password


@pytest.mark.parametrize(
    "name", ["train/loss", "a*b<c", "../up", "..", "/root//x/", "a/./b", "ü/é", "x" * 300, "y" * 249 + "/z", "a/" * 200]
)
def test_every_name_becomes_one_mlflow_accepts(name: str) -> None:
    from mlflow.utils import validation

    check: Any = validation._validate_metric_name
    check(allowed_name(name))
    assert len(allowed_name(name)) <= 250
    assert allowed_name("train/f1 macro-1.0:x_y") == "train/f1 macro-1.0:x_y"


def test_digests_fit() -> None:
    assert short_digest("ab" * 32) == short_digest("sha256:" + "ab" * 32) == "ab" * 16


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@db/mlflow", "postgresql://me:***@db/mlflow"),
        ("postgresql://me:sec@ret@db/mlflow", "postgresql://me:***@db/mlflow"),
        ("https://me:sec/ret@host:5000", "https://me:***@host:5000"),
        ("postgresql://db/mlflow?user=me&password=secret&a=b", "postgresql://db/mlflow?user=me&password=***&a=b"),
        ("postgresql://db/mlflow?password=secret", "postgresql://db/mlflow?password=***"),
        ("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_no_part_of_a_password_is_shown(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
