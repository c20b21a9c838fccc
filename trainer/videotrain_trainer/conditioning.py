"""Which frames of a clip are given to the model, and the condition tensor that says so.

The tensor is a mask channel (1 on whole latent frames that are given) followed by the latent channels, zero where
nothing is given (arXiv 2503.09642, section 3.2). A given frame is encoded by itself as a picture, because a frame cut
out of an encoded clip has already seen its neighbours.

Shape letters: B batch, C latent channels, T latent frames, F given latent frames, H rows, W columns, N tokens, E packed
condition features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from videotrain_api.stages import ConditioningMix, ConditionKind
from videotrain_trainer.model.common import pack

KINDS: tuple[ConditionKind, ...] = get_args(ConditionKind)
VIDEO_REFERENCE = 8
"""Latent frames that the v2v kinds give (32 pixel frames)."""


@dataclass(frozen=True)
class Given:
    """Latents of the given frames, unbatched; None where nothing is given."""

    head_CFHW: Tensor | None = None
    """Put at the start of the clip."""
    tail_CFHW: Tensor | None = None
    """Put at its end."""

    def __bool__(self) -> bool:
        return self.head_CFHW is not None or self.tail_CFHW is not None


def applicable(kind: ConditionKind, latent_frames: int) -> bool:
    """Pictures are never conditioned; a v2v clip must be longer than what is given of it."""
    if kind == "t2v":
        return True
    return latent_frames > (VIDEO_REFERENCE if kind.startswith("v2v") else 1)


def choose(mix: ConditioningMix, latent_frames: int, draw: float) -> ConditionKind:
    """The kind of one sample.

    Args:
        mix: relative weights.
        latent_frames: of the clip; kinds that do not apply to it are left out, for this sample only.
        draw: uniform in [0, 1).
    """
    weights = {kind: float(getattr(mix, kind)) for kind in KINDS if applicable(kind, latent_frames)}
    left = draw * sum(weights.values())
    for kind, weight in weights.items():
        left -= weight
        if left < 0:
            return kind
    return "t2v"


def given_frames(kind: ConditionKind, latent_CTHW: Tensor, first_C1HW: Tensor, last_C1HW: Tensor) -> Given:
    """What a training sample of that kind is given.

    Args:
        kind: how it is conditioned.
        latent_CTHW: the clip; v2v kinds copy from it, as the published recipe does if the autoencoder is not causal.
        first_C1HW: its first frame, encoded as a picture.
        last_C1HW: its last frame, encoded as a picture.
    """
    if kind == "v2v_head":
        return Given(head_CFHW=latent_CTHW[:, :VIDEO_REFERENCE])
    if kind == "v2v_tail":
        return Given(tail_CFHW=latent_CTHW[:, -VIDEO_REFERENCE:])
    head = first_C1HW if kind in ("i2v_head", "i2v_loop") else None
    tail = last_C1HW if kind in ("i2v_tail", "i2v_loop") else None
    return Given(head, tail)


def condition_of(shape_CTHW: tuple[int, int, int, int], given: Given) -> tuple[Tensor, Tensor]:
    """Mask (1, T, H, W) and masked latent (C, T, H, W), float32, of a clip of that latent shape.

    A clip of one latent frame ignores what is given.
    """
    channels, frames, rows, columns = shape_CTHW
    source = next((part for part in (given.head_CFHW, given.tail_CFHW) if part is not None), None)
    device = source.device if source is not None else torch.device("cpu")
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
