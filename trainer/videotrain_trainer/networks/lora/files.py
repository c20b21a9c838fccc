"""Adapters in files: Hugging Face's PEFT layout, which is also written, and diffusers' files for FLUX, which are read.

Shape letters: F features of a layer's input, O of its output, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videotrain_api.resource.locations import HUB_SCHEME
from videotrain_trainer.checksums import READINGS, read_again
from videotrain_trainer.errors import ConfigError, DamagedObject
from videotrain_trainer.networks.lora.from_diffusers import DIFFUSERS_FILE, from_diffusers, is_from_diffusers
from videotrain_trainer.networks.lora.layers import LoraConfig, adapted, inject, is_adapter, layers_to_adapt
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights.files import Place, Weights, listed, open_weights
from videotrain_trainer.networks.weights.strict import check_fit
from videotrain_trainer.networks.weights.writer import weights_bytes
from videotrain_trainer.storage import ObjectStore

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""Before every name in PEFT's files."""
CONFIGURATION = "videotrain-adapter"
"""Field of the weights' metadata."""
_REFUSED = {"bias": ("none",), "use_dora": (False, None), "use_rslora": (False, None), "fan_in_fan_out": (False, None)}
"""Fields of PEFT's configuration, and the values of them that are understood."""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that was read and fits a model."""

    config: LoraConfig
    tensors: Mapping[str, Tensor]
    """`*.lora_A.weight` and `*.lora_B.weight` of every layer that `inject` adapts, by the model's names."""


def adapter_files(
    config: LoraConfig, tensors: Mapping[str, Tensor], base: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Content of PEFT's two files.

    Args:
        config: of the adapter.
        tensors: `*.lora_A.weight` and `*.lora_B.weight` by the model's names.
        base: where the weights that it was trained on are.

    Returns:
        Tensors of `adapter_model.safetensors`, fields of `adapter_config.json`.
    """
    fields = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    return {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}, fields


def adapter_metadata(config: LoraConfig) -> dict[str, str]:
    """Free text fields of the weights: what `adapter_config.json` has to say, which carries no checksum of its own."""
    return {"format": "pt", CONFIGURATION: _written(config)}


def _written(config: LoraConfig) -> str:
    return json.dumps([config.rank, float(config.alpha), *config.targets])


def save_adapter(module: nn.Module, config: LoraConfig, folder: str | Path, base: str | None = None) -> None:
    """Write a model's adapter in PEFT's layout.

    Args:
        module: has an adapter.
        config: of the adapter.
        folder: a path or `file://` URI; made if it is missing.
        base: where the weights that it was trained on are; a note for readers.

    Raises:
        ConfigError: the model has no adapter, or the folder is not on this machine.
    """
    if str(folder).startswith(("s3://", HUB_SCHEME)):
        raise ConfigError(f"{folder}: an adapter is saved to a folder on this machine; upload it from there")
    tensors = {name: value.detach().cpu() for name, value in module.state_dict().items() if is_adapter(name)}
    if not tensors:
        raise ConfigError(f"{folder}: the model has no adapter to save; call inject first")
    state, fields = adapter_files(config, tensors, base)
    root = Path(Place(folder, None).root)
    root.mkdir(parents=True, exist_ok=True)
    (root / ADAPTER_WEIGHTS).write_bytes(weights_bytes(state, adapter_metadata(config)))
    (root / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


def load_adapter(module: nn.Module, source: str | Path, store: ObjectStore | None = None) -> LoraConfig:
    """Adapt a model as stored and load its adapter, strictly. A refused adapter leaves the model as it was.

    Args:
        module: without an adapter.
        source: a folder in PEFT's layout, a folder with diffusers' `pytorch_lora_weights.safetensors`, or such a file
            by its own name; a path, `file://` or `s3://`. An adapter of diffusers' FluxTransformer2DModel becomes one
            of ours that computes the same, with equal ranks in all layers.
        store: serves s3://; by default one with the credentials of the environment.

    Returns:
        The configuration to save or train it further with.

    Raises:
        ConfigError: a file is missing, says what is not understood here, or does not fit the model.
    """
    adapter = read_adapter(module, source, store)
    inject(module, adapter.config)
    with torch.no_grad():
        for name, layer in adapted(module).items():
            layer.lora_A.weight.copy_(adapter.tensors[f"{name}.lora_A.weight"])
            layer.lora_B.weight.copy_(adapter.tensors[f"{name}.lora_B.weight"])
    return adapter.config


def read_adapter(module: nn.Module, source: str | Path, store: ObjectStore | None = None) -> StoredAdapter:
    """An adapter with everything checked and read; the model stays as it is. See `load_adapter`."""
    place = Place(source, store)
    if place.root.endswith(".safetensors"):
        weights = open_weights(source, store=store)
        if is_from_diffusers(weights):
            return _translated(module, weights)
        raise ConfigError(
            f"{source}: not an adapter under diffusers' names (transformer. ... .lora_A.weight); for PEFT's layout "
            f"name the folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
        )
    if place.has(place.inside(ADAPTER_CONFIG)):
        return _peft(module, place)
    if place.has(place.inside(DIFFUSERS_FILE)):
        return _translated(module, open_weights(place.inside(DIFFUSERS_FILE), store=store))
    raise ConfigError(
        f"{source}: there is no adapter: neither {ADAPTER_CONFIG} with {ADAPTER_WEIGHTS} (PEFT) nor {DIFFUSERS_FILE} "
        "(diffusers)"
    )


def _translated(module: nn.Module, weights: Weights) -> StoredAdapter:
    if not isinstance(module, MMDiT):
        raise ConfigError(f"{weights.what}: an adapter of diffusers' FluxTransformer2DModel; only an MMDiT can take it")
    config, tensors = from_diffusers(module.config, weights)
    chosen = layers_to_adapt(module, config)
    for name, layer in chosen.items():
        # A layer that the file leaves out gets an addition of nothing, since an adapter names layers by their ends.
        tensors.setdefault(f"{name}.lora_A.weight", torch.zeros(config.rank, layer.in_features))
        tensors.setdefault(f"{name}.lora_B.weight", torch.zeros(layer.out_features, config.rank))
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_fit(_expected(chosen, config), found, weights.what, "this model, in our names")
    return StoredAdapter(config, tensors)


def _peft(module: nn.Module, place: Place) -> StoredAdapter:
    config, weights = read_again(place, _peft_files, (ConfigError, DamagedObject))
    expected = _expected(layers_to_adapt(module, config), config)
    stored = {PREFIX + name: shape for name, shape in expected.items()}
    check_fit(stored, weights.shapes, weights.what, f"the adapter of this model (rank {config.rank})")
    return StoredAdapter(config, {name: weights.read(PREFIX + name) for name in expected})


def _peft_files(place: Place) -> tuple[LoraConfig, Weights]:
    config, weights = _peft_config(place), open_weights(place.inside(ADAPTER_WEIGHTS), store=place.store)
    # A folder on this machine may have been edited; what a stage stored has not.
    if place.remote and weights.metadata.get(CONFIGURATION, _written(config)) != _written(config):
        raise DamagedObject(
            f"{place.inside(ADAPTER_CONFIG)}: damaged, as {READINGS} readings say: rank, alpha and layers are "
            f"{_written(config)} here and {weights.metadata[CONFIGURATION]} where {ADAPTER_WEIGHTS} was written"
        )
    return config, weights


def _expected(layers: Mapping[str, nn.Linear], config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the adapter's tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        shapes[f"{name}.lora_A.weight"] = (config.rank, layer.in_features)
        shapes[f"{name}.lora_B.weight"] = (layer.out_features, config.rank)
    return shapes


def _peft_config(place: Place) -> LoraConfig:
    path = place.inside(ADAPTER_CONFIG)
    try:
        fields = json.loads(place.read(path))
        targets = fields["target_modules"]
        config = LoraConfig(int(fields["r"]), float(fields["lora_alpha"]), tuple(targets))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not the configuration of a LoRA adapter: {error!r}") from error
    if not isinstance(targets, list):
        raise ConfigError(f"{path}: target_modules {targets!r}: a list of names is needed, not a pattern")
    odd = [f"{name} is {fields[name]!r}" for name, fine in _REFUSED.items() if fields.get(name, fine[0]) not in fine]
    odd += [f"{name} is set" for name in ("rank_pattern", "alpha_pattern", "modules_to_save") if fields.get(name)]
    if fields.get("peft_type") != "LORA" or odd:
        kind = f"peft_type {fields.get('peft_type')!r}; only plain LORA can be loaded"
        raise ConfigError(f"{path}: {kind}{listed(odd)}")
    return config
