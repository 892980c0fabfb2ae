"""From a spec to a model that is ready to train: data, task, model, methods, and what of it trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from harness import compression, notes, registry, seeding
from harness.catalogue import hub
from harness.data import dataset
from harness.data.dataset import Splits
from harness.errors import ModelError, SpecError
from harness.method import Method
from harness.models import dropout, padding_free, surgery
from harness.signing import digests
from harness.specs.schema import Spec
from harness.task import Task
from harness.tracking.stores import REHEARSALS

_KNOWN = 4
"""Data sets, each as tokens for one task and model, that are kept in memory."""


@dataclass(frozen=True)
class Loaded:
    """What all replicates of a spec share: the examples and the task that holds them as tensors."""

    splits: Splits
    task: Task
    tokens: dict[str, Any]
    """Tokens, longest and truncated rows of each split."""
    base_model: dict[str, str]
    """Name, and where they are files, the digest of the weights."""


@dataclass(frozen=True)
class Assembled:
    """One replicate, before its first step."""

    model: nn.Module
    methods: dict[str, Method]
    head: set[str]
    count: surgery.ParameterCount
    by_family: dict[str, int]
    """Trainable parameters of each method, of the head, and of the model it started from."""
    notes: dict[str, str]
    """What each method that says so will do in this run."""

    @property
    def merges(self) -> bool:
        """Whether any method can fold itself into plain weights."""
        return any(method.can_merge for method in self.methods.values())


def load(spec: Spec, known: dict[str, Loaded] | None = None) -> Loaded:
    """Read, split, check and tokenise the data.

    Args:
        spec: what to load for.
        known: what was loaded before, by what decides it: taken from there, and put there.

    Raises:
        DataError, ModelError: the data or the tokenizer cannot be used.
        SpecError: a method's settings, or a warm-up longer than the run.
    """
    for method, chosen in spec.methods.items():
        registry.build("method", method, chosen)  # their mistakes are told before anything is read
    known = {} if known is None else known
    key = digests.identity({section: spec.resolved()[section] for section in ("task", "model", "data")})
    if key not in known:
        known[key] = _read(spec)
        while len(known) > _KNOWN:
            known.pop(next(iter(known)))
    total = spec.train.total_steps(known[key].task.num_batches(spec.train.batch_size))
    if spec.train.num_warmup_steps(total) >= total:
        what = f"the warm-up lasts {spec.train.warmup_steps:g} steps, the whole run {total}: its rate is never reached"
        raise SpecError(what, where="train.warmup_steps", fix="shorten it, or give a share below 1")
    if (asked := spec.train.max_steps) and asked > total:
        notes.note(f"train.max_steps={asked} is never reached: train.epochs={spec.train.epochs} ends at step {total}")
    return known[key]


def task_of(spec: Spec) -> Task:
    """The task, before it knows any data."""
    name, settings = next(iter(spec.task.items()))
    task: Task = registry.build("task", name, settings)
    return task


def _read(spec: Spec) -> Loaded:
    task = task_of(spec)
    splits = dataset.load(spec.data, task.labelling)
    tokens = task.load_data(splits, spec.model)
    return Loaded(splits, task, tokens, identify(spec))


def identify(spec: Spec) -> dict[str, str]:
    """The pretrained model by name, and where its weights are a file here, their digest."""
    known = {"id": spec.model.name, "revision": spec.model.revision or ""}
    weights = None if spec.model.is_own else hub.weights_file(spec.model.name)
    return {**known, "sha256": digests.file_digest(weights.resolve())} if weights else known


def assemble(spec: Spec, loaded: Loaded, seed: int) -> Assembled:
    """Load the model, let every method edit it, and freeze what does not train. Seeds all generators first.

    Raises:
        ModelError: the checkpoint cannot be loaded, or a method or `compression` finds no place in it.
        SpecError: nothing would train, or a method would do nothing.
    """
    assembled = rebuild(spec, loaded.task, seed)
    model, per_epoch = assembled.model, loaded.task.num_batches(spec.train.batch_size)
    prepared = ((name, method.prepare(model, spec.train, per_epoch)) for name, method in assembled.methods.items())
    return replace(assembled, notes={name: note for name, note in prepared if note})


def rebuild(spec: Spec, task: Task, seed: int) -> Assembled:
    """The same without what methods prepare for training: to put in what was trained. Raises as `assemble` does.

    In a run with --smoke, which is over before a method that waits would begin, all of them act in every step.
    """
    seeding.seed_everything(seed)
    model = task.load_model(spec.model)
    pretrained = sum(parameter.numel() for parameter in model.parameters())
    head_parameters = [model.get_parameter(name) for name in task.head(model)]
    methods: dict[str, Method] = {name: registry.build("method", name, s) for name, s in spec.methods.items()}
    if spec.tracking.experiment == REHEARSALS:
        methods = {name: method.always() for name, method in methods.items()}
    for method in methods.values():
        model = method.edit_model(model)
    compression.check(spec.compression, model)
    dropout.install(model)
    padding_free.attach(model, spec.train.padding_free)
    head = surgery.names_of(model, head_parameters)
    if len(head) < len(head_parameters):
        what = "a method replaced parameters of the new head, which has to train whole"
        raise ModelError(what, where="methods", fix="name only layers of the pretrained part as targets")
    own = {name: names - head for name, m in methods.items() if (names := m.trainable(model)) is not None}
    if own:
        surgery.freeze_except(model, head.union(*own.values()))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not sizes:
        raise SpecError("no parameter would train", where="methods")
    rest = "backbone" if spec.model.is_own else "pretrained"
    families = {**own, "head": head, rest: sizes.keys() - head.union(*own.values())}
    by_family = {family: sum(sizes.get(name, 0) for name in names) for family, names in families.items()}
    return Assembled(model, methods, head, surgery.count_parameters(model, pretrained), by_family, {})
