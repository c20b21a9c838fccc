"""LoRA: low-rank additions to linear layers (arXiv 2106.09685), stored in the layout of Hugging Face's PEFT.

A layer keeps its weight and bias under their names and gains `lora_A` (rank x in) and `lora_B` (out x rank); its output
gains scale * B(A(x)). B starts at zero, so an adapter changes nothing before it is trained.

Shape letters: F features of a layer's input, O of its output, R rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_api.resource.stages import LoraAdapter
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.common import seeded_generator
from videotrain_trainer.networks.weights.files import listed, open_weights
from videotrain_trainer.networks.weights.strict import check_fit

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""Before every name in PEFT's files."""
TARGETS = tuple(LoraAdapter.model_fields["targets"].default)
"""Layers of an MMDiT's blocks that are adapted unless others are named, by the ends of their names."""
_REFUSED = {"bias": ("none",), "use_dora": (False, None), "use_rslora": (False, None), "fan_in_fan_out": (False, None)}
"""Fields of PEFT's configuration, and the values of them that are understood."""


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
        return F.linear(x, self.weight, self.bias) + self.scale * added


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
    if adapted(module):
        raise ConfigError("the model already has an adapter; merge it first")
    layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    idle = [target for target in config.targets if not any(_ends(name, target) for name in layers)]
    if idle:
        raise ConfigError(f"LoRA targets {idle}: no linear layer of the model ends so; it has {_kinds(layers)}")
    module.requires_grad_(False)
    chosen = [name for name in layers if any(_ends(name, target) for target in config.targets)]
    for name in chosen:
        _adapt(layers[name], config)
    return chosen


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


def initialize_adapter(module: nn.Module, seed: int) -> None:
    """First values of an adapter, by seed and name: A uniform as a linear layer starts, B zero."""
    with torch.no_grad():
        for name, layer in adapted(module).items():
            bound = 1.0 / math.sqrt(layer.in_features)
            values = torch.empty(layer.lora_A.weight.shape)
            values.uniform_(-bound, bound, generator=seeded_generator(seed, f"{name}.lora_A.weight"))
            layer.lora_A.weight.copy_(values)
            layer.lora_B.weight.zero_()


def adapted(module: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLinear)}


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def merge(module: nn.Module) -> None:
    """Add the adapter to the weights and take it out; the sum is made in float32."""
    with torch.no_grad():
        for layer in adapted(module).values():
            layer.weight.copy_(merged(layer.weight, layer.lora_A.weight, layer.lora_B.weight, layer.scale))
            del layer.lora_A, layer.lora_B, layer.scale
            _become(layer, nn.Linear)


def merged(weight_OF: Tensor, a_RF: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """The weight plus scale * B A, summed in float32, in the weight's data type."""
    added_OF = b_OR.float() @ a_RF.float()
    return (weight_OF.float() + scale * added_OF).to(weight_OF.dtype)


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


def save_adapter(module: nn.Module, config: LoraConfig, folder: Path, base: str | None = None) -> None:
    """Write a model's adapter in PEFT's layout.

    Raises:
        ConfigError: the model has none.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu() for name, value in module.state_dict().items() if is_adapter(name)}
    if not tensors:
        raise ConfigError(f"{folder}: the model has no adapter to save; call inject first")
    state, fields = adapter_files(config, tensors, base)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


def load_adapter(module: nn.Module, folder: str | Path) -> LoraConfig:
    """Adapt a model as a PEFT folder says and load its adapter, strictly.

    Raises:
        ConfigError: a file is missing, says what is not understood here, or does not fit the model.
    """
    place = Path(folder)
    config = _read_config(place / ADAPTER_CONFIG)
    weights = open_weights(place / ADAPTER_WEIGHTS)
    inject(module, config)
    own = {name: value for name, value in module.state_dict().items() if is_adapter(name)}
    expected = {PREFIX + name: tuple(value.shape) for name, value in own.items()}
    check_fit(expected, weights.shapes, weights.what, f"the adapter of this model (rank {config.rank})")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights.read(PREFIX + name))
    return config


def _read_config(path: Path) -> LoraConfig:
    try:
        fields = json.loads(path.read_text())
        config = LoraConfig(int(fields["r"]), float(fields["lora_alpha"]), tuple(_targets(fields, path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not the configuration of a LoRA adapter: {error!r}") from error
    odd = [f"{name} is {fields[name]!r}" for name, fine in _REFUSED.items() if fields.get(name, fine[0]) not in fine]
    odd += [f"{name} is set" for name in ("rank_pattern", "alpha_pattern", "modules_to_save") if fields.get(name)]
    if fields.get("peft_type") != "LORA" or odd:
        kind = f"peft_type {fields.get('peft_type')!r}; only plain LORA can be loaded"
        raise ConfigError(f"{path}: {kind}{listed(odd)}")
    return config


def _targets(fields: Mapping[str, Any], path: Path) -> Sequence[str]:
    targets = fields["target_modules"]
    if not isinstance(targets, list):
        raise ConfigError(f"{path}: target_modules {targets!r}: a list of names is needed, not a pattern")
    return targets


def merged_state(
    state: Mapping[str, Tensor], trained: Mapping[str, Tensor], scale: float
) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model with its adapter merged in, one after another.

    Args:
        state: of the adapted model, for what is frozen.
        trained: the adapter's tensors, which may be newer than the state's.
        scale: of the addition.
    """
    for name, value in state.items():
        if is_adapter(name):
            continue
        layer, _, kind = name.rpartition(".")
        a_RF = trained.get(f"{layer}.lora_A.weight")
        if kind == "weight" and a_RF is not None:
            value = merged(value.detach().cpu(), a_RF, trained[f"{layer}.lora_B.weight"], scale)
        yield name, value
