"""Stages that train an adapter in small real worlds, and what their files have to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.numerics import apart, rounding
from support.training_worlds import final_weights, train_config

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.stages import LoraAdapter
from videotrain_trainer.networks.build import build_transformer, initialize
from videotrain_trainer.networks.lora.files import load_adapter
from videotrain_trainer.networks.lora.layers import merge
from videotrain_trainer.networks.mmdit.model import MMDiT

TARGETS = ("q_proj", "linear2")


def adapter_stage(folder: Path, latents: str, base: Path | None, held_in: str = "none", **changes: Any) -> StageConfig:
    """A train stage with an adapter.

    Args:
        folder: of its store.
        latents: what it trains on.
        base: weights that are adapted.
        held_in: `lora.quantizeBase`.
        changes: of the task.
    """
    lora = LoraAdapter(rank=2, targets=list(TARGETS), quantize_base=held_in)
    config = train_config(folder, latents, lora=lora, **changes)
    source = None if base is None else f"file://{base}"
    return config.model_copy(update={"paths": config.paths.model_copy(update={"initial_weights": source})})


def base_weights(folder: Path) -> Path:
    """Weights to adapt. Gates begin at zero, which would hide everything, so all values are moved."""
    model = _model(folder)
    initialize(model, 3)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.05 * noise)
    save_file(model.state_dict(), folder / "base.safetensors")
    return folder / "base.safetensors"


def assert_merged(folder: Path, base: Path) -> None:
    """The stage's result is its base with its adapter in the layers that have one, and nothing else."""
    before, after = load_file(base), final_weights(folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(tuple(f"{target}.weight" for target in TARGETS))}
    model = _model(folder)
    model.load_state_dict(before)
    load_adapter(model, folder / "stage/weights/adapter")
    merge(model)
    # The same sum of the same adapter, on this side of one process and on the other.
    assert all(apart(value, after[name]) <= 4 * rounding(value) for name, value in model.state_dict().items())


def assert_adapter_alone(folder: Path) -> None:
    """The newest checkpoint holds nothing of the base."""
    index = json.loads(next((folder / "stage/checkpoints/step-00000008").glob("*-index.json")).read_text())
    assert index["shapes"] and all(".lora_" in name for name in index["shapes"])


def _model(folder: Path) -> MMDiT:
    config = train_config(folder, "file:///none")
    return build_transformer(config.model, config.autoencoder, config.text_encoder)
