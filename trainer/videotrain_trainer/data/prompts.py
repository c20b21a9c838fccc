"""The text that is encoded: a caption and what the model is told about frame rate and motion.

Training and sampling share this one spelling. The published code spells the two differently, so that the released model
never saw the text that its sampler writes; docs/decisions/0630-one-spelling-of-rate-and-motion.md says what was chosen.
"""

from __future__ import annotations

import re

from videotrain_api.resource.stages import PromptStyle

_SUFFIX = re.compile(r"(?:^|\s+)(?:(\d+(?:\.\d+)?) FPS)?(?:[.,]? ?(\d+(?:\.\d+)?) motion score)?\.?$")


def prompt_text(caption: str, style: PromptStyle, fps: float | None, motion: float | None) -> str:
    """Caption and suffix, such as `A car drives by. 24 FPS, 4 motion score.`

    Args:
        caption: any text; if it already ends with a rate or a motion score, these are kept instead of the arguments.
        style: which parts follow; a part whose value is None is left out.
        fps: frames per second after thinning out; None for a picture.
        motion: motion score; rounded half up; None for a picture.
    """
    caption, own_fps, own_motion = split_suffix(caption)
    fps, motion = fps if own_fps is None else own_fps, motion if own_motion is None else own_motion
    parts = []
    if fps is not None and (style in ("fps", "fps-motion") or own_fps is not None):
        parts.append(f"{fps:g} FPS")
    if motion is not None and (style in ("motion", "fps-motion") or own_motion is not None):
        parts.append(f"{int(motion + 0.5)} motion score")
    return " ".join(part for part in (caption, f"{', '.join(parts)}." if parts else "") if part)


def split_suffix(caption: str) -> tuple[str, float | None, float | None]:
    """A caption without surrounding space, and the rate and motion score that it ends with, if any."""
    caption = caption.strip()
    found = _SUFFIX.search(caption)
    if found is None or not any(found.groups()):
        return caption, None, None
    fps, motion = (None if text is None else float(text) for text in found.groups())
    return caption[: found.start()].rstrip(), fps, motion
