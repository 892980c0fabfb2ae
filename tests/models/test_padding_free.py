"""Layers without padding against the plain path: outputs and gradients of several families, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from harness import losses, notes, seeding
from harness.gradients import ExactGradient, OutOfMemory
from harness.machine.processes import Agreement
from harness.methods.peft import Peft
from harness.models import dropout, layout, padding_free
from tests.toys import ALL_FAMILIES, FAMILIES, ToyTask, classifier, language_batch, language_model, random_batch

LENGTHS = [7, 2, 5, 5, 1, 3]
SUITABLE = (*FAMILIES, "gpt2", "llama")


@pytest.fixture(autouse=True)
def _no_notes() -> Iterator[None]:
    notes._told.clear()
    yield
    notes._told.clear()


def inputs(lengths: list[int] = LENGTHS, *, left: bool = False) -> dict[str, Tensor]:
    """Random tokens, padded on the right, or on the left, to the longest."""
    found = dict(random_batch(lengths).per_token)
    return {name: torch.stack([row.roll(max(lengths) - n) for row, n in zip(x, lengths, strict=True)]) if left else x
            for name, x in found.items()}  # fmt: skip


def attached(family: str, p: float = 0.0, mode: padding_free.Mode = "auto") -> Any:
    model = classifier(family, p)
    padding_free.attach(model, mode)
    return model


def seen_by_layers(model: Any) -> list[tuple[int, ...]]:
    """Grows by the shape of what the second layer is given, without the width."""
    shapes: list[tuple[int, ...]] = []
    model._padding_free.layers[1].register_forward_pre_hook(
        lambda _, args, named: shapes.append(tuple((args[0] if args else named["hidden_states"]).shape[:2])),
        with_kwargs=True,
    )
    return shapes


def gradients(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a sum in which each of them weighs differently."""
    model.zero_grad()
    logits = model(**given).logits
    (logits * torch.arange(1.0, logits.numel() + 1).view_as(logits)).sum().backward()
    return logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", SUITABLE)
def test_outputs_and_gradients_are_those_of_the_padded_path(family: str) -> None:
    model = attached(family).train()
    expected, expected_gradients = gradients(model, inputs())
    with padding_free.running(model):
        model(**inputs())
        shapes = seen_by_layers(model)
        found, found_gradients = gradients(model, inputs())
    assert shapes == [(1, sum(LENGTHS))]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in found_gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("family", ["llama", "grouped", "gpt2"])
def test_language_models_with_heads_that_share_keys_and_values(family: str) -> None:
    """Logits and gradients of all real tokens, against each text in a row of its own, and the padded path."""
    model: Any = language_model(family)
    batch = language_batch(LENGTHS)
    labels = batch.per_token["labels"]
    given = {name: tensor for name, tensor in batch.per_token.items() if name != "labels"}
    found = []
    for mode in ("never", "always"):
        padding_free.attach(model, mode)
        model.zero_grad()
        with padding_free.running(model):
            model(**given)
            shapes = seen_by_layers(model) if mode == "always" else []
            logits = model(**given).logits
            losses.cross_entropy_sum(logits, labels).backward()
        found.append((logits[given["attention_mask"] == 1], [p.grad.clone() for p in model.parameters()]))
        if mode == "always":
            assert shapes == [(1, sum(LENGTHS))]
    alone = torch.cat([model(input_ids=given["input_ids"][i : i + 1, :n]).logits[0] for i, n in enumerate(LENGTHS)])
    for logits, _ in found:
        torch.testing.assert_close(logits, alone, rtol=1e-10, atol=1e-12)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


def test_padding_may_stand_on_the_left_unless_the_head_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    for family, is_suitable in (("llama", True), ("bert", False)):
        model, given = attached(family), inputs(left=True)
        expected = model(**given).logits
        with padding_free.running(model):
            torch.testing.assert_close(model(**given).logits, expected, rtol=1e-10, atol=1e-12)
        assert padding_free.is_on(model) == is_suitable
        assert ("outputs differ by" in capsys.readouterr().err) != is_suitable


@pytest.mark.parametrize("family", sorted({*ALL_FAMILIES} - {*SUITABLE}))
def test_a_model_that_cannot_keeps_its_padding_and_says_so(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = attached(family)
    expected = model(**inputs()).logits
    with padding_free.running(model):
        assert torch.equal(model(**inputs()).logits, expected)
    assert not padding_free.is_on(model)
    assert "NOTE layers run with padding: " in capsys.readouterr().err


def test_a_model_that_computes_something_else_without_padding_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    model = attached("bert")
    model.bert.encoder.layer[1].register_forward_hook(lambda _, args, output: output + output.mean(1, keepdim=True))
    expected = model(**inputs()).logits
    with padding_free.running(model):
        assert torch.equal(model(**inputs()).logits, expected)
    assert not padding_free.is_on(model)
    assert "NOTE layers run with padding: without it outputs differ by" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("kind", "is_suitable"), [("LOHA", True), ("PROMPT_TUNING", False), ("PREFIX_TUNING", False)])
def test_methods_run_without_padding_unless_they_add_tokens(kind: str, is_suitable: bool) -> None:
    layers = {"r": 2, "target_modules": ["query"], "init_weights": False}
    chosen: dict[str, Any] = layers if kind == "LOHA" else {"num_virtual_tokens": 2}
    model: Any = Peft(type=kind, config=chosen).edit_model(classifier("bert")).double().eval()
    expected = model(**inputs()).logits
    padding_free.attach(model, "auto")
    with padding_free.running(model):
        torch.testing.assert_close(model(**inputs()).logits, expected, rtol=1e-10, atol=1e-12)
    assert padding_free.is_on(model) == is_suitable


def test_outside_of_running_and_after_an_error_the_model_is_plain() -> None:
    model = attached("bert")

    def fail(*_: Any) -> None:
        raise ValueError

    with padding_free.running(model):
        model(**inputs())
        broken = model.classifier.register_forward_pre_hook(fail)
        with pytest.raises(ValueError):
            model(**inputs())
        broken.remove()
        assert model.config._attn_implementation == "sdpa"
    shapes = seen_by_layers(model)
    model(**inputs())
    assert shapes == [(len(LENGTHS), max(LENGTHS))]
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_copy_runs_its_own_layers() -> None:
    model = attached("bert")
    with padding_free.running(model):
        model(**inputs())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight.mul_(2)
    expected = other(**inputs()).logits
    with padding_free.running(other):
        shapes = seen_by_layers(other)
        torch.testing.assert_close(other(**inputs()).logits, expected, rtol=1e-10, atol=1e-12)
    assert shapes == [(1, sum(LENGTHS))]
    assert model.config is not other.config


def test_the_trial_changes_neither_modes_nor_generators() -> None:
    model = attached("bert", 0.3).train()
    model.bert.pooler.eval()
    modes, before = [m.training for m in model.modules()], torch.get_rng_state()
    with padding_free.trial(model):
        model(**inputs())
    assert model._padding_free.is_proven is True
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())


def test_running_out_of_memory_in_the_trial_is_no_verdict() -> None:
    model = attached("bert")

    def run_out(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    hook = model.bert.encoder.layer[0].register_forward_hook(run_out)
    with pytest.raises(RuntimeError, match="can't allocate"), padding_free.running(model):
        model(**inputs())
    assert model._padding_free.is_proven is None
    hook.remove()
    with padding_free.running(model):
        model(**inputs())
    assert model._padding_free.is_proven is True


def test_dropout_of_attention_is_that_of_the_config() -> None:
    model = attached("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    dropped: list[float] = []

    def drop(x: Tensor, p: float) -> Tensor:
        dropped.append(p)
        return dropout.dropout(x, p)

    with pytest.MonkeyPatch.context() as patch, padding_free.running(model):
        model(**inputs())
        patch.setattr(layout, "drop", drop)
        model(**inputs())
        assert set(dropped) == {0.0}
        dropped.clear()
        model.train()(**inputs())
        assert set(dropped) == {0.5}


def test_never_means_never() -> None:
    model = attached("bert", mode="never")
    shapes = seen_by_layers(model)
    with padding_free.running(model):
        model(**inputs())
    assert not padding_free.is_on(model)
    assert shapes == [(len(LENGTHS), max(LENGTHS))]


def test_a_whole_batch_is_one_micro_batch_with_the_gradient_of_any_cut() -> None:
    batch, found = random_batch(LENGTHS), {}
    for mode, budget in (("never", 1000), ("always", 1000), ("always", 14)):
        model = attached("bert", mode=mode).train()  # type: ignore[arg-type]
        exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), budget)
        exact.load(batch)
        state = seeding.capture()
        exact()
        assert torch.equal(state.torch, seeding.capture().torch)
        found[mode, budget] = exact.num_micro_batches, [p.grad for p in model.parameters()]
    assert found["always", 1000][0] == 1
    assert found["always", 14][0] > 1
    for _, others in found.values():
        for gradient, other in zip(found["never", 1000][1], others, strict=True):
            torch.testing.assert_close(other, gradient, rtol=1e-8, atol=1e-10)


def test_a_process_without_a_part_of_the_first_batch_tries_the_same_texts() -> None:
    model, accelerator = attached("bert").train(), Accelerator(cpu=True)
    alone = SimpleNamespace(num_processes=9, process_index=8, device=accelerator.device, autocast=accelerator.autocast)
    exact = ExactGradient(alone, model, ToyTask(), 1000, Agreement(accelerator))
    exact.load(random_batch(LENGTHS))
    assert len(exact._batch) == 0
    assert model._padding_free.is_proven is True


def test_memory_that_runs_out_in_the_trial_is_for_the_step_to_tell() -> None:
    model = attached("bert")

    def run_out(*_: Any) -> None:
        raise MemoryError

    hook = model.bert.encoder.layer[0].register_forward_hook(run_out)
    exact = ExactGradient(Accelerator(cpu=True), model, ToyTask(), 1000)
    exact.load(random_batch(LENGTHS))
    with pytest.raises(OutOfMemory):
        exact()
    hook.remove()
    exact()
    assert model._padding_free.is_proven is True
