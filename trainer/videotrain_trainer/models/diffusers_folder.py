"""A model folder as diffusers writes it: `model_index.json`, and a folder per component with its configuration.

The transformer, a HunyuanVideo VAE and FLUX.1's autoencoder are loaded by diffusers' own classes
(`FluxTransformer2DModel`, `AutoencoderKLHunyuanVideo`, `AutoencoderKL`); for the Video DC-AE diffusers has no class, so
its folder keeps our configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.loading import Model, config_for, stored_dtype
from videotrain_trainer.models.presets import Described
from videotrain_trainer.models.published import (
    DC_AE,
    PICTURE_VAE,
    TRANSFORMER,
    VAE,
    described_autoencoder,
    described_transformer,
)
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.flux_vae import NORM_GROUPS, SCALE, SHIFT, PictureVAE, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.layout_rules import Mapped, kept_values, towards_ours, towards_theirs
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import Autoencoder
from videotrain_trainer.networks.weights import Destination, ModelConfig, Planned, open_weights, write_weights
from videotrain_trainer.networks.weights.layouts import recognise, scheme
from videotrain_trainer.networks.weights.loading import load_weights, native_to_ours
from videotrain_trainer.networks.weights.strict import check_fit
from videotrain_trainer.networks.weights.writer import SHARD_BYTES

STEM = "diffusion_pytorch_model"
OWN_LIBRARY = "videotrain_trainer"
"""Written where diffusers has no class."""
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
    autoencoder: Autoencoder | PictureVAE


@dataclass(frozen=True)
class Component:
    """A model as a source of our tensors: in memory, or in a file that is read tensor by tensor."""

    config: ModelConfig
    read: Callable[[str], Tensor]
    dtype: torch.dtype

    @classmethod
    def of(
        cls, source: MMDiT | DCAE | HunyuanVAE | PictureVAE | str | Path, preset: Described | None = None
    ) -> Component:
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
    autoencoder: Autoencoder | PictureVAE | str | Path | Component,
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
    ours = isinstance(second.config, DCAEConfig)
    first_fields, second_fields = transformer_fields(first.config), _autoencoder_fields(second.config)
    _write_component(root / "transformer", first, "diffusers", first_fields, shard_bytes)
    _write_component(root / "vae", second, "open-sora-dc-ae" if ours else "diffusers", second_fields, shard_bytes)
    _write_json(root / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "DiffusionPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        "transformer": ["diffusers", TRANSFORMER],
        "vae": [OWN_LIBRARY if ours else "diffusers", second_fields["_class_name"]],
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
    vae_fields = _read_json(root / "vae" / "config.json")
    autoencoder_config = described_autoencoder(vae_fields, str(root / "vae" / "config.json"))
    path = root / "transformer" / "config.json"
    transformer_config = described_transformer(_read_json(path), autoencoder_config.latent_channels, str(path))
    with torch.device("meta"):
        transformer, autoencoder = MMDiT(transformer_config), _autoencoder(autoencoder_config)
    _read_component(root / "transformer", transformer, "diffusers", dtype)
    layout = "open-sora-dc-ae" if isinstance(autoencoder, DCAE) else "diffusers"
    _read_component(root / "vae", autoencoder, layout, dtype)
    return Pipeline(transformer.eval(), autoencoder.eval())


def _autoencoder(config: DCAEConfig | HunyuanVAEConfig | PictureVAEConfig) -> Autoencoder | PictureVAE:
    if isinstance(config, PictureVAEConfig):
        return PictureVAE(config)
    return DCAE(config) if isinstance(config, DCAEConfig) else HunyuanVAE(config)


def _write_component(
    folder: Path, component: Component, layout: str, fields: Mapping[str, Any], shard_bytes: int
) -> None:
    stored = scheme(layout, component.config)
    plan = [Planned(name, component.dtype, shape) for name, shape in stored.theirs.items()]
    destination = Destination(target=folder, stem=STEM, shard_bytes=shard_bytes)
    metadata = {"format": "pt", **kept_values(stored.rules, component.read)}
    write_weights(destination, plan, Mapped(towards_theirs(stored.rules), component.read), metadata)
    _write_json(folder / "config.json", fields)


def _read_component(folder: Path, module: nn.Module, layout: str, dtype: torch.dtype | None) -> None:
    weights = open_weights(folder)
    module.to(dtype or weights.dtype(next(iter(weights.files))))
    load_weights(module, weights, layout=layout)


def transformer_fields(config: MMDiTConfig) -> dict[str, Any]:
    """Fields of `FluxTransformer2DModel`'s configuration."""
    return {
        "_class_name": TRANSFORMER,
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


def _autoencoder_fields(config: DCAEConfig | HunyuanVAEConfig | PictureVAEConfig) -> dict[str, Any]:
    if isinstance(config, DCAEConfig):
        return {"_class_name": DC_AE, **asdict(config)}
    if isinstance(config, PictureVAEConfig):
        return _picture_fields(config)
    layers = config.depths[0]
    if set(config.depths) != {layers} or set(config.decoder_depths) != {layers + 1} or config.shift_factor:
        raise ConfigError(
            f"diffusers' {VAE} has one depth n in all encoder levels and n + 1 in all decoder levels, and no shift; "
            f"this one has {config.depths}, {config.decoder_depths} and shift {config.shift_factor}"
        )
    count = len(config.widths)
    return {
        "_class_name": VAE,
        "_diffusers_version": VERSION,
        "in_channels": config.pixel_channels,
        "out_channels": config.pixel_channels,
        "latent_channels": config.latent_channels,
        "down_block_types": ["HunyuanVideoDownBlock3D"] * count,
        "up_block_types": ["HunyuanVideoUpBlock3D"] * count,
        "block_out_channels": list(config.widths),
        "layers_per_block": layers,
        "act_fn": "silu",
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "spatial_compression_ratio": config.spatial_compression,
        "temporal_compression_ratio": 4,
        "mid_block_add_attention": True,
    }


def _picture_fields(config: PictureVAEConfig) -> dict[str, Any]:
    count = len(config.multipliers)
    return {
        "_class_name": PICTURE_VAE,
        "_diffusers_version": VERSION,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks,
        "act_fn": "silu",
        "norm_num_groups": NORM_GROUPS,
        "scaling_factor": SCALE,
        "shift_factor": SHIFT,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    }


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: a configuration in JSON is needed there: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: a JSON object is needed there")
    return fields
