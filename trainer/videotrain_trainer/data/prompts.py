"""The text that is encoded: a caption or prompt and what the model is told about frame rate and motion.

Training and sampling share this one spelling. The published code spells the two differently, so that the released model
never saw the text that its sampler writes; docs/decisions/0630-one-spelling-of-rate-and-motion.md says what was chosen.
"""

from __future__ import annotations

import re

from videotrain_api.resource.stages import PromptStyle

_ENDING = re.compile(r"(?<!\S)(?:(\d{1,16}(?:\.\d{1,16})?) FPS)?(?:[.,]? ?(\d{1,16}(?:\.\d{1,16})?) motion score)?\.?$")
LONGEST_ENDING = 96
"""Characters; a rate and a motion score of 16 digits before and behind the point need fewer. No more is searched."""


def caption_text(caption: str, style: PromptStyle, fps: float | None, motion: float | None) -> str:
    """A clip's caption and suffix, such as `A car drives by. 24 FPS, 4 motion score.`

    The clip was measured, so its rate and score are told whatever the caption ends with.

    Args:
        caption: any text; space around it is left out.
        style: which parts follow; a part whose value is None is left out.
        fps: frames per second after thinning out; None for a picture.
        motion: motion score; rounded half up; None for a picture.
    """
    parts = []
    if fps is not None and style in ("fps", "fps-motion"):
        parts.append(f"{fps:g} FPS")
    if motion is not None and style in ("motion", "fps-motion"):
        parts.append(f"{int(motion + 0.5)} motion score")
    return " ".join(part for part in (caption.strip(), f"{', '.join(parts)}." if parts else "") if part)


def prompt_text(prompt: str, style: PromptStyle, fps: float | None, motion: float | None) -> str:
    """The same for a prompt: a rate or motion score that it already ends with is kept, in every style."""
    text, own_fps, own_motion = split_suffix(prompt)
    if own_fps is None and style not in ("fps", "fps-motion"):
        fps = None
    if own_motion is None and style not in ("motion", "fps-motion"):
        motion = None
    fps, motion = fps if own_fps is None else own_fps, motion if own_motion is None else own_motion
    return caption_text(text, "fps-motion", fps, motion)


def split_suffix(prompt: str) -> tuple[str, float | None, float | None]:
    """A prompt without surrounding space, and the rate and motion score that it ends with, if any.

    An ending is a sentence as `caption_text` writes it; its comma may be a point or missing, and so may its last point.
    """
    text = prompt.strip()
    found = _ENDING.search(text, max(0, len(text) - LONGEST_ENDING))
    if found is None or not any(found.groups()):
        return text, None, None
    fps, motion = (None if number is None else float(number) for number in found.groups())
    return text[: found.start()].rstrip(), fps, motion
