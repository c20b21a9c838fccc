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
from videotrain_trainer.networks.weights.fragments import Computed, Fragments
from videotrain_trainer.networks.weights.layouts import scheme
from videotrain_trainer.networks.weights.loading import config_of, materialise, native_to_ours
from videotrain_trainer.networks.weights.writer import Destination, Planned, write_weights

Progress = Callable[[int, int], None]
"""(bytes written, bytes in all)."""
Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Fills a tensor with random values, and gives it back."""
DRAWN = 1 << 20
"""Elements that are drawn with one generator."""


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
    shape = module.get_parameter(name).shape
    return _first(module, name, seed)(0, shape.numel()).view(shape)


def initial_fragments(module: nn.Module, seed: int) -> Fragments:
    """The first values of a module's parameters, of which each rank draws those that it holds.

    They do not change with what becomes of the module's parameters later.
    """
    first = {name: _first(module, name, seed) for name, _ in module.named_parameters()}
    return Computed(lambda name, start, length: first[name](start, length))


def _first(module: nn.Module, name: str, seed: int) -> Callable[[int, int], Tensor]:
    """(start, length) to elements, float32, of the first value of one flattened parameter.

    Random ones are drawn in blocks of DRAWN elements, each from a generator of its own, so that a rank draws little
    more than the elements that it holds.
    """
    path, _, kind = name.rpartition(".")
    owner, shape = module.get_submodule(path), module.get_parameter(name).shape
    if isinstance(module, MMDiT) and path == "cond_in":
        return lambda _, length: torch.zeros(length)
    constant = module.first_value(name) if isinstance(module, Autoencoder) else None
    if constant is not None:
        return lambda _, length: torch.full((length,), constant)
    if isinstance(owner, nn.Linear):
        bound = 1.0 / math.sqrt(owner.in_features)

        def uniform(out: Tensor, random: torch.Generator) -> Tensor:
            return out.uniform_(-bound, bound, generator=random)

        return lambda start, length: _drawn(uniform, name, shape.numel(), start, length, seed)
    if isinstance(owner, nn.Conv2d | nn.Conv3d) and kind == "weight":
        std = 1.0 / math.sqrt(shape[1:].numel())

        def normal(out: Tensor, random: torch.Generator) -> Tensor:
            return nn.init.trunc_normal_(out, std=std, a=-2 * std, b=2 * std, generator=random)

        return lambda start, length: _drawn(normal, name, shape.numel(), start, length, seed)
    return lambda _, length: torch.full((length,), 0.0 if kind == "bias" else 1.0)


def _drawn(draw: Draw, name: str, total: int, start: int, length: int, seed: int) -> Tensor:
    # A block is drawn whole: the last bit of an element may depend on how many are asked for at once.
    out = torch.empty(length)
    for block in range(start // DRAWN, -(-(start + length) // DRAWN)):
        random = seeded_generator(seed, f"{name}/{block}" if block else name)
        values = draw(torch.empty(min(DRAWN, total - block * DRAWN)), random)
        low, high = max(start, block * DRAWN), min(start + length, (block + 1) * DRAWN)
        out[low - start : high - start] = values[low - block * DRAWN : high - block * DRAWN]
    return out


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
