"""The named resources as TorchX after 0.7 looks for them: in modules of this namespace package."""

from __future__ import annotations

from torchx.plugins import powers_of_two_gpus, register
from torchx.specs import Resource

from videotrain.torchx import resources


@register.named_resource(fractionals=powers_of_two_gpus)
def videotrain_h100(fractional: float = 1.0) -> Resource:
    """See videotrain.torchx.resources."""
    return resources.videotrain_h100(fractional)


@register.named_resource(fractionals=powers_of_two_gpus)
def videotrain_h200(fractional: float = 1.0) -> Resource:
    """See videotrain.torchx.resources."""
    return resources.videotrain_h200(fractional)


@register.named_resource(fractionals=powers_of_two_gpus)
def videotrain_b200(fractional: float = 1.0) -> Resource:
    """See videotrain.torchx.resources."""
    return resources.videotrain_b200(fractional)
