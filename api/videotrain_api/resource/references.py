"""What may be drawn: lengths that an autoencoder decodes to, and references that a condition takes.

Admission, the trainer's tasks and commands, and `videotrain_trainer.models.sample` ask here, and raise errors of their
own kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from videotrain_api.resource.autoencoder_kinds import TimeAxis
from videotrain_api.resource.stages import ConditionKind

VIDEO_REFERENCE, EASY_VIDEO_REFERENCE = 8, 16
"""Latent frames that the v2v kinds give (32 and 64 frames at 4 a latent); a causal autoencoder's first comes on top."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference that some kinds of condition take."""

    field: Literal["image", "video", "last_image"]
    prefix: str
    """Begins the names of the kinds that take it."""
    needed: bool
    """Whether these kinds must have it."""
    allowed: str
    """The rule in words, for messages."""


REFERENCES = (
    Reference(
        field="image", prefix="i2v", needed=True, allowed="the i2v kinds need an image and no other kind takes one"
    ),
    Reference(
        field="video", prefix="v2v", needed=True, allowed="the v2v kinds need a video and no other kind takes one"
    ),
    Reference(field="last_image", prefix="i2v_loop", needed=False, allowed="only i2v_loop has a last image"),
)


def misfits(kind: ConditionKind, given: dict[str, Any]) -> Iterator[Reference]:
    """The references that are missing from `given` (by field, None if absent) or do not belong to that kind."""
    for reference in REFERENCES:
        present, takes = given[reference.field] is not None, kind.startswith(reference.prefix)
        if present != takes and (present or reference.needed):
            yield reference


def refusal(kind: ConditionKind, frames: int, time: TimeAxis, cond_embed: bool) -> str | None:
    """Why a model cannot draw a video of that kind and length; None if it can.

    Args:
        kind: condition of the video.
        frames: of the video.
        time: of the autoencoder.
        cond_embed: whether the transformer has a condition input.
    """
    if kind == "t2v":
        return None
    count = reference_frames(kind, time)
    if frames == 1:
        return "a picture takes no reference; draw more frames or use t2v"
    if frames <= count:
        return f"{frames} frames are not more than the {count} that are given; draw more or take another condition"
    return None if cond_embed else "needs a model with spec.model.condEmbed"


def frames_refusal(frames: int, time: TimeAxis) -> str | None:
    """Why an autoencoder cannot decode to so many frames; None if it can."""
    if time.draws(frames):
        return None
    step = time.compression
    return f"this autoencoder decodes to {f'1 + {step}k' if time.causal else f'1 or {step}k with k > 1'} frames"


def takes_head(kind: ConditionKind) -> bool:
    """Whether frames at the start are given."""
    return kind in ("i2v_head", "i2v_loop", "v2v_head", "v2v_head_easy")


def takes_tail(kind: ConditionKind) -> bool:
    """Whether frames at the end are given."""
    return kind in ("i2v_tail", "i2v_loop", "v2v_tail", "v2v_tail_easy")


def reference_latents(kind: ConditionKind, causal: bool) -> int:
    """Latent frames that a kind gives at each end that it gives; 0 for t2v."""
    if kind == "t2v":
        return 0
    if kind.startswith("i2v"):
        return 1
    return (EASY_VIDEO_REFERENCE if kind.endswith("_easy") else VIDEO_REFERENCE) + causal


def reference_frames(kind: ConditionKind, time: TimeAxis) -> int:
    """Frames that `reference_latents` stand for: 1 for pictures; 32 or 33, 64 or 65 for videos at 4 a latent frame."""
    latents = reference_latents(kind, time.causal)
    return latents if latents <= 1 else time.frames(latents)


def applicable(kind: ConditionKind, latent_frames: int, causal: bool) -> bool:
    """Pictures are never conditioned; a v2v clip must be longer than what is given of it."""
    return kind == "t2v" or latent_frames > reference_latents(kind, causal)
