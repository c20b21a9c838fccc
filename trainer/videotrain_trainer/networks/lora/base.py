"""An adapter on a model whose frozen weights are held as the stage says: as they are, or in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from videotrain_api.resource.stages import LoraAdapter
from videotrain_trainer.networks.lora.layers import LoraLinear, inject, lora_config
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.quantized import Quantization, QuantizedLinear


class QuantizedLoraLinear(LoraLinear, QuantizedLinear):
    """An adapted layer whose frozen weight is held in 8 bits."""


def adapt(model: MMDiT, spec: LoraAdapter) -> None:
    """Adapt the layers that a stage names, freeze everything else, and hold the frozen base as it says.

    Args:
        model: on any device; parameters on the meta device get their values from `load_frozen`.
        spec: of the stage.

    Raises:
        ConfigError: no linear layer has a name that is asked for, or the model is adapted already.
    """
    inject(model, lora_config(spec))
    if spec.quantize_base != "none":
        quantize_base(model, spec.quantize_base)


def quantize_base(model: MMDiT, quantization: Quantization) -> list[str]:
    """Hold the weights of all linear layers of the blocks in 8 bits; the model is frozen but for its adapter.

    Biases, norms, the layers beside the blocks (embedders, the last one) and the adapter stay as they are: 1 % of a
    large model.

    Returns:
        Names of those layers.
    """
    layers = dict(block_layers(model))
    for layer in layers.values():
        weight = layer.weight.detach()
        layer.__class__ = QuantizedLoraLinear if isinstance(layer, LoraLinear) else QuantizedLinear
        held = cast("QuantizedLinear", layer)
        held.quantization = quantization
        held.hold(weight, weight.dtype)
    return list(layers)


def block_layers(model: MMDiT) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a model's blocks by name, without those of an adapter."""
    for name, part in model.named_modules():
        if not isinstance(part, nn.Linear) or not name.startswith(("double_blocks.", "single_blocks.")):
            continue
        if not isinstance(model.get_submodule(name.rpartition(".")[0]), LoraLinear):
            yield name, part
