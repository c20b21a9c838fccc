"""How videos are drawn unless somebody says otherwise: the one home of these numbers.

The resource, the command `videotrain-trainer sample` and `videotrain_trainer.models.sample` take them from here. They
are the published recipe's (arXiv 2503.09642, section 5).
"""

from __future__ import annotations

from typing import Final

STEPS: Final = 50
"""Euler steps, of videos and of first frames."""
PREVIEW_STEPS: Final = 20
"""Euler steps of what is drawn while a stage trains."""
TEXT_GUIDANCE: Final = 7.5
"""Scale of text guidance."""
DISTILLED_GUIDANCE: Final = 4.0
"""Value of the guidance input of a distilled model, which has neither scales nor a negative prompt."""
IMAGE_GUIDANCE: Final = 3.0
"""Scale of image guidance."""
FPS: Final = 24
"""Frame rate of the files and of the prompt suffix."""
MOTION_SCORE: Final = 4
"""Motion score of the prompt suffix."""
NO_NEGATIVE: Final = (
    "the model is distilled (spec.model.guidanceEmbed): guidance is one of its inputs, and nothing is led away from; "
    "leave the negative prompt out"
)
"""Why a distilled model refuses a negative prompt."""
SEEDS: Final = 2**64
"""Seeds are whole numbers below this."""
SEED: Final = 42
"""Of the noise."""


def text_guidance(given: float | None, distilled: bool | None) -> float:
    """The scale of text guidance, or the value of a distilled model's guidance input: what is given, else the usual."""
    if given is not None:
        return given
    return DISTILLED_GUIDANCE if distilled else TEXT_GUIDANCE
