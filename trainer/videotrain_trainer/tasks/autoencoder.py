"""The autoencoder stage: reconstruction of curated clips by the video autoencoder.

The loss is the mean absolute error. The published recipe adds a perceptual loss (LPIPS) and, later, an adversarial one;
both need weights of a picture network that this package does not carry, so they are not here.

Shapes: B batch, C colour, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from videotrain_api.stages import AutoencoderTask
from videotrain_trainer.context import Outcome, StageContext
from videotrain_trainer.data.buckets import uniform
from videotrain_trainer.data.order import OrderState
from videotrain_trainer.data.pixels import PixelBatch, PixelLoader
from videotrain_trainer.data.sets import ClipSet, open_clips
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.loop import train
from videotrain_trainer.model.dc_ae import DCAE
from videotrain_trainer.model.registry import build_autoencoder, initialize
from videotrain_trainer.model.weights import load_weights
from videotrain_trainer.setup import initial_weights
from videotrain_trainer.step import Model
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.telemetry.flops import SlotWork, autoencoder_work


def run(context: StageContext) -> Outcome:
    """Train the autoencoder.

    Raises:
        ConfigError: the task cannot be run.
        DataError: the curated set is missing or has no fitting clip.
    """
    return train(context, ReconstructionObjective, _task(context).steps)


class ReconstructionObjective:
    """Mean absolute error of reconstructed pixels.

    Args:
        context: of the stage.
        store: object store.
    """

    def __init__(self, context: StageContext, store: ObjectStore) -> None:
        config = context.config
        self.task = _task(context)
        self.module: DCAE = build_autoencoder(config.autoencoder)
        self.data: ClipSet = open_clips(store, config)
        self._config, self._store = config, store
        self._cache, self._device = context.cache, context.world.device

    def initialize(self) -> None:
        """Random weights, then those that the stage starts from."""
        initialize(self.module, self._config.seed)
        if self._config.paths.initial_weights is not None:
            load_weights(self.module, *initial_weights(self._store, self._config.paths.initial_weights))

    def loader(self, state: OrderState, slots: Sequence[int]) -> PixelLoader:
        """Batches of this rank's slots."""
        return PixelLoader(self._store, self.data, state, slots, self._cache)

    def loss(self, model: Model, batch: PixelBatch) -> tuple[Tensor, SlotWork]:
        """Reconstruction error of a micro-batch, or of its first frames alone."""
        first = batch.keys[0]
        as_picture = uniform(self._config.seed, "image", first.bucket, first.position) < self.task.image_ratio
        video_BCTHW = batch.video_BCTHW.to(self._device, non_blocking=True)
        video_BCTHW = video_BCTHW[:, :, :1] if as_picture else video_BCTHW
        dtype = next(self.module.parameters()).dtype
        out_BCTHW: Tensor = model(video_BCTHW.to(dtype))
        loss = F.l1_loss(out_BCTHW.float(), video_BCTHW.float())
        return loss, autoencoder_work(self._config.autoencoder, video_BCTHW.shape)


def _task(context: StageContext) -> AutoencoderTask:
    task = context.config.stage.autoencoder
    if task is None:
        raise ConfigError(f"stage {context.config.stage.name!r}: autoencoder must be set")
    if task.parallel.context_parallel != 1:
        raise ConfigError(
            f"autoencoder.parallel.contextParallel: {task.parallel.context_parallel}; the autoencoder does not split "
            "clips, use 1"
        )
    if task.bucket.frames in (2, 4):
        raise ConfigError(
            f"autoencoder.bucket.frames: {task.bucket.frames} frames give one latent frame, which decodes to a "
            "picture; use 1 or a multiple of 4 from 8 on"
        )
    return task
