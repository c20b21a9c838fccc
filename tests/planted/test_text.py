"""How written text is looked for; what is found of it is in the suites of faults."""

from __future__ import annotations

from support import planted_faults as planted

from videotrain_trainer.curation.scores.interface import ClipFrame
from videotrain_trainer.curation.scores.text import LINES, TextArea, text_reader


def test_the_network_gets_frames_no_larger_than_they_are_made_for_it(monkeypatch):
    detector = text_reader().text_det
    heights, infer = [], detector.infer
    monkeypatch.setattr(detector, "infer", lambda picture: heights.append(picture.shape[2]) or infer(picture))
    score = TextArea()
    score.see(ClipFrame(0, 1, planted.written(1)(0)))
    assert score.columns()["text"] > 0.1
    assert heights == [LINES]
