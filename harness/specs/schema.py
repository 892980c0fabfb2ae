"""What a spec may say: every section with its settings, and which of them cannot go together.

Settings are documented below their fields, and have their defaults in `experiments/base.yaml` where they need one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from harness import registry
from harness.data.dataset import Data
from harness.errors import did_you_mean
from harness.latency import Latency
from harness.models.model import Model
from harness.optim import Train
from harness.settings import Settings
from harness.tracking.stores import Tracking
from harness.units import Duration, Interval


class EarlyStopping(Settings):
    """Which checkpoint is kept, and when to stop."""

    metric: str
    """The validation metric that chooses: `validation/<name>`."""
    direction: Literal["maximize", "minimize"]
    """Which scores of it are better: high or low ones."""
    patience: Duration | None
    """Stop after so long without a better score; null: train to the end. The best checkpoint is restored either way."""


class Evaluation(Settings):
    """When the validation split is scored, and what stands beside the test score."""

    every: Duration
    """How often the validation split is scored: steps or epochs."""
    final: Literal["test", "weights", "scores"]
    """What a run leaves at its end. test: it is judged on the test split, measured and described. weights: the best
    weights and their validation scores; the test split stays unread. scores: the same without the weights."""
    baselines: bool
    """Score majority class, TF-IDF and frozen embeddings (and VADER, a human rater) on the same test split."""


class Checkpoint(Settings):
    """What a stopped run can go on from."""

    every: Interval
    """How often one is saved while training; one more when a run is asked to stop, and at the end of training."""
    keep: int = Field(ge=2)
    """How many stay: a new one is written whole before an old one goes. Those of a finished run are removed."""


class Compression(Settings):
    """Which smaller variants of the trained model are judged beside it at the end of a run."""

    prune: list[Annotated[float, Field(gt=0, lt=1)]]
    """Shares of the weights of attention and feed-forward layers to set to zero, one variant each."""
    int8: bool
    """Dynamic quantisation of every linear layer, on the CPU."""

    @field_validator("prune")
    @classmethod
    def _distinct(cls, prune: list[float]) -> list[float]:
        if len({f"{share:g}" for share in prune}) < len(prune):
            raise ValueError("shares are distinct")
        return prune

    @property
    def shares(self) -> dict[str, float]:
        """The pruned variants by name, such as `prune_0.3`."""
        return {f"prune_{share:g}": share for share in self.prune}


class Provenance(Settings):
    """Signing, and what stands beside the scores."""

    require_signature: bool
    """Refuse to run without a signing key."""
    selftest: bool
    """Prove the engine on this spec, data and model before training (`harness selftest`); a run that fails it stops."""


def distinct_seeds(seeds: list[int]) -> list[int]:
    """The seeds. Raises ValueError if they cannot be those of replicates."""
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError("seeds are distinct whole numbers from 0 to 2^32 - 1")
    return seeds


class Spec(Settings):
    """One experiment. `task`, `methods` and `metrics` are maps from a file name to that plug-in's settings."""

    name: str
    story: str
    """The comment at the top of the file: what it shows, and the score it reached."""
    task: dict[str, SerializeAsAny[Settings]] = Field(min_length=1, max_length=1)
    model: Model
    data: Data
    methods: dict[str, SerializeAsAny[Settings]]
    train: Train
    early_stopping: EarlyStopping
    evaluation: Evaluation
    checkpoint: Checkpoint
    metrics: dict[str, SerializeAsAny[Settings]] = Field(min_length=1)
    latency: Latency
    compression: Compression
    tracking: Tracking
    provenance: Provenance
    precision: Literal["auto", "no", "bf16", "fp16"]
    """Of the forward and backward pass; auto: bf16 where the GPU has it, else no, which is float32."""
    seeds: list[int] = Field(min_length=1)
    """One run per seed; several make replicates under one parent run."""
    output: str = Field(min_length=1)
    """The folder for runs, MLflow's database and artifacts; relative to the project."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)

    @model_validator(mode="after")
    def _alive(self) -> Spec:
        """Refuse settings that could never have an effect."""
        metrics = [name for name in self.metrics if name in registry.names("metric")]
        for task in (name for name in self.task if name in registry.names("task")):
            if odd := [name for name in metrics if not registry.reads(name, task)]:
                fit = [name for name in registry.names("metric") if registry.reads(name, task)]
                raise ValueError(f"metrics.{odd[0]}: not for {task}; metrics for it: {', '.join(fit)}")
        known = {f"validation/{key}" for name in metrics for key in registry.produces(name)}
        if self.early_stopping.metric not in known:
            hint = did_you_mean(self.early_stopping.metric, known)
            raise ValueError(f"early_stopping.metric: '{self.early_stopping.metric}' is never produced; {hint}")
        if self.tracking.register_as and self.evaluation.final == "scores":
            raise ValueError("tracking.register_as: evaluation.final=scores keeps no weights that could be registered")
        above: list[str] = []
        for name in (name for name in self.methods if name in registry.names("method")):
            for other, why in registry.not_after(name).items():
                if other in above:
                    raise ValueError(f"methods.{name}: cannot stand below {other}: {why}; put {name} above {other}")
            above.append(name)
        if self.train.max_steps and self.train.warmup_steps >= self.train.max_steps:
            raise ValueError(
                "train.warmup_steps: the warm-up lasts longer than train.max_steps, the rate is never reached"
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """Plain values of every setting, with the keys one types; what is logged, signed and written as spec.yaml."""
        return self.model_dump(mode="json", exclude={"story"})

    def flat(self) -> dict[str, Any]:
        """The same as dotted keys; what MLflow shows as params."""
        return dict(flatten(self.resolved()))


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
