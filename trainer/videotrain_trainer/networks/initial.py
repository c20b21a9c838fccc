"""First weights: each parameter from the seed and its name alone, so they are made one at a time and in any order."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.common import seeded_generator
from videotrain_trainer.networks.layout_rules import Mapped, kept_values, towards_theirs
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights.configuration import configuration_metadata
from videotrain_trainer.networks.weights.layouts import scheme
from videotrain_trainer.networks.weights.loading import config_of, materialise, native_to_ours
from videotrain_trainer.networks.weights.writer import Destination, Planned, write_weights

Progress = Callable[[int, int], None]
"""(bytes written, bytes in all)."""


def initialize(module: nn.Module, seed: int) -> None:
    """Random weights that depend on the seed and each parameter's name alone, whatever the world or the order.

    Linear layers start as torch does (uniform, 1/sqrt(fan-in)). Convolutions start from a normal of the same scale,
    which at published widths is the 0.02 of the DC-AE recipe. Norms start at one, but those that end a branch of a
    DC-AE start near zero (0.02, the scale of the recipe), so that at first its shortcuts carry the picture. The
    condition input of an MMDiT starts at zero.

    A parameter on the `meta` device gets its memory here, one at a time.
    """
    for name, parameter in list(module.named_parameters()):
        value = initial_value(module, name, seed)
        if parameter.is_meta:
            materialise(module, name, value)
        else:
            with torch.no_grad():
                parameter.copy_(value)


def initial_value(module: nn.Module, name: str, seed: int) -> Tensor:
    """The first value of one parameter, float32; see `initialize`. The module itself may be on the `meta` device."""
    path, _, kind = name.rpartition(".")
    owner, values = module.get_submodule(path), torch.empty(module.get_parameter(name).shape, device="cpu")
    if isinstance(module, MMDiT) and path == "cond_in":
        return values.zero_()
    constant = module.first_value(name) if isinstance(module, Autoencoder) else None
    if constant is not None:
        return values.fill_(constant)
    generator = seeded_generator(seed, name)
    if isinstance(owner, nn.Linear):
        bound = 1.0 / math.sqrt(owner.in_features)
        return values.uniform_(-bound, bound, generator=generator)
    if isinstance(owner, nn.Conv2d | nn.Conv3d) and kind == "weight":
        std = 1.0 / math.sqrt(values[0].numel())
        return nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=generator)
    return values.fill_(0.0 if kind == "bias" else 1.0)


def write_initial(
    module: nn.Module,
    seed: int,
    destination: Destination,
    layout: str,
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress | None = None,
) -> list[str]:
    """Write the first weights of a model that is never in memory: those that `initialize` gives.

    Memory is bounded by the tensors that make one tensor of the layout (at 11 B parameters 0.4 GB), so any machine can
    write a checkpoint of any size.

    Args:
        module: on the `meta` device.
        seed: of the weights.
        destination: file or folder.
        layout: to be written; see `weights.LAYOUTS`.
        dtype: of the file.
        progress: is told after every tensor.

    Returns:
        Names of the files.

    Raises:
        ConfigError: the layout cannot hold the model.
        DiskFull: no space left.
    """
    config = config_of(module)
    if config is None:
        raise ConfigError(f"{type(module).__name__} has no published layout; use initialize")
    stored = scheme(layout, config)
    ours = native_to_ours(module, lambda name: initial_value(module, name, seed).to(dtype))
    theirs = Mapped(towards_theirs(stored.rules), ours)
    plan = [Planned(name, dtype, shape) for name, shape in stored.theirs.items()]
    metadata = {**kept_values(stored.rules, ours), **configuration_metadata(config)}
    total, done = sum(planned.length for planned in plan), 0

    def tell(length: int) -> None:
        nonlocal done
        done += length
        if progress:
            progress(done, total)

    return write_weights(destination, plan, theirs, metadata, tell)
