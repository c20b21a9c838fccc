"""A model folder as diffusers writes it: `model_index.json`, and a folder per component with its configuration.

The transformer, a HunyuanVideo VAE and FLUX.1's autoencoder are loaded by diffusers' own classes
(`FluxTransformer2DModel`, `AutoencoderKLHunyuanVideo`, `AutoencoderKL`); for the Video DC-AE diffusers has no class, so
its folder keeps our configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.loading import Model, config_for, stored_dtype
from videotrain_trainer.models.presets import Described
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, AutoencoderConfig
from videotrain_trainer.networks.layout_rules import Mapped, kept_values, towards_ours, towards_theirs
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import AUTOENCODERS, row_of
from videotrain_trainer.networks.weights import Destination, ModelConfig, Planned, open_weights, write_weights
from videotrain_trainer.networks.weights.configuration import (
    TRANSFORMER_CLASS,
    StoredConfiguration,
    configuration_metadata,
    stored_configuration,
)
from videotrain_trainer.networks.weights.files import CONFIG_FILE
from videotrain_trainer.networks.weights.layouts import recognise, scheme
from videotrain_trainer.networks.weights.loading import load_weights, native_to_ours
from videotrain_trainer.networks.weights.strict import check_fit
from videotrain_trainer.networks.weights.writer import SHARD_BYTES

STEM = "diffusion_pytorch_model"
VERSION = "0.35.0"
"""Of diffusers, whose configurations these are."""
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": VERSION,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
    # Our shift is alpha * t / (1 + (alpha - 1) * t): diffusers' linear kind with mu = alpha.
    "time_shift_type": "linear",
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 1.0,
    "max_shift": 3.0,
}
"""The published time shift of a picture; a video's is multiplied by the root of its latent frames."""


@dataclass(frozen=True)
class Pipeline:
    """What a folder holds."""

    transformer: MMDiT
    autoencoder: Autoencoder


@dataclass(frozen=True)
class Component:
    """A model as a source of our tensors: in memory, or in a file that is read tensor by tensor."""

    config: ModelConfig
    read: Callable[[str], Tensor]
    dtype: torch.dtype

    @classmethod
    def of(cls, source: MMDiT | Autoencoder | str | Path, preset: Described | None = None) -> Component:
        """A component from a model, or from weights in any layout.

        Args:
            source: a model, or a path or URI of weights.
            preset: the model of the weights; what they describe if None.

        Raises:
            ConfigError: there are no such weights, or they do not fit.
        """
        if isinstance(source, Model):
            state = source.state_dict()
            read = native_to_ours(source, lambda name: state[name].detach().cpu())
            return cls(source.config, read, next(iter(state.values())).dtype)
        weights = open_weights(source)
        layout = recognise(weights.shapes, weights.what)
        stored = scheme(layout, config_for(weights, layout, preset))
        check_fit(stored.theirs, weights.shapes, weights.what, "the model that was asked for")
        dtype = stored_dtype(weights)
        ours = Mapped(towards_ours(stored.rules, weights.metadata), lambda name: weights.read(name).to(dtype))
        return cls(stored.config, ours, dtype)


def export_diffusers(
    folder: str | Path,
    transformer: MMDiT | str | Path | Component,
    autoencoder: Autoencoder | str | Path | Component,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write transformer, autoencoder and scheduler as diffusers does. Text encoders keep their own folders.

    Args:
        folder: made if it is missing; must not hold a pipeline yet.
        transformer: a model, or a path or URI of weights in any layout, which are then read tensor by tensor.
        autoencoder: the same; whose latents the transformer works on.
        shard_bytes: most bytes of a weight file.

    Raises:
        ConfigError: there is a pipeline already, weights do not fit, or diffusers' classes cannot compute the model.
    """
    root = Path(folder)
    if (root / "model_index.json").exists():
        raise ConfigError(f"{root}: there is a model_index.json already; export to another folder")
    first = transformer if isinstance(transformer, Component) else Component.of(transformer)
    second = autoencoder if isinstance(autoencoder, Component) else Component.of(autoencoder)
    if not isinstance(first.config, MMDiTConfig) or isinstance(second.config, MMDiTConfig):
        found = f"{type(first.config).__name__} and {type(second.config).__name__}"
        raise ConfigError(f"a transformer and an autoencoder are needed, in this order; given are those of {found}")
    row = row_of(second.config)
    if row.folder is None:
        raise ConfigError(f"{row.title} is a folder of diffusers already: copy it")
    fields = {"_class_name": row.folder.class_name, **row.folder.fields(second.config)}
    if row.folder.library == "diffusers":
        fields["_diffusers_version"] = VERSION
    _write_component(root / "transformer", first, "diffusers", transformer_fields(first.config), shard_bytes)
    _write_component(root / "vae", second, row.folder.layout, fields, shard_bytes)
    _write_json(root / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "DiffusionPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        "transformer": ["diffusers", TRANSFORMER_CLASS],
        "vae": [row.folder.library, row.folder.class_name],
    }
    _write_json(root / "model_index.json", index)


def import_diffusers(folder: str | Path, dtype: torch.dtype | None = None) -> Pipeline:
    """Read a folder that `export_diffusers` or diffusers wrote.

    Args:
        folder: holds `transformer/` and `vae/`.
        dtype: of the weights; as stored if unset.

    Raises:
        ConfigError: a file is missing, a component is of another class, or weights do not fit their configuration.
    """
    root = Path(folder)
    classes = [row.folder.class_name for row in AUTOENCODERS.values() if row.folder]
    latents, found = _stored(root / "vae", classes), _stored(root / "transformer", [TRANSFORMER_CLASS])
    assert isinstance(latents.config, AutoencoderConfig)
    assert isinstance(found.config, MMDiTConfig)
    sizes, row = found.config, row_of(latents.config)
    if not found.exact:
        # The autoencoder's channels tell the patch of a model without condition input.
        sizes = replace(sizes, patch_size=math.isqrt(sizes.in_channels // latents.config.latent_channels))
    with torch.device("meta"):
        transformer, autoencoder = MMDiT(sizes), row.build(latents.config)
    _read_component(root / "transformer", transformer, "diffusers", dtype)
    _read_component(root / "vae", autoencoder, None if row.folder is None else row.folder.layout, dtype)
    return Pipeline(transformer.eval(), autoencoder.eval())


def _stored(folder: Path, classes: Sequence[str]) -> StoredConfiguration:
    weights = open_weights(folder)
    name, stored = (weights.config or {}).get("_class_name"), stored_configuration(weights)
    if name not in classes or stored is None:
        raise ConfigError(
            f"{folder / CONFIG_FILE}: _class_name is {name!r}; only {' and '.join(classes)} can be read from a folder"
        )
    return stored


def _write_component(
    folder: Path, component: Component, layout: str, fields: Mapping[str, Any], shard_bytes: int
) -> None:
    stored = scheme(layout, component.config)
    plan = [Planned(name, component.dtype, shape) for name, shape in stored.theirs.items()]
    destination = Destination(target=folder, stem=STEM, shard_bytes=shard_bytes)
    kept = kept_values(stored.rules, component.read)
    metadata = {"format": "pt", **kept, **configuration_metadata(component.config)}
    write_weights(destination, plan, Mapped(towards_theirs(stored.rules), component.read), metadata)
    _write_json(folder / "config.json", fields)


def _read_component(folder: Path, module: nn.Module, layout: str | None, dtype: torch.dtype | None) -> None:
    weights = open_weights(folder)
    module.to(dtype or weights.dtype(next(iter(weights.files))))
    load_weights(module, weights, layout=layout)


def transformer_fields(config: MMDiTConfig) -> dict[str, Any]:
    """Fields of `FluxTransformer2DModel`'s configuration."""
    return {
        "_class_name": TRANSFORMER_CLASS,
        "_diffusers_version": VERSION,
        "patch_size": 1,
        "in_channels": config.in_channels + (config.cond_features if config.cond_embed else 0),
        "out_channels": config.in_channels,
        "num_layers": config.double_blocks,
        "num_single_layers": config.single_blocks,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.context_dim,
        "pooled_projection_dim": config.pooled_dim,
        "guidance_embeds": config.guidance_embed,
        "axes_dims_rope": list(config.rope_axes),
    }


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields, indent=2) + "\n")
