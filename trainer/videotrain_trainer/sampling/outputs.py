"""Files of a drawing: mp4, GIF or PNG with everything that made them in their metadata, and a JSON file beside them.

The JSON file is written last. What is there with a JSON file that names the same request is complete and never drawn
again.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from videotrain_trainer import __version__
from videotrain_trainer.data.video import ONE_FILE, Frame, write_mp4
from videotrain_trainer.files import remove, replacing
from videotrain_trainer.sampling.draw import Drawn
from videotrain_trainer.sampling.request import Request
from videotrain_trainer.storage import disk_full_is_clear

Format = Literal["mp4", "gif", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
METADATA_KEY = "videotrain"
"""Name of the text field in PNG files; an mp4 and a GIF have one comment."""
Metadata = dict[str, Any]


def describe(request: Request, drawn: Drawn) -> Metadata:
    """What is written into and beside the files: the request, its hash, the seed that was kept and the scores."""
    return {
        "request": request.describe(),
        "hash": request.hash(),
        "seed": drawn.seed,
        "scores": {str(seed): score for seed, score in drawn.scores.items()},
        "version": __version__,
    }


def write(stem: Path, ending: Format, request: Request, drawn: Drawn) -> Path:
    """Write a drawing as `<stem>.<ending>` and `<stem>.json`.

    A picture is one PNG file; a video in format png is a folder `<stem>` of numbered ones.

    Returns:
        The file or folder.
    """
    target, metadata = target_of(stem, ending, len(drawn.frames_THWC)), describe(request, drawn)
    sidecar_of(stem).unlink(missing_ok=True)
    with disk_full_is_clear(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, shared=True) as partial:
            _write(partial, ending, request, drawn, metadata)
            remove(target)
        with replacing(sidecar_of(stem), shared=True) as partial:
            partial.write_text(json.dumps(metadata | {"file": target.name}, indent=1, ensure_ascii=False) + "\n")
    return target


def is_complete(stem: Path, ending: Format, request: Request) -> bool:
    """Whether a drawing of this very request is there."""
    try:
        found = json.loads(sidecar_of(stem).read_text())
    except (OSError, ValueError):
        return False  # none, or not ours: it is drawn and written anew
    same = isinstance(found, dict) and found.get("hash") == request.hash()
    return same and target_of(stem, ending, request.settings.frames).exists()


def target_of(stem: Path, ending: Format, frames: int) -> Path:
    """The file or folder that a drawing becomes."""
    return stem if ending == "png" and frames > 1 else stem.with_name(f"{stem.name}.{ending}")


def sidecar_of(stem: Path) -> Path:
    """The JSON file beside a drawing."""
    return stem.with_name(f"{stem.name}.json")


def write_video(frames_THWC: Tensor, path: Path, fps: float, comment: Metadata) -> None:
    """Write an mp4 (H.264, yuv420p) whose comment holds `comment` as JSON."""
    arrays: list[Frame] = [frame.numpy() for frame in frames_THWC]
    with disk_full_is_clear(path):
        write_mp4(arrays, path, Fraction(fps).limit_denominator(1001), comment=_note(comment))


def read_metadata(path: Path) -> Metadata | None:
    """What was written into an mp4, GIF or PNG file; None if it is none of ours."""
    try:
        if path.suffix in (".png", ".gif"):
            with Image.open(path) as picture:
                text = picture.info.get(METADATA_KEY) or picture.info.get("comment", b"null").decode()
        else:
            with av.open(str(path), options=ONE_FILE) as container:
                text = container.metadata.get("comment", "null")
        found = json.loads(text)
    except (av.FFmpegError, OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, ending: Format, request: Request, drawn: Drawn, metadata: Metadata) -> None:
    frames, fps = drawn.frames_THWC, request.settings.fps
    if ending == "mp4":
        write_video(frames, path, fps, metadata)
    elif ending == "gif":
        _write_gif(frames, path, fps, metadata)
    elif len(frames) == 1:
        _write_png(frames[0], path, metadata)
    else:
        path.mkdir()
        for number, frame in enumerate(frames):
            _write_png(frame, path / f"{number:04d}.png", metadata)


def _write_png(frame_HWC: Tensor, path: Path, metadata: Metadata) -> None:
    info = PngInfo()
    info.add_itxt(METADATA_KEY, _note(metadata))
    Image.fromarray(frame_HWC.numpy()).save(path, format="png", pnginfo=info)


def _write_gif(frames_THWC: Tensor, path: Path, fps: float, metadata: Metadata) -> None:
    first, *rest = [Image.fromarray(frame.numpy()) for frame in frames_THWC]
    first.save(
        path,
        format="gif",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        # The comment of a GIF is bytes in blocks of 255; escapes keep it ASCII.
        comment=json.dumps(metadata, sort_keys=True).encode(),
    )


def _note(metadata: Metadata) -> str:
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False)
