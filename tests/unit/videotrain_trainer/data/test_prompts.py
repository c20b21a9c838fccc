from __future__ import annotations

import pytest

from videotrain_trainer.data.prompts import prompt_text


@pytest.mark.parametrize(
    ("style", "fps", "motion", "text"),
    [
        ("fps-motion", 24.0, 3.5, "A car. 24 FPS, 4 motion score."),
        ("fps-motion", 23.976, 0.4, "A car. 23.976 FPS, 0 motion score."),
        ("fps-motion", None, 2.0, "A car. 2 motion score."),
        ("fps", 12.0, 3.0, "A car. 12 FPS."),
        ("motion", 12.0, 3.0, "A car. 3 motion score."),
        ("plain", 12.0, 3.0, "A car."),
    ],
)
def test_a_prompt_is_the_caption_and_one_sentence_about_rate_and_motion(style, fps, motion, text):
    assert prompt_text(" A car. ", style, fps, motion) == text
