"""Stage 1: rejects that the header decides, before a frame is looked at."""

from __future__ import annotations

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.draft import Draft, Dropped
from videotrain_trainer.data.video import Unreadable, VideoInfo, probe


def run(draft: Draft, task: CurateTask) -> None:
    """Read the header and drop what cannot become a clip.

    Raises:
        Dropped: unreadable, one-frame, codec, too-short, low-fps, aspect or low-bitrate.
    """
    try:
        info = draft.info = probe(draft.path)
    except Unreadable as error:
        raise Dropped("unreadable", str(error)) from error
    _check_codec(info, task)
    if not draft.is_picture:
        _check_time(info, task, draft.path.stat().st_size)
    aspect = info.width / info.height
    if not task.min_aspect <= aspect <= task.max_aspect:
        bound = task.min_aspect if aspect < task.min_aspect else task.max_aspect
        allowed = f"{task.min_aspect:.3g} to {task.max_aspect:.3g}"
        detail = f"width / height {aspect:.3g} ({info.width}x{info.height}), allowed {allowed}"
        raise Dropped("aspect", detail, aspect, bound)


def _check_time(info: VideoInfo, task: CurateTask, size: int) -> None:
    if info.frames == 1:
        raise Dropped("one-frame", "1 frame, at least 2 needed", 1, 2)
    if 0 < info.seconds < task.min_seconds:
        detail = f"{info.seconds:.3g} s, at least {task.min_seconds:g} s"
        raise Dropped("too-short", detail, info.seconds, task.min_seconds)
    rate = float(info.fps)
    if info.fps < task.min_fps:
        raise Dropped("low-fps", f"{rate:.4g} fps, at least {task.min_fps:g} fps", rate, task.min_fps)
    bits = bits_per_pixel(info, size)
    if bits < task.min_bits_per_pixel:
        detail = f"{bits:.3g} bits per pixel, at least {task.min_bits_per_pixel:g}"
        raise Dropped("low-bitrate", detail, bits, task.min_bits_per_pixel)


def _check_codec(info: VideoInfo, task: CurateTask) -> None:
    """Some encoders' profiles tell of what made a video: Constrained Baseline is that of video calls."""
    for name in (info.codec, f"{info.codec}/{info.profile}"):
        if name in task.drop_codecs:
            raise Dropped("codec", f"{name}, one of dropCodecs ({', '.join(task.drop_codecs)})")


def bits_per_pixel(info: VideoInfo, size: int) -> float:
    """Bits of the file per shown pixel and frame; infinite if the header does not tell the length."""
    frames = info.frames or info.seconds * float(info.fps)
    return size * 8 / (info.width * info.height * frames) if frames else float("inf")
