"""The text that is encoded: a caption and what the model is told about frame rate and motion.

Training and sampling share this one spelling. The published code spells the two differently, so that the released model
never saw the text that its sampler writes.
"""

from __future__ import annotations

from videotrain_api.stages import PromptStyle


def prompt_text(caption: str, style: PromptStyle, fps: float | None, motion: float | None) -> str:
    """Caption and suffix, such as `A car drives by. 24 FPS, 4 motion score.`

    Args:
        caption: any text.
        style: which parts follow; a part whose value is None is left out.
        fps: frames per second after thinning out.
        motion: motion score; rounded half up.
    """
    parts = []
    if fps is not None and style in ("fps", "fps-motion"):
        parts.append(f"{fps:g} FPS")
    if motion is not None and style in ("motion", "fps-motion"):
        parts.append(f"{int(motion + 0.5)} motion score")
    caption = caption.strip()
    return f"{caption} {', '.join(parts)}." if parts else caption
