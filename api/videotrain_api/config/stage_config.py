"""The frozen configuration of one stage: all that a trainer reads, named by its hash.

A run's ConfigMap holds one of these per stage. It is resolved once, when the run is accepted; editing a preset or a
default later never changes a running stage.
"""

from __future__ import annotations

import hashlib
import json

from pydantic import Field

from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Bucket, ConditionKind, PromptStyle, Stage
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_api.schema import ApiModel


class StagePaths(ApiModel):
    """URIs that a stage reads and writes."""

    output: str
    """Prefix of everything that this stage writes."""
    clips: str | None = None
    """Curated set to read."""
    latents: str | None = None
    """Encoded set to read."""
    autoencoder_weights: str | None = None
    """Safetensors of the autoencoder; a file's URI or a finished autoencoder stage's prefix."""
    initial_weights: str | None = None
    """Weights to start from; a file's URI or a finished stage's prefix."""
    model_weights: str | None = None
    """Transformer to sample from; a file's URI or a finished stage's prefix."""


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
    encode_buckets: list[Bucket] = Field(default_factory=list)
    """For encode: the bucket rows of the later train stages that read it, each size once."""
    encode_prompts: list[PromptStyle] = Field(default_factory=list)
    """For encode: the prompt styles of those stages, each once."""
    encode_references: list[ConditionKind] = Field(default_factory=list)
    """For encode: the v2v kinds of those stages, each once."""
    seed: int
    """Seed of this stage, derived from the run's seed and the stage's name."""
    gpus_per_node: int
    """0 for a stage on nodes without GPUs."""
    hang_seconds: int
    start_seconds: int
    grace_seconds: int

    def canonical_json(self) -> str:
        """The one spelling that is hashed and stored."""
        return json.dumps(self.to_wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]
