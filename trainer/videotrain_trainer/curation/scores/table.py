"""All scores; what needs more than the trainer itself is measured where the task asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation import shot_network
from videotrain_trainer.curation.scores.blur import Blur
from videotrain_trainer.curation.scores.change import Change
from videotrain_trainer.curation.scores.interface import ClipFrame, Columns, Score
from videotrain_trainer.curation.scores.jitter import Jitter
from videotrain_trainer.curation.scores.looks import Looks
from videotrain_trainer.curation.scores.motion import Motion
from videotrain_trainer.curation.scores.text import TextArea, refuse_missing
from videotrain_trainer.curation.scores.watermark import Watermark
from videotrain_trainer.data.video import Frame

SCORES: tuple[Callable[[], Score], ...] = (Motion, Change, Blur, Jitter, Watermark, Looks)
"""A new score is a module here, a row, and a column of the catalogue (`data.manifest`)."""


def check(task: CurateTask) -> None:
    """Raises ConfigError if what the task asks for cannot be measured here."""
    if task.text_area:
        refuse_missing()
    if task.shot_detector == "transnetv2":
        shot_network.refuse_missing()


class ClipScores:
    """The scores of one clip, from frames that pass by on their way into its file.

    Args:
        task: says what else is measured.
        count: frames of the clip.
    """

    def __init__(self, task: CurateTask, count: int) -> None:
        self._count = count
        self._scores = [make() for make in (*SCORES, *((TextArea,) if task.text_area else ()))]

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The same frames, measured."""
        for number, rgb in enumerate(frames):
            frame = ClipFrame(number, self._count, rgb)
            for score in self._scores:
                score.see(frame)
            yield rgb

    def columns(self) -> Columns:
        """What all scores found."""
        return {name: value for score in self._scores for name, value in score.columns().items()}
