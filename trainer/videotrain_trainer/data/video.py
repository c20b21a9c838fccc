"""Reading and writing video files with PyAV.

A decoder that raises nothing has not shown that a file is whole: H.264 conceals damaged macroblocks silently. Files
are therefore opened with error flags, counted frame by frame, and curated clips carry a checksum.

Arrays are (H, W, 3) uint8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.errors import DataError

Frame = NDArray[np.uint8]
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
FORMATS = (
    *("mov", "matroska", "avi", "mpeg", "mpegvideo", "mpegts", "asf", "flv"),
    *("gif", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe"),
)
"""FFmpeg's names of the demuxers that may read a file, each of which reads that file alone. Playlists and scripts (HLS,
DASH, SDP, ffconcat, numbered pictures) name further files, and would be read without end or from elsewhere."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Suffixes of files that hold one picture."""
ONE_FILE = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
"""Options to open any video with that others made."""
LARGEST_FRAME = 8192 * 4320
"""Pixels of a frame, as stored and as shown: 8K as cinemas have it. A decoder holds up to two dozen of them."""
LARGEST_PICTURE = 8 * LARGEST_FRAME
"""Bytes of a picture's file: so many are in its pixels, of four channels of two bytes each, where nothing is packed."""
DECODER_THREADS = 4
"""At most: each holds frames of its own."""
LOST_FRAMES = 0.05
"""A file may have so many fewer frames than its header says; encoders and editors round."""
ASSUMED_RATE = Fraction(25)
"""For the rare stream that names no frame rate."""


class Unreadable(DataError):
    """A video cannot be decoded to its end."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file's header says; sizes are those that a player shows."""

    width: int
    height: int
    fps: Fraction
    frames: int
    """0 if the header does not tell."""
    seconds: float
    """0 if the header does not tell."""
    codec: str
    profile: str


Source = Path | bytes


def probe(source: Source) -> VideoInfo:
    """Read the header and the first frame.

    Raises:
        Unreadable: not a video.
    """
    with _stream(source) as (container, stream):
        first = next(_frames(stream), None)
        if first is None:
            raise Unreadable("no frame could be decoded")
        height, width = _shown_size(stream, first)
        return VideoInfo(
            width=width,
            height=height,
            fps=_rate(stream),
            frames=int(stream.frames or 0),
            seconds=float(container.duration or 0) / float(av.time_base),
            codec=stream.codec_context.name,
            profile=stream.profile or "",
        )


def decode(
    source: Source, size: tuple[int, int] | None = None, pixel_format: str = "rgb24"
) -> Iterator[tuple[float, Frame]]:
    """All frames with their times in seconds, turned upright.

    Args:
        source: file or its bytes.
        size: (height, width) to scale to; the shown size if None.
        pixel_format: rgb24 or bgr24.

    Raises:
        Unreadable: a frame is damaged, or clearly fewer frames come than the header promises.
    """
    with _stream(source) as (_, stream):
        rate, count, origin = _rate(stream), 0, None
        for frame in _frames(stream):
            time = float(frame.time) if frame.time is not None else float(count / rate)
            origin = time if origin is None else origin
            yield time - origin, _upright(frame, size or _shown_size(stream, frame), pixel_format)
            count += 1
        if count < (stream.frames or 0) * (1 - LOST_FRAMES):
            raise Unreadable(f"{count} frames could be decoded, the header promises {stream.frames}")


def write_mp4(frames: Iterable[Frame], path: Path, fps: Fraction, crf: int = 18, comment: str | None = None) -> int:
    """Write H.264 in yuv420p, playable while it loads, at least one key frame per second.

    The same frames give the same bytes on every machine: one thread, and none of x264's shortcuts that depend on the
    processor (they also read memory that nobody wrote, which shows as rare differences on one machine).

    Args:
        frames: all of one even size.
        path: file to write.
        fps: constant frame rate.
        crf: x264's quality, lower is better.
        comment: kept in the file's metadata.

    Returns:
        The number of frames.
    """
    count = 0
    # bitexact leaves out the time of writing.
    muxer = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=muxer) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "cpu-independent=1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.thread_count = 1
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = max(1, int(fps))
        for count, array in enumerate(frames, start=1):
            if count == 1:
                stream.height, stream.width = array.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        if count:
            container.mux(stream.encode())
    return count


def even_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) scaled down, never up, to the longer side; even, as yuv420p needs."""
    scale = min(1.0, long_side / max(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def cover_size(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the smallest resize that covers the target; one side fits it exactly."""
    rows, columns = target
    if rows * width >= columns * height:
        return rows, max(columns, round(width * rows / height))
    return max(rows, round(height * columns / width)), columns


def read_covering(source: Source, target: tuple[int, int]) -> Frame:
    """All frames, (T, H', W', 3), resized to cover `target` (height, width)."""
    info = probe(source)
    size = cover_size(info.height, info.width, target)
    frames = [frame for _, frame in decode(source, size)]
    if not frames:
        raise Unreadable("no frame could be decoded")
    return np.stack(frames)


@dataclass(frozen=True)
class Cut:
    """What is wanted of a video: some frames, resized to cover a size and cropped to it in the middle."""

    frames: range
    size: tuple[int, int]
    """(height, width)."""

    @property
    def bytes(self) -> int:
        """Of the pixels."""
        return len(self.frames) * self.size[0] * self.size[1] * 3


def read_cuts(source: Source, cuts: Sequence[Cut]) -> list[Frame]:
    """Several cuts of a video, each (T, height, width, 3), in one pass that ends with the last frame that is wanted.

    Pixels are those of `read_covering`. A frame is resized once for all cuts of a size.

    Raises:
        Unreadable: the video ends before a frame that is wanted, or a frame is damaged.
    """
    found = [np.empty((len(cut.frames), *cut.size, 3), np.uint8) for cut in cuts]
    last = max((cut.frames[-1] for cut in cuts), default=-1)
    number, shown = -1, (0, 0)
    with _stream(source) as (_, stream):
        for number, frame in enumerate(_frames(stream)):
            if number == 0:
                shown = _shown_size(stream, frame)
            wanted = [(cut, pixels) for cut, pixels in zip(cuts, found, strict=True) if number in cut.frames]
            for size in {cut.size for cut, _ in wanted}:
                whole = _upright(frame, cover_size(*shown, size), "rgb24")
                top, left = (whole.shape[0] - size[0]) // 2, (whole.shape[1] - size[1]) // 2
                for cut, pixels in wanted:
                    if cut.size == size:
                        pixels[cut.frames.index(number)] = whole[top : top + size[0], left : left + size[1]]
            if number == last:
                return found
    if last >= 0:
        raise Unreadable(f"frame {last} is wanted, and {number + 1} frames could be decoded")
    return found


@contextmanager
def _stream(source: Source) -> Iterator[tuple[Any, Any]]:
    """Container and first video stream, with the decoder told to report errors."""
    try:
        with _opened(source) as container:
            if not container.streams.video:
                raise Unreadable("there is no video stream")
            stream = container.streams.video[0]
            _check_size(stream.height, stream.width)
            # The header does not bind what the frames say of themselves.
            stream.codec_context.options = STRICT | {"max_pixels": str(LARGEST_FRAME)}
            stream.codec_context.thread_count = min(DECODER_THREADS, os.cpu_count() or 1)
            stream.thread_type = "AUTO"
            yield container, stream
    except MemoryError:
        raise  # FFmpeg's is an FFmpegError as well, but says nothing about the file
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise Unreadable(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}") from error


def _opened(source: Source) -> Any:
    if isinstance(source, Path) and source.suffix.lower() in PICTURES:
        source = _picture(source)
    try:
        return av.open(BytesIO(source) if isinstance(source, bytes) else str(source), options=STRICT | ONE_FILE)
    except av.ArgumentError as error:
        raise Unreadable(f"its format is none of {', '.join(FORMATS)}") from error


def _picture(path: Path) -> bytes:
    """Its content: by its name, which an open file has too, FFmpeg takes JPEG files for parts of a numbered series."""
    try:
        size = path.stat().st_size
        if size > LARGEST_PICTURE:
            raise Unreadable(f"a picture of {size} bytes; at most {LARGEST_PICTURE} are decoded")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Unreadable(f"FileNotFoundError: {error.strerror}") from error


def _check_size(height: int, width: int) -> None:
    if height * width > LARGEST_FRAME:
        raise Unreadable(f"frames of {width}x{height} pixels; at most {LARGEST_FRAME} in all are decoded")


def _rate(stream: Any) -> Fraction:
    rate = Fraction(stream.average_rate or stream.guessed_rate or ASSUMED_RATE)
    return rate if rate > 0 else ASSUMED_RATE


def _frames(stream: Any) -> Iterator[Any]:
    for packet in stream.container.demux(stream):
        if packet.is_corrupt:
            raise Unreadable(f"damaged packet at {packet.pts}")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise Unreadable(f"damaged frame at {frame.time} s")
            yield frame


def _turns(frame: Any) -> int:
    """Quarter turns, counter-clockwise, that put the picture upright; phones store them beside it."""
    return int(round(frame.rotation / 90) % 4)


def pixel_shape(stream: Any) -> Fraction:
    """Width of a pixel by its height."""
    return Fraction(stream.sample_aspect_ratio or 1)


def _shown_size(stream: Any, frame: Any) -> tuple[int, int]:
    """(height, width) as a player shows it: pixels made square, then turned."""
    shape = pixel_shape(stream)
    width = round(frame.width * shape) if shape > 0 else frame.width
    _check_size(frame.height, width)
    return (width, frame.height) if _turns(frame) % 2 else (frame.height, width)


def _upright(frame: Any, size: tuple[int, int], pixel_format: str) -> Frame:
    turns = _turns(frame)
    height, width = size[::-1] if turns % 2 else size
    array: Frame = frame.reformat(width, height, pixel_format, interpolation="BICUBIC").to_ndarray()
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array
