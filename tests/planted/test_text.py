"""What is no text; what is found of written text is in the suites of faults."""

from __future__ import annotations

import av
import pytest
from support import planted_faults as planted

from videotrain_trainer.curation.scores.interface import ClipFrame
from videotrain_trainer.curation.scores.text import TextArea


@pytest.mark.parametrize("seed", [85, 93, 100])
def test_texture_of_a_small_video_is_no_text(seed, tmp_path):
    """At 480 lines the reader found text on more than a twentieth of each of these pictures."""
    path = planted.paint(tmp_path / "clip.mp4", planted.scene(seed))
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    score = TextArea()
    for number, frame in enumerate(frames):
        score.see(ClipFrame(number, len(frames), frame))
    assert score.columns()["text"] < 0.01
