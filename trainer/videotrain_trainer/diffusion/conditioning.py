"""Which frames of a clip are given to the model, and the condition tensor that says so.

The tensor is a mask channel (1 on whole latent frames that are given) followed by the latent channels, zero where
nothing is given (arXiv 2503.09642, section 3.2). Given frames are encoded by themselves, because frames cut out of an
encoded clip have already seen their neighbours; only the v2v kinds of an autoencoder that is not causal are cut out, as
in the published recipe.

Nothing here keeps a state: what one sample is given never depends on the samples before it.

Shape letters: B batch, C latent channels, T latent frames, F given latent frames, H rows, W columns, N tokens, E packed
condition features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from videotrain_api.resource.references import applicable, reference_latents, takes_head, takes_tail
from videotrain_api.resource.stages import ConditioningMix, ConditionKind
from videotrain_trainer.errors import DataError
from videotrain_trainer.networks.packing import pack

KINDS: tuple[ConditionKind, ...] = get_args(ConditionKind)
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Given:
    """Latents of the given frames, unbatched; None where nothing is given."""

    head_CFHW: Tensor | None = None
    """Put at the start of the clip."""
    tail_CFHW: Tensor | None = None
    """Put at its end."""

    def __bool__(self) -> bool:
        return self.head_CFHW is not None or self.tail_CFHW is not None


@dataclass(frozen=True, kw_only=True)
class References:
    """Latents of one sample from which given frames are taken."""

    clip_CTHW: Tensor
    """The whole clip."""
    first_C1HW: Tensor
    """Its first frame, encoded as a picture."""
    last_C1HW: Tensor
    """Its last frame, encoded as a picture."""
    videos: Mapping[str, Tensor]
    """For a causal autoencoder the reference frames of the v2v kinds by kind, encoded by themselves."""


def choose(mix: ConditioningMix, latent_frames: int, draw: float, causal: bool) -> ConditionKind:
    """The kind of one sample.

    Args:
        mix: relative weights.
        latent_frames: of the clip; kinds that do not apply to it are left out, for this sample only.
        draw: uniform in [0, 1).
        causal: whether the autoencoder is causal.
    """
    weights = {kind: float(getattr(mix, kind)) for kind in KINDS if applicable(kind, latent_frames, causal)}
    left = draw * sum(weights.values())
    for kind, weight in weights.items():
        left -= weight
        if left < 0:
            return kind
    return "t2v"


def given_frames(kind: ConditionKind, references: References, causal: bool) -> Given:
    """What a training sample of that kind is given.

    Raises:
        DataError: the encoded set lacks the reference frames of a v2v kind.
    """
    if kind.startswith("v2v"):
        return _given_video(kind, references, causal)
    head = references.first_C1HW if takes_head(kind) else None
    return Given(head, references.last_C1HW if takes_tail(kind) else None)


def _given_video(kind: ConditionKind, references: References, causal: bool) -> Given:
    if not causal:
        count, clip_CTHW = reference_latents(kind, causal), references.clip_CTHW
        return Given(clip_CTHW[:, :count]) if takes_head(kind) else Given(None, clip_CTHW[:, -count:])
    frames_CFHW = references.videos.get(kind)
    if frames_CFHW is None:
        raise DataError(
            f"the encoded set has no separately encoded frames for {kind}, which train.conditioning asks for; encode "
            "it again in this run"
        )
    return Given(frames_CFHW) if takes_head(kind) else Given(None, frames_CFHW)


def condition_of(
    shape_CTHW: tuple[int, int, int, int], given: Given, device: torch.device = HOST
) -> tuple[Tensor, Tensor]:
    """Mask (1, T, H, W) and masked latent (C, T, H, W), float32 on the device, of a clip of that latent shape.

    A clip of one latent frame ignores what is given.
    """
    channels, frames, rows, columns = shape_CTHW
    mask_1THW = torch.zeros(1, frames, rows, columns, device=device)
    latent_CTHW = torch.zeros(channels, frames, rows, columns, device=device)
    if frames > 1:
        write_given(latent_CTHW, given)
        write_given(mask_1THW, _ones(given))
    return mask_1THW, latent_CTHW


def write_given(latent_CTHW: Tensor, given: Given) -> None:
    """Overwrite, in place, the frames that are given."""
    if given.head_CFHW is not None:
        latent_CTHW[:, : given.head_CFHW.shape[1]] = given.head_CFHW
    if given.tail_CFHW is not None:
        latent_CTHW[:, -given.tail_CFHW.shape[1] :] = given.tail_CFHW


def pack_condition(mask_B1THW: Tensor, latent_BCTHW: Tensor, patch: int) -> Tensor:
    """(B, N, E): the mask's features come first in every token."""
    return pack(torch.cat((mask_B1THW, latent_BCTHW), dim=1), patch)


def _ones(given: Given) -> Given:
    head, tail = given.head_CFHW, given.tail_CFHW
    return Given(
        None if head is None else torch.ones_like(head[:1]), None if tail is None else torch.ones_like(tail[:1])
    )
