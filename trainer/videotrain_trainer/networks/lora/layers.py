"""LoRA: low-rank additions to linear layers (arXiv 2106.09685). `files` stores and loads them.

A layer keeps its weight and bias under their names and gains `lora_A` (rank x in) and `lora_B` (out x rank); its output
gains scale * B(A(x)). B starts at zero, so an adapter changes nothing before it is trained.

Shape letters: F features of a layer's input, O of its output, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from videotrain_api.resource.stages import LoraAdapter
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.common import seeded_generator
from videotrain_trainer.networks.quantized import QuantizedLinear
from videotrain_trainer.networks.weights.fragments import Computed, Fragments, whole

TARGETS = tuple(LoraAdapter.model_fields["targets"].default)
"""Layers of an MMDiT's blocks that are adapted unless others are named, by the ends of their names."""


@dataclass(frozen=True)
class LoraConfig:
    """Which layers are adapted, and how."""

    rank: int
    alpha: float
    """The addition is multiplied by alpha / rank."""
    targets: tuple[str, ...] = TARGETS
    """Ends of the names of linear layers, whole parts of a name only."""

    @property
    def scale(self) -> float:
        """Factor of the addition."""
        return self.alpha / self.rank


def lora_config(spec: LoraAdapter) -> LoraConfig:
    """Which layers a stage adapts, and how."""
    return LoraConfig(spec.rank, float(spec.rank if spec.alpha is None else spec.alpha), tuple(spec.targets))


class LoraLinear(nn.Linear):
    """A linear layer that is frozen, plus a trained addition of low rank."""

    lora_A: nn.Linear
    lora_B: nn.Linear
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) to (..., O)."""
        added: Tensor = self.lora_B(self.lora_A(x))
        return super().forward(x) + self.scale * added


def inject(module: nn.Module, config: LoraConfig) -> list[str]:
    """Adapt the layers that are named and freeze everything else.

    Args:
        module: a model; its parameters keep their names.
        config: of the adapter.

    Returns:
        Names of the adapted layers.

    Raises:
        ConfigError: no linear layer ends with one of the names, or the module is adapted already.
    """
    chosen = layers_to_adapt(module, config)
    module.requires_grad_(False)
    for layer in chosen.values():
        _adapt(layer, config)
    return list(chosen)


def layers_to_adapt(module: nn.Module, config: LoraConfig) -> dict[str, nn.Linear]:
    """The layers that `inject` would adapt, by name; the model stays as it is.

    Raises:
        ConfigError: no linear layer ends with one of the names, or the module is adapted already.
    """
    if adapted(module):
        raise ConfigError("the model already has an adapter; merge it first")
    layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    idle = [target for target in config.targets if not any(_ends(name, target) for name in layers)]
    if idle:
        raise ConfigError(f"LoRA targets {idle}: no linear layer of the model ends so; it has {_kinds(layers)}")
    return {name: layer for name, layer in layers.items() if any(_ends(name, target) for target in config.targets)}


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _kinds(names: Mapping[str, object]) -> str:
    return ", ".join(sorted({".".join(part for part in name.split(".")[-2:] if part) for name in names}))


def _adapt(layer: nn.Linear, config: LoraConfig) -> None:
    device, dtype = layer.weight.device, layer.weight.dtype
    _become(layer, LoraLinear)
    layer = cast("LoraLinear", layer)
    layer.lora_A = nn.Linear(layer.in_features, config.rank, bias=False, device=device, dtype=dtype)
    layer.lora_B = nn.Linear(config.rank, layer.out_features, bias=False, device=device, dtype=dtype)
    layer.scale = config.scale
    nn.init.zeros_(layer.lora_B.weight)


def _become(layer: nn.Linear, kind: type[nn.Linear]) -> None:
    """Change the class and keep the parameters, so that their names stay those of published files."""
    layer.__class__ = kind


def adapter_fragments(module: nn.Module, seed: int) -> Fragments:
    """First values of an adapter, by seed and name: A uniform as a linear layer starts, B zero."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters() if is_adapter(name)}

    def read(name: str, start: int, length: int) -> Tensor:
        values = torch.zeros(shapes[name].numel())
        if name.endswith(".lora_A.weight"):
            bound = 1.0 / math.sqrt(shapes[name][1])
            values.uniform_(-bound, bound, generator=seeded_generator(seed, name))
        return values[start : start + length]

    return Computed(read)


def initialize_adapter(module: nn.Module, seed: int) -> None:
    """Give an adapter its first values; see `adapter_fragments`."""
    found = adapter_fragments(module, seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_adapter(name):
                parameter.copy_(whole(found, name, tuple(parameter.shape)))


def adapted(module: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLinear)}


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def merge(module: nn.Module) -> None:
    """Add the adapter to the weights and take it out; the sum is made in float32.

    Raises:
        ConfigError: a weight is held in 8 bits, in which most of the addition would be lost.
    """
    held = [name for name, layer in adapted(module).items() if isinstance(layer, QuantizedLinear)]
    if held:
        raise ConfigError(
            f"{held[0]} holds its weight in 8 bits, in which an addition would be lost; merge the adapter into the "
            "weights that it was trained on: load them and the adapter's files without lora.quantizeBase"
        )
    with torch.no_grad():
        for layer in adapted(module).values():
            layer.weight.copy_(merged(layer.weight, layer.lora_A.weight, layer.lora_B.weight, layer.scale))
            del layer.lora_A, layer.lora_B, layer.scale
            _become(layer, nn.Linear)


def merged(weight_OF: Tensor, a_RF: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """The weight plus scale * B A, summed in float32, in the weight's data type."""
    added_OF = b_OR.float() @ a_RF.float()
    return (weight_OF.float() + scale * added_OF).to(weight_OF.dtype)
