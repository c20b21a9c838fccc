"""The train stage: flow matching of the transformer on encoded clips.

Shapes: B batch, C latent channels, T latent frames, H rows, W columns, L text tokens, D text width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from videotrain_api.flops import mmdit_shape
from videotrain_api.stages import TrainTask
from videotrain_trainer.context import Outcome, StageContext
from videotrain_trainer.data.loader import LatentBatch, LatentLoader
from videotrain_trainer.data.order import OrderState
from videotrain_trainer.data.sets import LatentSet, open_latents
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.flow import check_task, flow_loss, model_facts, training_inputs
from videotrain_trainer.loop import train
from videotrain_trainer.model.mmdit import MMDiT
from videotrain_trainer.model.registry import build_text_encoder, build_transformer, initialize
from videotrain_trainer.model.weights import load_weights
from videotrain_trainer.parallel.activation import recompute_blocks
from videotrain_trainer.setup import initial_weights
from videotrain_trainer.step import Model
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.telemetry.flops import SlotWork, transformer_work


def run(context: StageContext) -> Outcome:
    """Train the transformer.

    Raises:
        ConfigError: model, autoencoder and task do not fit together.
        DataError: the encoded set is missing or damaged.
    """
    return train(context, FlowObjective, _task(context).steps)


class FlowObjective:
    """Flow matching on encoded clips.

    Args:
        context: of the stage.
        store: object store.
    """

    def __init__(self, context: StageContext, store: ObjectStore) -> None:
        config = context.config
        self.task = _task(context)
        self.module: MMDiT = build_transformer(config.model, config.autoencoder, config.text_encoder)
        recompute_blocks(self.module, self.task.parallel)
        self._facts = model_facts(config.model, config.autoencoder)
        check_task(self.task, self._facts)
        self.data: LatentSet = open_latents(store, config)
        self._shape = mmdit_shape(config.model, config.autoencoder, config.text_encoder)
        self._null_text = build_text_encoder(config.text_encoder).encode([""])
        self._config, self._store, self._device = config, store, context.world.device

    def initialize(self) -> None:
        """Random weights, then those that the stage starts from."""
        initialize(self.module, self._config.seed)
        if self._config.paths.initial_weights is not None:
            load_weights(self.module, *initial_weights(self._store, self._config.paths.initial_weights))

    def export_metadata(self, _weights: Mapping[str, Tensor], /) -> dict[str, str]:
        """Nothing: whoever draws from the transformer knows the rest from the configuration."""
        return {}

    def loader(self, state: OrderState, slots: Sequence[int]) -> LatentLoader:
        """Batches of this rank's slots."""
        return LatentLoader(self._store, self.data, state, slots)

    def loss(self, model: Model, batch: LatentBatch) -> tuple[Tensor, SlotWork]:
        """Mean squared error of the velocity."""
        batch = _moved(batch, self._device)
        inputs = training_inputs(batch, self.task, self._facts, self._null_text, self._config.seed)
        loss = flow_loss(model(**inputs.arguments()), inputs)
        text_tokens = inputs.txt_BLD.shape[1]
        return loss, transformer_work(self._shape, batch.latent_BCTHW.shape, self._facts.patch, text_tokens)


def _task(context: StageContext) -> TrainTask:
    task = context.config.stage.train
    if task is None:
        raise ConfigError(f"stage {context.config.stage.name!r}: train must be set")
    return task


def _moved(batch: LatentBatch, device: torch.device) -> LatentBatch:
    return replace(
        batch,
        latent_BCTHW=batch.latent_BCTHW.to(device, non_blocking=True),
        cond_first_BC1HW=batch.cond_first_BC1HW.to(device, non_blocking=True),
        cond_last_BC1HW=batch.cond_last_BC1HW.to(device, non_blocking=True),
        context_BLD=batch.context_BLD.to(device, non_blocking=True),
        pooled_BP=batch.pooled_BP.to(device, non_blocking=True),
    )
