"""Small models of the kinds of layers that stages train, for the gradient check of every start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from videotrain_api.config.presets import complete_autoencoder
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.stages import Recompute
from videotrain_trainer.networks.attention import attention
from videotrain_trainer.networks.build import build_autoencoder
from videotrain_trainer.networks.initial import initialize
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel.context import ContextGroup

HEAD_WIDTH = 12
FEATURES = 8
"""Width of text features."""


@dataclass(frozen=True)
class CheckCase:
    """One way in which a stage runs its micro-batches."""

    policy: Recompute
    group: ContextGroup | None
    """Ranks that share a micro-batch with this one; None if it has whole ones."""


@dataclass(frozen=True)
class CheckModel:
    """A model whose gradients are found twice, and how."""

    build: Callable[[], nn.Module]
    """float32, on the CPU, the same on every call and rank."""
    loss: Callable[[Callable[..., Any], int, ContextGroup | None], Tensor]
    """Loss of a micro-batch by its number; the losses of ranks that share it have its own as their mean."""
    cases: Sequence[CheckCase]
    rows: frozenset[str] = frozenset()
    """Parameters of which every row is reached by one micro-batch alone."""


def small_transformer(
    config: MMDiTConfig, cases: Sequence[CheckCase], world_size: int, device: torch.device
) -> CheckModel:
    """A narrow, shallow transformer with as many heads.

    The loss of a micro-batch looks at one channel of its own. So a row of the last layer has a gradient from it alone,
    and what is lost of one rank shows there whole, in a world of any size.

    Args:
        config: of the stage's model.
        cases: ways in which the stage runs.
        world_size: worker processes.
        device: of this process.
    """
    small = replace(
        config,
        in_channels=world_size + 1,
        context_dim=FEATURES,
        pooled_dim=FEATURES,
        hidden_size=HEAD_WIDTH * config.num_heads,
        double_blocks=min(2, config.double_blocks),
        single_blocks=min(2, config.single_blocks),
        rope_axes=(4, 4, 4),
        patch_size=1,
    )
    most = max(case.group.degree if case.group else 1 for case in cases)
    # Parts of both streams that are not of one length, where ranks share them.
    image, text = 2 * most + 1, most + 1

    def loss(model: Callable[..., Any], number: int, group: ContextGroup | None) -> Tensor:
        draw = _drawn(number, device)
        arguments = {
            "img_BNI": draw(1, image, small.in_channels),
            "img_ids_BN3": torch.arange(image, device=device).float().view(1, image, 1).expand(1, image, 3),
            "txt_BLD": draw(1, text, FEATURES),
            "txt_ids_BL3": torch.zeros(1, text, 3, device=device),
        }
        if small.cond_embed:
            arguments["cond_BNE"] = draw(1, image, small.cond_features)
        whole = {"timesteps_B": draw(1).sigmoid(), "pooled_BP": draw(1, FEATURES)}
        if small.guidance_embed:
            whole["guidance_B"] = draw(1).exp()
        if group is None:
            out: Tensor = model(**arguments, **whole)
            return out[..., number].float().sum() / image
        parts = {name: group.part(tensor) for name, tensor in arguments.items()}
        out = model(**parts, **whole, attend=group.attention(attention, text, image))
        return out[..., number].float().sum() * (group.degree / image)

    last = frozenset({"final_layer.linear.weight", "final_layer.linear.bias"})
    return CheckModel(lambda: _random(MMDiT(small)), loss, cases, last)


def small_autoencoder(policy: Recompute, device: torch.device, dtype: torch.dtype) -> CheckModel:
    """The tiny autoencoder of the presets.

    Args:
        policy: of the stage.
        device: of this process.
        dtype: of the computation.
    """
    spec = complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny"))

    def loss(model: Callable[..., Any], number: int, _group: ContextGroup | None) -> Tensor:
        draw = _drawn(number, device)
        video_BCTHW = draw(1, 3, 1, 32, 32).tanh()
        out: Tensor = model(video_BCTHW.to(dtype))
        return (out.float() * draw(*out.shape)).mean()

    return CheckModel(lambda: _random(build_autoencoder(spec)), loss, [CheckCase(policy, None)])


def _drawn(number: int, device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(number)
    return lambda *shape: torch.randn(shape, generator=generator).to(device)


def _random(module: nn.Module) -> nn.Module:
    """First weights with nothing at zero, so that every parameter has a gradient."""
    initialize(module, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module
