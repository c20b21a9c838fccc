"""The frozen configuration of one stage: all that a trainer reads, named by its hash.

A run's ConfigMap holds one of these per stage. It is resolved once, when the run is accepted; editing a preset or a
default later never changes a running stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, PrivateAttr

from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Bucket, ConditionKind, PromptStyle, ScoreBounds, Stage, TextForm
from videotrain_api.resource.tracking import Tracking
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_api.schema import ApiModel, Json


class StagePaths(ApiModel):
    """URIs that a stage reads and writes."""

    output: str
    """Prefix of everything that this stage writes."""
    clips: str | None = None
    """Curated set to read."""
    latents: str | None = None
    """Encoded set to read; the first one, where the sources of the dataset are encoded sets."""
    autoencoder_weights: str | None = None
    """Safetensors of the autoencoder; a file's URI or a finished autoencoder stage's prefix."""
    initial_weights: str | None = None
    """Weights to start from; a file's URI or a finished stage's prefix."""
    model_weights: str | None = None
    """Transformer to sample from; a file's URI or a finished stage's prefix."""
    videos: str | None = None
    """Prefix of the sample stage whose videos are evaluated."""


class LatentReader(ApiModel):
    """A train stage that reads an encoded set: all that decides which samples it takes, and what it needs of them."""

    stage: str
    """Name of the stage."""
    seed: int
    """Of the stage; draws of `keepProbability` depend on it."""
    buckets: list[Bucket]
    """Its bucket rows, without what only says how training spreads them."""
    select: list[ScoreBounds] = Field(default_factory=list)
    """Bounds on the scores of the clips that it takes."""
    prompt_style: PromptStyle
    """Of its texts."""
    references: list[ConditionKind] = Field(default_factory=list)
    """Its v2v kinds. A causal autoencoder encodes their frames by themselves; pictures are always encoded."""
    text: TextForm = "stored"
    """Whether it reads text features or captions."""


class HeldOut(ApiModel):
    """The train stage whose held-out samples a stage measures the loss on."""

    stage: Stage
    """As that stage is configured itself: what it holds out and what it asks."""
    seed: int
    """Its seed."""


class StageConfig(ApiModel):
    """Everything a trainer needs to run one stage."""

    version: int = 1
    run: str
    """namespace/name, for logs and for names of output."""
    stage: Stage
    """The stage without its node bounds and its pool, which may change."""
    model: TransformerSpec
    """Resolved: every architecture field is set."""
    autoencoder: AutoencoderSpec
    """Resolved: every architecture field is set, but `scaling_factor` may be left to the weight file's metadata."""
    text_encoder: TextEncoderSpec
    dataset: Dataset
    storage: Storage
    checkpoint: CheckpointPolicy
    paths: StagePaths
    latent_readers: list[LatentReader] = Field(default_factory=list)
    """For encode: the later train stages that read what it makes."""
    held_out: HeldOut | None = None
    """For evaluate: whose held-out samples are measured."""
    log_every_steps: int = 10
    tracking: Tracking = Tracking()
    seed: int
    """Seed of this stage, derived from the run's seed and the stage's name."""
    gpus_per_node: int
    """0 for a stage on nodes without GPUs."""
    hang_seconds: int
    start_seconds: int
    grace_seconds: int
    _stored: str | None = PrivateAttr(default=None)
    """Its spelling where it was frozen."""

    @classmethod
    def from_stored(cls, text: bytes) -> Self:
        """Read what was frozen, perhaps by a version with fewer fields: it stays the same configuration.

        Raises:
            ValidationError: it does not fit this version.
        """
        config = cls.model_validate_json(text)
        config._stored = _canonical(json.loads(text))
        return config

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; a changed one is another configuration."""
        copy = super().model_copy(update=update, deep=deep)
        if update:
            copy._stored = None
        return copy

    def canonical_json(self) -> str:
        """The one spelling that is hashed and stored."""
        return self._stored or _canonical(self.to_wire())

    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]


def _canonical(data: Json) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
