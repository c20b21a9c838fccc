"""The loss of the newest transformer on the samples that a train stage held out: that stage's own questions."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from videotrain_api.config.stage_config import StageConfig
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.evaluation.autoencoder import Row
from videotrain_trainer.networks.attention_kernels import attention_case, attention_kernel
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import load_weights, open_weights, weights_uri
from videotrain_trainer.parallel.engine import compute_dtype
from videotrain_trainer.parallel.peers import WorldPeers, first_choice
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.train import FlowObjective
from videotrain_trainer.worker.stage_context import StageContext

HELD_OUT: Final = "heldOut/"
MEAN: Final = f"{HELD_OUT}mean"
OF_BUCKET: Final = f"{HELD_OUT}bucket/"
AT_TIME: Final = f"{HELD_OUT}time/"


def held_out_rows(context: StageContext, store: ObjectStore, peers: WorldPeers) -> dict[str, Row]:
    """The loss as a whole, of each size class and at each time; the same on every rank. Collective.

    Raises:
        ConfigError: weights do not fit.
        DataError: the encoded set is missing, or nothing is held out of it.
    """
    config = questions_of(context.config)
    task = config.stage.train
    assert task is not None, "admission has seen to it"
    device, dtype = context.world.device, compute_dtype(task.precision)
    with attention_kernel(task.attention, attention_case(config.model, device, dtype), first_choice) as kernel:
        objective = FlowObjective(replace(context, config=config), store, attention=kernel)
        losses = objective.validate(_model(context.config, store, device, dtype), peers)
    rows: dict[str, Row] = {MEAN: {"validation_loss": losses.mean}}
    rows |= {f"{OF_BUCKET}{bucket}": {"validation_loss": loss} for bucket, loss in losses.by_bucket.items()}
    times = zip(losses.times, losses.by_time, strict=True)
    return rows | {f"{AT_TIME}{time:g}": {"validation_loss": loss} for time, loss in times}


def questions_of(config: StageConfig) -> StageConfig:
    """The configuration of an evaluate stage as that of the train stage whose samples are asked."""
    held_out = config.held_out
    assert held_out is not None, "admission has seen to it"
    return config.model_copy(update={"stage": held_out.stage, "seed": held_out.seed})


def _model(config: StageConfig, store: ObjectStore, device: torch.device, dtype: torch.dtype) -> MMDiT:
    if config.paths.model_weights is None:
        raise ConfigError("evaluate.heldOut: no weights; put a train stage before, or set spec.model.weights")
    with torch.device("meta"):
        module = build_transformer(config.model, config.autoencoder, config.text_encoder).to(dtype)
    load_weights(module, open_weights(weights_uri(config.paths.model_weights), store=store))
    return module.to(device).eval().requires_grad_(False)
