"""Files made to harm cost themselves alone: each is dropped with a reason, within bounded time and memory."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation import sandbox, shots
from videotrain_trainer.curation.draft import Dropped
from videotrain_trainer.curation.sandbox import Sandbox, container_memory
from videotrain_trainer.data import video
from videotrain_trainer.data.video import LARGEST_FRAME, Unreadable, decode, probe

TASK = CurateTask(min_seconds=1.0, max_seconds=2.0, long_side=128, max_motion=15)


@pytest.fixture
def decoder():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture
def neighbour(tmp_path, paint_video, texture) -> Path:
    return paint_video(tmp_path / "neighbour.mp4", 36, texture(1))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def encoded(path: Path, codec: str, size: tuple[int, int], frames: int = 2, **stream_fields) -> Path:
    """Grey frames of (height, width)."""
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for name, value in stream_fields.items():
            setattr(stream.codec_context, name, value)
        for number in range(frames):
            frame = av.VideoFrame(width, height, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([100 + number]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.5,\nneighbour.mp4\n#EXT-X-ENDLIST\n",
    "hls-of-itself": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nhostile.mp4\n",
    "ffconcat": "ffconcat version 1.0\n" + "file neighbour.mp4\n" * 20_000,
    "ffconcat-of-itself": "ffconcat version 1.0\n" + "file hostile.mp4\n" * 2,
    "ffconcat-of-a-device": "ffconcat version 1.0\nfile /dev/zero\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1" mimeType="video/mp4"><BaseURL>neighbour.mp4</BaseURL></Representation></AdaptationSet>'
    "</Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "nothing": "",
    "words": "I am no video.\n" * 1000,
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_file_that_names_others_is_dropped_unread(decoder, tmp_path, neighbour, kind):
    path = written(tmp_path / "hostile.mp4", PLAYLISTS[kind])
    result = decoder.curate(path, "x", tmp_path, TASK, lambda share: None)
    assert result["dropped"][0] == "unreadable"
    assert result["clips"] == []
    assert_the_next_file_is_decoded(decoder, neighbour, tmp_path)


def test_a_script_that_ffmpeg_would_follow_is_named_by_what_is_allowed(tmp_path, neighbour):
    path = written(tmp_path / "hostile.mp4", "ffconcat version 1.0\nfile neighbour.mp4\n")
    with av.open(str(path)) as container:  # the attack is real
        assert sum(1 for _ in container.decode(video=0)) == 36
    with pytest.raises(Unreadable, match="its format is none of mov, matroska"):
        probe(path)
    with pytest.raises(Unreadable, match="its format is none of mov, matroska"):
        probe(path.read_bytes())


def test_a_pattern_of_numbered_pictures_is_not_followed(tmp_path):
    for number in range(1, 4):
        av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8)).to_image().save(tmp_path / f"{number}.png")
    with pytest.raises(Unreadable):
        probe(tmp_path / "%d.png")


def test_a_picture_of_many_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(10**11)  # sparse
    with pytest.raises(Unreadable, match="a picture of 100000000000 bytes"):
        probe(tmp_path / "big.png")


def test_a_cinema_sized_frame_is_decoded_and_a_larger_one_is_not(decoder, tmp_path, neighbour):
    large = encoded(tmp_path / "large.mkv", "mpeg4", (4320, 8192 - 16))
    assert probe(large).width == 8176
    huge = encoded(tmp_path / "huge.mkv", "libx264", (8192, 8192))
    result = decoder.curate(huge, "x", tmp_path, TASK, lambda share: None)
    assert result["dropped"] == [
        "unreadable",
        f"frames of 8192x8192 pixels; at most {LARGEST_FRAME} in all are decoded",
        None,
        None,
    ]
    assert_the_next_file_is_decoded(decoder, neighbour, tmp_path)


def test_pixels_that_are_said_to_be_very_wide_do_not_make_a_huge_picture(monkeypatch, neighbour):
    # A header may claim it, but x264 writes none such.
    monkeypatch.setattr(video, "pixel_shape", lambda stream: Fraction(60_000))
    with pytest.raises(Unreadable, match=r"frames of 9600000x96 pixels; at most"):
        list(decode(neighbour))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_cut_or_noisy_file_is_dropped(decoder, tmp_path, neighbour, share, seed):
    data = bytearray(neighbour.read_bytes())
    if seed == 1:
        data = data[: int(len(data) * share)]
    else:
        begin = int(len(data) * share) - 200
        data[begin : begin + 400] = np.random.default_rng(seed).bytes(400)
    path = tmp_path / "hostile.mp4"
    path.write_bytes(bytes(data))
    result = decoder.curate(path, "x", tmp_path, TASK, lambda told: None)
    assert result["dropped"] is not None
    assert result["dropped"][0] in ("unreadable", "decoder-crash")
    assert_the_next_file_is_decoded(decoder, neighbour, tmp_path)


def test_memory_beyond_the_limit_costs_one_file(decoder, tmp_path, neighbour):
    large = encoded(tmp_path / "large.mkv", "libx264", (4320, 8160), frames=8)
    child = decoder._ready()
    limit = 500 * 2**20
    psutil.Process(child.pid).rlimit(psutil.RLIMIT_DATA, (limit, limit))
    result = decoder.curate(large, "x", tmp_path, TASK, lambda share: None)
    assert result["dropped"][0] in ("decoder-memory", "decoder-crash"), result
    assert_the_next_file_is_decoded(decoder, neighbour, tmp_path)


def test_the_child_limits_itself(decoder, tmp_path, neighbour):
    assert_the_next_file_is_decoded(decoder, neighbour, tmp_path)
    child = psutil.Process(decoder._child.pid)
    assert child.rlimit(psutil.RLIMIT_DATA)[1] == min(sandbox.MOST_MEMORY, container_memory() // 2)
    assert child.rlimit(psutil.RLIMIT_NOFILE)[1] == sandbox.MOST_FILES
    assert child.rlimit(psutil.RLIMIT_CORE)[1] == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1000000"}, 1_000_000),
        ({"memory.max": "max"}, None),
        ({"memory/memory.limit_in_bytes": "2000000"}, 2_000_000),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({}, None),
    ],
)
def test_the_memory_of_the_container_is_read_from_its_cgroup(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert container_memory(tmp_path) == (expected or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


class Telling:
    """A child that never stops telling."""

    def __init__(self, shares) -> None:
        self._shares = shares

    def get(self, timeout: float):
        return f'{{"progress": {next(self._shares)}}}'


@pytest.mark.parametrize(
    ("shares", "limits", "reason"),
    [
        ("same", {"STUCK_SECONDS": 0.05}, "decoder-stuck"),
        ("rising", {"LEAST_SECONDS": 0.05}, "decoder-slow"),
    ],
)
def test_telling_without_coming_further_or_for_too_long_is_given_up(
    monkeypatch, decoder, tmp_path, shares, limits, reason
):
    for name, value in limits.items():
        monkeypatch.setattr(sandbox, name, value)
    path = written(tmp_path / "hostile.mp4", "x")
    child = decoder._ready()
    numbers = (0.5 if shares == "same" else 1 - 1 / number for number in range(2, 10**9))
    decoder._lines = Telling(numbers)
    result = decoder.curate(path, "x", tmp_path, TASK, lambda share: None)
    assert result["dropped"][0] == reason
    assert child.poll() is not None


def test_a_day_at_sixty_frames_per_second_fits_in_memory():
    frames = 100_000
    kept = shots.collect((n / 60, (0, 1, 2, 3), [n] if n % 600 == 0 else []) for n in range(frames))
    parts = (kept.times, kept.borders)
    per_frame = sum(part.nbytes for part in parts) / frames
    assert per_frame == 16
    assert shots.MOST_FRAMES == 5_184_000
    assert per_frame * shots.MOST_FRAMES < 128 * 2**20
    assert len(kept.cuts) == frames // 600


def test_more_frames_than_a_day_and_a_cut_in_every_frame_are_dropped(monkeypatch):
    monkeypatch.setattr(shots, "MOST_FRAMES", 100)
    monkeypatch.setattr(shots, "MOST_CUTS", 50)
    rows = [(n / 60, (0, 0, 0, 0), []) for n in range(101)]
    with pytest.raises(Dropped, match="too-long: more than 100 frames"):
        shots.collect(iter(rows))
    with pytest.raises(Dropped, match="too-many-cuts: more than 50 cuts in 51 frames"):
        shots.collect((*row[:2], [number]) for number, row in enumerate(rows))


def assert_the_next_file_is_decoded(decoder: Sandbox, good: Path, out: Path) -> None:
    result = decoder.curate(good, "good", out, TASK, lambda share: None)
    assert [clip["kept"] for clip in result["clips"]] == [True]
