"""The autoencoder stage: reconstruction of curated clips by the video autoencoder.

The recipe is that of the Video DC-AE (arXiv 2503.09642, section 4): first mean absolute error and perceptual distance,
then also a discriminator. A share of the micro-batches is trained on pictures.

Shapes: B batch, C colour, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor

from videotrain_api.resource.stages import AdversarialPhase, AutoencoderTask
from videotrain_trainer.data.buckets import uniform
from videotrain_trainer.data.loader import SampleKey
from videotrain_trainer.data.pixels import PixelBatch, PixelLoader
from videotrain_trainer.data.sample_order import OrderState
from videotrain_trainer.data.sets import ClipSet, open_clips
from videotrain_trainer.errors import ConfigError, Diverged
from videotrain_trainer.networks.adaptation import start_from_image
from videotrain_trainer.networks.build import SCALING_FACTOR, build_autoencoder, initialize
from videotrain_trainer.networks.losses.discriminator import Discriminator
from videotrain_trainer.networks.losses.lpips_files import load_perceptual
from videotrain_trainer.networks.weights import load_state, load_weights
from videotrain_trainer.parallel.activation import autoencoder_blocks
from videotrain_trainer.parallel.check_models import CheckModel, small_autoencoder
from videotrain_trainer.parallel.engine import compute_dtype
from videotrain_trainer.reconstruction.joint_engine import AdversarialEngine
from videotrain_trainer.reconstruction.losses import AdversarialLosses, ReconstructionLoss, build_discriminator
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.training.loop import train
from videotrain_trainer.training.setup import initial_weights
from videotrain_trainer.training.step import Loss, Model
from videotrain_trainer.training.step_flops import MicroBatchWork, autoencoder_work
from videotrain_trainer.worker.stage_context import Outcome, StageContext, World

MEASURED_BATCHES = 16
"""Micro-batches, from the start of the order, by which the scale of the latents is measured."""


def run(context: StageContext) -> Outcome:
    """Train the autoencoder.

    Raises:
        ConfigError: the task cannot be run.
        DataError: the curated set is missing or has no fitting clip.
    """
    return train(context, ReconstructionObjective, _task(context).steps)


class ReconstructionObjective:
    """Absolute error, perceptual distance and realism of reconstructed pixels.

    Args:
        context: of the stage.
        store: object store.
    """

    def __init__(self, context: StageContext, store: ObjectStore) -> None:
        config = context.config
        self.task = _task(context)
        with torch.device("meta"):
            self.module = build_autoencoder(config.autoencoder)
        autoencoder_blocks(self.module).recompute(self.task.parallel.recompute_of(self.task.bucket))
        self.data: ClipSet = open_clips(store, config)
        self.attention: str | None = None
        self._config, self._store = config, store
        self._cache, self._device = context.cache, context.world.device
        self._dtype = compute_dtype(self.task.precision)
        self._reconstruction = self._make_reconstruction()
        self.adversarial: AdversarialPhase | None = self.task.adversarial
        self.discriminator: Discriminator | None = None
        if self.adversarial is not None:
            self.discriminator = build_discriminator(self.adversarial)
            self._losses = AdversarialLosses(self.module, self._reconstruction, self.adversarial, config.seed)

    def _make_reconstruction(self) -> ReconstructionLoss:
        spec = self.task.perceptual
        if spec is None:
            return ReconstructionLoss(None, None)
        distance = load_perceptual(self._store, spec.weights, "autoencoder.perceptual.weights")
        return ReconstructionLoss(spec, distance.to(self._device))

    def first_weights(self) -> None:
        """Random weights, then those that the stage starts from: the model and its discriminator have them then."""
        initialize(self.module, self._config.seed)
        if self.discriminator is not None:
            self.discriminator.initialize(self._config.seed)
        if self._config.paths.initial_weights is not None:
            weights = initial_weights(self._store, self._config.paths.initial_weights)
            adapt = self.task.init_from is not None and self.task.init_from.adapt == "image-autoencoder"
            (start_from_image if adapt else load_weights)(self.module, weights)

    def compile_ahead(self) -> None:
        """Nothing: the blocks of an autoencoder are not compiled."""

    def export_metadata(self, weights: Mapping[str, Tensor], /) -> dict[str, str]:
        """The scale of the latents: the specification's if it has one, else measured with the final weights.

        Raises:
            Diverged: the latents have no scale.
        """
        factor = self._config.autoencoder.scaling_factor
        return {SCALING_FACTOR: repr(self._latent_rms(weights) if factor is None else factor)}

    @torch.inference_mode()
    def _latent_rms(self, weights: Mapping[str, Tensor]) -> float:
        """Root mean square over clips that the order of the stage decides, whatever the world."""
        encoder = build_autoencoder(self._config.autoencoder).eval()
        load_state(encoder, weights, self._config.paths.output)
        encoder.to(self._device)
        start, micro_batches = self.data.plan.start(), range(self.task.parallel.micro_batches_of(self.task.bucket))
        total, count = 0.0, 0
        with closing(self.loader(start, [micro_batches] * len(self.data.plan.buckets))) as loader:
            places = ((order, micro_batch) for order in self.data.plan.walk(start) for micro_batch in micro_batches)
            for order, micro_batch in islice(places, MEASURED_BATCHES):
                latent_BCTHW = encoder.encode(loader.fetch(order, micro_batch).video_BCTHW).double()
                total, count = total + float(latent_BCTHW.square().sum()), count + latent_BCTHW.numel()
        return _checked_scale(math.sqrt(total / count))

    def check_model(self, world: World, /) -> CheckModel:
        """A small autoencoder."""
        return small_autoencoder(self.task.parallel.recompute_of(self.task.bucket), world.device, self._dtype)

    def loader(self, state: OrderState, micro_batches: Sequence[Sequence[int]]) -> PixelLoader:
        """Batches of this rank's micro-batches."""
        return PixelLoader(self._store, self.data, state, micro_batches, self._cache, self._device)

    def loss(self, model: Model, batch: PixelBatch) -> tuple[Loss, MicroBatchWork]:
        """Losses of the reconstruction of a micro-batch, or of its first frames alone; some clips have lone heads."""
        first = batch.keys[0]
        name = f"{first.bucket}/{first.position}"
        as_picture = self._drawn("image", first) < self.task.image_ratio
        lone_head = not as_picture and self._drawn("head", first) < self.task.head_ratio
        video_BCTHW = batch.video_BCTHW[:, :, :1] if as_picture else batch.video_BCTHW
        out_BCTHW: Tensor = model(video_BCTHW.to(self._dtype), lone_head)
        full = self.task.parallel.recompute_of(self.task.bucket) == "full"
        work = autoencoder_work(self._config.autoencoder, video_BCTHW.shape, lone_head=lone_head, recompute=full)
        if isinstance(model, AdversarialEngine) and model.active:
            return self._losses(model, out_BCTHW, video_BCTHW, name), work
        return self._reconstruction(out_BCTHW, video_BCTHW), work

    def _drawn(self, purpose: str, key: SampleKey) -> float:
        return uniform(self._config.seed, purpose, key.bucket, key.position)


def _checked_scale(rms: float) -> float:
    if not (math.isfinite(rms) and rms > 0):
        raise Diverged(
            f"the latents of the trained autoencoder have a root mean square of {rms}; lower optimizer.learningRate or "
            "train longer"
        )
    return rms


def _task(context: StageContext) -> AutoencoderTask:
    task = context.config.stage.autoencoder
    if task is None:
        raise ConfigError(f"stage {context.config.stage.name!r}: autoencoder must be set")
    return task
