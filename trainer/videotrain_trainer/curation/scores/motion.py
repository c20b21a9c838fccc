"""Motion as libavfilter's `vmafmotion` has it: mean difference of neighbouring frames after a blur, 0 for a still one.

The number at the end of a caption that a model is trained on (`4 motion score`) is this one.
"""

from __future__ import annotations

from fractions import Fraction

import av

from videotrain_trainer.curation.scores.interface import ClipFrame, Columns

KEY = "lavfi.vmafmotion.score"


class Motion:
    """Mean over all frames but the first, which has none before it."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._sum = 0.0
        self._frames = 0

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""
        picture = av.VideoFrame.from_ndarray(frame.i420, format="yuv420p")
        picture.pts, picture.time_base = frame.number, Fraction(1, 25)
        graph = self._graph = self._graph or _filter(picture)
        graph.vpush(picture)
        self._sum += float(graph.vpull().metadata[KEY])
        self._frames += 1

    def columns(self) -> Columns:
        """What was measured."""
        return {"motion": self._sum / max(1, self._frames - 1)}


def _filter(picture: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base
    )
    graph.link_nodes(source, graph.add("vmafmotion"), graph.add("buffersink")).configure()
    return graph
