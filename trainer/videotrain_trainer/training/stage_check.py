"""Whether this version of the trainer and this world can train a stage: asked before anything is read or built."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.capabilities import refusals, ring_refusals, row_refusals, settings_of, world_refusals
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.autoencoder_kinds import KINDS
from videotrain_api.resource.references import frames_refusal
from videotrain_trainer.diffusion.flow_matching import check_task, model_facts
from videotrain_trainer.errors import ConfigError


def check_stage(config: StageConfig, processes: int) -> None:
    """Refuse what this version of the trainer, this world or the models of the run cannot do.

    The API's rules say the same before a run starts; a stage configuration may have been written by hand, or be that
    of a run that was admitted by another version.

    Args:
        config: of a stage with task `train` or `autoencoder`.
        processes: worker processes of the world.

    Raises:
        ConfigError: names the fields, their values and what is allowed.
    """
    stage = config.stage
    task = stage.train or stage.autoencoder
    if task is None:
        raise ConfigError(f"stage {stage.name!r}: {stage.task} must be set")
    found = [*refusals(settings_of(task), stage.task), *row_refusals(task), *world_refusals(task, processes)]
    if stage.train and config.model.num_heads:
        found += ring_refusals(stage.train, config.gpus_per_node, config.model.num_heads)
    problems = [f"{stage.task}.{item.path}: {item.value}: {item.allowed}" for item in found]
    if stage.autoencoder:
        problems += _of_autoencoder(config, stage.autoencoder.bucket.frames)
    if problems:
        raise ConfigError("; ".join(problems))
    if stage.train:
        check_task(stage.train, model_facts(config.model, config.autoencoder))


def _of_autoencoder(config: StageConfig, frames: int) -> Iterator[str]:
    kind, spec = config.autoencoder.kind or "", config.autoencoder
    if not KINDS[kind].trainable:
        trainable = ", ".join(name for name, row in KINDS.items() if row.trainable)
        yield (
            f"spec.autoencoder.kind: {kind!r} cannot be trained, only {trainable} can; remove the stage and set "
            "spec.autoencoder.weights"
        )
    refused = frames_refusal(frames, spec.time)
    if refused:
        yield f"autoencoder.bucket.frames: {frames}: {refused}"
