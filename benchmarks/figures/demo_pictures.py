"""Draws docs/images/demo.png: clips of the demo, and under each what was drawn from its caption and its first frame.

tox -e demo && python benchmarks/figures/demo_pictures.py runs/demo
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw

from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage.artifacts import SampledVideo
from videotrain_trainer.data.video import Frame
from videotrain_trainer.evaluation.videos import read_frames
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.evaluate_videos import clip_frames

PICTURE: Final = Path(__file__).parents[2] / "docs" / "images" / "demo.png"
EVERY: Final = 3
"""Of the frames of a video one in so many is shown, from the first on."""
SIDE: Final = 128
MARGIN: Final = 6
LABEL: Final = 60
COLOURS: Final = 256
Row = tuple[str, Frame]


def main() -> None:
    """Draw the picture from the folder of a finished run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="of the finished demo")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the picture goes")
    options = parser.parse_args()
    draw([pair_of(options.workdir, video) for video in drawn_from_clips(options.workdir)], options.picture)


def drawn_from_clips(workdir: Path) -> list[Mapping[str, Any]]:
    """What the summary says of the videos that were drawn from clips."""
    videos: list[Mapping[str, Any]] = json.loads((workdir / "summary.json").read_text())["videos"]
    return [video for video in videos if video["reference_file"]]


def pair_of(workdir: Path, told: Mapping[str, Any]) -> tuple[Row, Row]:
    """Frames of a clip and of its drawing."""
    fields = {name: told[name] for name in SampledVideo.model_fields}
    clip, drawn = ((workdir / told[name]).resolve().as_uri() for name in ("reference_file", "file"))
    video = SampledVideo.model_validate(fields | {"reference_clip": clip, "uri": drawn})
    store = ObjectStore(Storage(uri="s3://unset"))
    return ("clip", clip_frames(store, video)), ("drawn", read_frames(store, drawn))


def draw(pairs: Sequence[tuple[Row, Row]], picture: Path) -> None:
    """A row of each clip and one of its drawing."""
    shown = [(label, frames[::EVERY]) for pair in pairs for label, frames in pair]
    step = SIDE + MARGIN
    columns = max(len(frames) for _, frames in shown)
    canvas = Image.new("RGB", (LABEL + columns * step, len(shown) * step + len(pairs) * MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    for number, (label, frames) in enumerate(shown):
        top = number * step + number // 2 * MARGIN
        pen.text((MARGIN, top + SIDE // 2), label, fill="black")
        for column, frame in enumerate(frames):
            tile = Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            canvas.paste(tile, (LABEL + column * step, top))
    canvas.quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
