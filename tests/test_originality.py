"""The methods are written by hand, and the program that says so finds copies."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import check_originality as check

PROGRAM = Path(check.__file__)
LAYER = "lora/layer.py"


def peft_source(name: str) -> str:
    spec = importlib.util.find_spec("peft")
    assert spec and spec.origin
    return (Path(spec.origin).parent / "tuners" / name).read_text(encoding="utf-8")


class Disguise(ast.NodeTransformer):
    """Every name, text and number changed; docstrings and annotations added; definitions in reverse order."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("id", "attr", "arg", "name"):
            if isinstance(name := getattr(node, field, None), str):
                setattr(node, field, f"my_{name[::-1]}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int) and not isinstance(node.value, bool):
            node.value = node.value + "!" if isinstance(node.value, str) else node.value + 3
        if isinstance(node, ast.arg | ast.FunctionDef):
            setattr(node, "annotation" if isinstance(node, ast.arg) else "returns", ast.Name("Anything"))
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.body.insert(0, ast.Expr(ast.Constant("Written entirely by me.")))
        if isinstance(node, ast.Module | ast.ClassDef):
            rest = [child for child in node.body if not isinstance(child, ast.FunctionDef | ast.ClassDef)]
            node.body = [*rest, *(child for child in reversed(node.body) if child not in rest)]
        return node


def disguised(source: str) -> str:
    tree = ast.fix_missing_locations(Disguise().visit(ast.parse(source)))
    return "\n".join(f"{line}  # my own idea" for line in ast.unparse(tree).splitlines())


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty methods folder, compared with peft's LoRA alone."""
    folder = tmp_path / "harness" / "methods"
    folder.mkdir(parents=True)
    monkeypatch.setattr(check, "METHODS", folder)
    monkeypatch.setattr(check, "LIBRARIES", ("peft/tuners/lora",))
    return folder


def report(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def real_methods() -> list[Path]:
    return sorted((PROGRAM.parent.parent / "harness" / "methods").glob("*.py"))


def test_the_methods_are_original_and_nothing_is_imported_to_say_so() -> None:
    command = [sys.executable, "-X", "importtime", str(PROGRAM), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert said["original"] and not said["forbidden_imports"] and said["num_unread_files"] == 0
    assert said["num_units_of_theirs"]["peft/tuners"] > 500
    assert said["pairs"] and said["pairs"][0]["similarity"] < check.THRESHOLD
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ast" in imported
    assert not {"torch", "peft", "harness"} & imported


def test_every_method_but_the_wrappers_is_compared() -> None:
    names = {path.stem for path in check.own_files()}
    assert {"lora", "bottleneck_adapter"} <= names
    assert not names & check.WRAPPERS
    for path in check.own_files():
        assert check.units(path, path.name), f"{path.name} has nothing large enough to compare"


def test_a_disguised_copy_of_a_library_file_is_caught(methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = peft_source(LAYER)
    (methods / "mine.py").write_text(disguised(source), encoding="utf-8")
    assert check.main(["--json"]) == 1
    said = report(capsys)
    num_large = len(check.units(methods / "mine.py", "mine"))
    assert said["num_close"] == num_large > 20  # each function and class, not the file as a whole
    assert sum(pair["similarity"] == 1.0 for pair in said["pairs"]) >= num_large - 1  # constants open a module


@pytest.mark.parametrize("name", ["LoraLayer.update_layer", "Linear.merge", "Embedding"])
def test_one_disguised_definition_among_other_code_is_caught(
    methods: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    stolen = dict(check.definitions(ast.parse(peft_source(LAYER))))[name]
    theirs = disguised(ast.unparse(stolen))
    own = "\n\n".join(path.read_text(encoding="utf-8") for path in real_methods() if path.stem == "bottleneck_adapter")
    (methods / "mine.py").write_text(
        own.replace("from __future__ import annotations", "") + "\n\n" + theirs, encoding="utf-8"
    )
    assert check.main(["--json"]) == 1
    close = report(capsys)["pairs"][0]
    assert close["similarity"] == 1.0
    assert f"my_{stolen.name[::-1]}" in close["ours"] and close["ours"].startswith("harness/methods/mine.py:")


def test_a_disguised_copy_of_ours_elsewhere_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "LIBRARIES", ())
    (tmp_path / "deep").mkdir()
    text = (check.METHODS / "lora.py").read_text(encoding="utf-8")
    (tmp_path / "deep" / "theirs.py").write_text(disguised(text), encoding="utf-8")
    assert check.main(["--against", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "harness/methods/lora.py" in out and "deep/theirs.py" in out and "NOT original" in out
    assert check.main(["--against", str(tmp_path), "--threshold", "1", "--top", "0"]) == 1
    assert "1.00  harness/methods/lora.py" in capsys.readouterr().out  # what is too close is always shown


def test_a_copy_inside_a_long_function_is_caught_either_way() -> None:
    short, long = set(range(30)), set(range(1000))
    assert check.similarity(short, long) == check.similarity(long, short) == 1.0
    assert len(short & long) / len(short | long) == 0.03  # what Jaccard would say


def test_a_file_of_ours_is_not_its_own_copy_and_other_code_is_not_close(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "LIBRARIES", ())
    harness = check.METHODS.parent
    others = [str(harness / name) for name in ("methods", "signing/provenance.py", "data/dataset.py")]
    assert check.main(["--against", *others, random.__file__, "--json"]) == 0
    assert report(capsys)["num_units_of_theirs"][random.__file__] > 5


def swap_branches(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and node.orelse:
            node.test = ast.UnaryOp(ast.Not(), node.test)
            node.body, node.orelse = node.orelse, node.body
    return tree


def extract_arguments(tree: ast.AST) -> ast.AST:
    """`y = f(g(x))` becomes `value = g(x); y = f(value)`."""
    for block in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        body: list[ast.stmt] = []
        for statement in block.body:
            calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call) and node.args]
            if isinstance(statement, ast.Assign | ast.Return) and calls and isinstance(calls[0].args[0], ast.Call):
                body.append(ast.Assign([ast.Name("value", ast.Store())], calls[0].args[0]))
                calls[0].args[0] = ast.Name("value", ast.Load())
            body.append(statement)
        block.body = body
    return tree


@pytest.mark.parametrize("edit", [swap_branches, extract_arguments])
def test_an_edited_copy_is_caught(methods: Path, capsys: pytest.CaptureFixture[str], edit: Any) -> None:
    tree = ast.parse(peft_source(LAYER))
    edited = edit(copy.deepcopy(tree))
    assert ast.dump(edited) != ast.dump(tree)
    (methods / "mine.py").write_text(disguised(ast.unparse(ast.fix_missing_locations(edited))), encoding="utf-8")
    assert check.main(["--json"]) == 1
    assert report(capsys)["num_close"] > 20


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import math\nimport peft", 2),
        ("import peft.tuners as x", 1),
        ("from peft import LoraConfig as Settings", 1),
        ("def f():\n    from loralib.layers import Linear", 2),
        ("import importlib\nimportlib.import_module('peft')", 1),
        ("from importlib import import_module as load", 1),
        ("x = 1\n__import__('pe' + 'ft')", 2),
        ("exec('import peft')", 1),
        ("import sys\nsys.modules['peft'].LoraConfig()", 2),
        ("from torch import nn\nnn.utils.parametrize.register_parametrization", 2),
        ("import torch\ntorch.ao.quantization.quantize", 2),
        ("import torch.nn.utils.parametrizations", 1),
        ("from torch.optim import swa_utils", 1),
        ("from torch.nn.utils.parametrize import *", 1),
        ("from torch.nn import *", 1),
        ("from harness.methods import peft", 1),
        ("from . import peft", 1),
        ("from .peft import Peft", 1),
        ("from transformers.integrations.peft import PeftAdapterMixin", 1),
    ],
)
def test_forbidden_imports_are_told_with_their_place(methods: Path, code: str, line: int) -> None:
    (methods / "mine.py").write_text(code, encoding="utf-8")
    told = check.forbidden_imports(methods / "mine.py")
    assert len(told) == 1
    assert told[0].startswith(f"mine.py:{line} ")


def test_what_a_method_may_import(methods: Path) -> None:
    code = """import json, math, torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from harness.models import surgery
from harness.methods.lora import LoRA
model.eval(); nn.utils.clip_grad_norm_; torch.optim.SGD; peft = {"peft_type": "LORA"}
"""
    (methods / "mine.py").write_text(code, encoding="utf-8")
    assert check.forbidden_imports(methods / "mine.py") == []


def test_a_forbidden_import_fails_the_check(methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = next(path for path in real_methods() if path.stem == "lora").read_text(encoding="utf-8")
    (methods / "lora.py").write_text(f"{text}\nimport peft\n", encoding="utf-8")
    assert check.main([]) == 1
    assert f"forbidden: lora.py:{len(text.splitlines()) + 2} peft" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--against", "absent"], ["--threshold", "0"], ["--top", "-1"], ["--what"]])
def test_usage_errors(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        check.main(words)
    assert stopped.value.code == 2


def test_comparing_nothing_is_no_success(methods: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        check.main([])
    assert stopped.value.code == 2


def test_files_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("print 'Python 2'", encoding="utf-8")
    assert check.read("x", tmp_path, set()) == ([], 1)


@pytest.mark.parametrize(("k", "window"), [(1, 1), (3, 1), (3, 4), (5, 3), (check.K, check.WINDOW)])
def test_winnowing_finds_every_common_run_that_is_long_enough(k: int, window: int) -> None:
    """Of two random texts: all pairs of equal runs of window + k - 1 tokens, by enumeration, share a fingerprint."""
    draw, length, num_common = random.Random(k), window + k - 1, 0
    for _ in range(200):
        shared = draw.choices("abc", k=length)
        texts = [draw.choices("abc", k=draw.randrange(30)) + shared + draw.choices("abc", k=draw.randrange(30))
                 for _ in range(2)]  # fmt: skip
        first, second = (check.winnow(text, k, window) for text in texts)
        runs = [{tuple(text[i : i + length]) for i in range(len(text) - length + 1)} for text in texts]
        for run in runs[0] & runs[1]:
            num_common += 1
            assert check.winnow(list(run), k, window) <= first & second
            assert len(check.winnow(list(run), k, window)) == 1
    assert num_common >= 200


def test_texts_without_a_common_run_of_k_tokens_share_nothing() -> None:
    draw, num_apart = random.Random(0), 0
    for _ in range(200):
        texts = [draw.choices("abcd", k=40) for _ in range(2)]
        runs = [{tuple(text[i : i + 6]) for i in range(35)} for text in texts]
        common = set(check.hashes(texts[0], 6)) & set(check.hashes(texts[1], 6))
        assert len(common) == len(runs[0] & runs[1])
        num_apart += not common
    assert num_apart > 50
    assert check.winnow(["a", "b"], 3, 2) == set()


def test_the_rolling_hash_depends_on_the_run_alone() -> None:
    text = random.Random(0).choices("abcdefgh", k=50)
    assert check.hashes(text, 6) == [check.hashes(text[i : i + 6], 6)[0] for i in range(45)]


@pytest.mark.parametrize("seed", ["1", "2"])
def test_hashes_are_the_same_in_every_process(seed: str) -> None:
    code = "from tests import check_originality as c; print(sorted(c.winnow(list('abcdefghijklmnopqrstuvwxyz'))))"
    environment = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROGRAM.parent.parent, env=environment, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == sorted(check.winnow(list("abcdefghijklmnopqrstuvwxyz")))
