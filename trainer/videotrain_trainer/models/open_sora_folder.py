"""Transformer and autoencoder in files with the names that Open-Sora 2.0 published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.loading import config_for
from videotrain_trainer.models.presets import Described
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.weights import Destination, convert, open_weights
from videotrain_trainer.networks.weights.layouts import recognise

LAYOUT: Final = "open-sora-v2"
FILES: Final[Mapping[str, tuple[str, str]]] = {
    "hunyuan-vae": ("Open_Sora_v2.safetensors", "hunyuan_vae.safetensors"),
    "open-sora-dc-ae": ("Open_Sora_v2_Video_DC_AE.safetensors", "F32T4C128_AE.safetensors"),
}
"""Published names of transformer and autoencoder, by layout of the autoencoder."""
_SAME_MODEL: Final = {"diffusers": "hunyuan-vae"}
"""Another layout of such an autoencoder."""


def export_open_sora(
    folder: str | Path,
    transformer: str | Path,
    autoencoder: str | Path,
    transformer_preset: Described | None = None,
    autoencoder_preset: Described | None = None,
) -> tuple[str, str]:
    """Write both models, tensor by tensor, each as one file.

    Args:
        folder: made if it is missing; must not hold such files yet.
        transformer: path or URI of weights in any layout.
        autoencoder: the same.
        transformer_preset: the model of the weights; what they describe if None.
        autoencoder_preset: the same.

    Returns:
        Names of the files.

    Raises:
        ConfigError: a file is there already, weights do not fit, or Open-Sora has no layout for such a model.
    """
    opened = [open_weights(transformer), open_weights(autoencoder)]
    found = [recognise(weights.shapes, weights.what) for weights in opened]
    pairs = zip(opened, found, (transformer_preset, autoencoder_preset), strict=True)
    configs = [config_for(weights, layout, preset) for weights, layout, preset in pairs]
    target = _SAME_MODEL.get(found[1], found[1])
    if not isinstance(configs[0], MMDiTConfig) or target not in FILES:
        kinds = " and ".join(type(config).__name__ for config in configs)
        raise ConfigError(
            f"Open-Sora 2.0 has files of a transformer with a HunyuanVideo VAE or a Video DC-AE; given are {kinds} (in "
            f"this order), of the layouts {' and '.join(found)}"
        )
    root, names = Path(folder), FILES[target]
    if there := [name for name in names if (root / name).exists()]:
        raise ConfigError(f"{root}: there is a file {there[0]} already; export to another folder")
    root.mkdir(parents=True, exist_ok=True)
    sources = zip((transformer, autoencoder), names, found, (LAYOUT, target), configs, strict=True)
    for source, name, old, new, config in sources:
        convert(source, Destination(target=root / name), old, new, config=config)
    return names
