"""Length classes of captions: samples are batched with others of their class, so that little text is padded."""

from __future__ import annotations

from typing import Final

TEXT_CLASSES: Final = (96, 160, 256, 512)
"""Tokens. Each is at most about 1.7 times the one before: of the text in a class at most 40 % is padded."""
PLANNED_CAPTION_TOKENS: Final = 160
"""Length of a caption that a forecast assumes before there are any: some 120 words."""


def text_class(tokens: int, longest: int) -> int:
    """Tokens to which a caption is padded.

    Args:
        tokens: of the caption.
        longest: caption that the text encoder allows; the last class.
    """
    return next((size for size in TEXT_CLASSES if tokens <= size < longest), longest)


def planned_text(attend_padding: bool, longest: int) -> int:
    """Text tokens of a sample before there are captions: all that are padded to, or the class of an assumed caption.

    Args:
        attend_padding: see TrainTask.
        longest: caption that the text encoder allows.
    """
    return longest if attend_padding else text_class(PLANNED_CAPTION_TOKENS, longest)
