"""An adapter of ours as one of diffusers' FluxTransformer2DModel: the inverse of `from_diffusers`.

A layout's rules put rows into another order or another tensor. They are run on the B matrices alone; where a layer of
ours is two of theirs, both have its whole A.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.lora.from_diffusers import PREFIX, SETTINGS
from videotrain_trainer.networks.lora.layers import LoraConfig
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.weights.files import listed
from videotrain_trainer.networks.weights.layouts import scheme


def to_diffusers(
    model: MMDiTConfig, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Content of a file for diffusers' `load_lora_weights` and `load_lora_adapter`.

    Args:
        model: that the adapter is for.
        config: of the adapter.
        tensors: `*.lora_A.weight` and `*.lora_B.weight` by our names.

    Returns:
        Tensors under diffusers' names; metadata fields with rank and alpha.

    Raises:
        ConfigError: diffusers' class cannot compute the model, or has no counterpart of a layer.
    """
    rules = {name.removesuffix(".weight"): rule for rule in scheme("diffusers", model).rules for name in rule.ours}
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    # The one rule that joins weights of ours joins columns, which B does not have.
    odd = [name for name in layers if name not in rules or len(rules[name].ours) > 1]
    if odd:
        raise ConfigError(f"layers of the adapter of which diffusers has no counterpart:{listed(odd)}")
    found: dict[str, Tensor] = {}
    for layer in layers:
        a_RF, b_OR = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
        for weight, part_OR in zip(rules[layer].theirs, rules[layer].to_theirs([b_OR]), strict=True):
            name = PREFIX + weight.removesuffix(".weight")
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = a_RF.clone(), part_OR.contiguous()
    names = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in found})
    settings = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": names}
    return found, {"format": "pt", SETTINGS: json.dumps({PREFIX + name: value for name, value in settings.items()})}
