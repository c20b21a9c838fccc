"""Micro-batches of encoded clips with their random choices, made ready by the loader's threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from videotrain_api.resource.stages import TrainTask
from videotrain_trainer.data.loader import Captions, LatentBatch, LatentLoader, LatentSample
from videotrain_trainer.data.sample_cache import SampleCache
from videotrain_trainer.data.sample_order import OrderState
from videotrain_trainer.data.sets import LatentSet
from videotrain_trainer.diffusion.flow_matching import FlowDraws, ModelFacts, training_draws
from videotrain_trainer.storage import ObjectStore


@dataclass(frozen=True, kw_only=True)
class FlowMicroBatch(LatentBatch):
    """Encoded clips and what is asked of them."""

    draws: FlowDraws


class FlowLoader(LatentLoader):
    """Encoded samples with their noise, which takes longer to draw than to fetch.

    Args:
        store: object store.
        latents: the samples and their order.
        state: of the order.
        micro_batches_of_rank: for every bucket, micro-batches that this process runs, ascending.
        device: where batches are wanted.
        task: gives the conditioning mix and the text dropout.
        facts: of model and autoencoder.
        seed: of the stage.
        cache: of samples on this node.
        captions: see LatentLoader.
    """

    def __init__(
        self,
        store: ObjectStore,
        latents: LatentSet,
        state: OrderState,
        micro_batches_of_rank: Sequence[Sequence[int]],
        device: torch.device,
        task: TrainTask,
        facts: ModelFacts,
        seed: int,
        cache: SampleCache | None = None,
        captions: Captions | None = None,
    ) -> None:
        self._task, self._facts, self._seed = task, facts, seed
        super().__init__(store, latents, state, micro_batches_of_rank, device, cache, captions)

    def _collate(self, samples: list[LatentSample]) -> FlowMicroBatch:
        batch = super()._collate(samples)
        draws = training_draws(batch.keys, batch.latent_BCTHW.shape[1:], self._task, self._facts, self._seed)
        return FlowMicroBatch(**vars(batch), draws=draws)
