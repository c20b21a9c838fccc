from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.numerics import apart

from videotrain_trainer.data.buckets import Window
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.video import (
    Unreadable,
    cover_size,
    decode,
    even_size,
    probe,
    read_covering,
    write_mp4,
)

GEOMETRY = json.loads((Path(__file__).parents[2] / "fixtures" / "data.json").read_text())["resize_crop"]


@pytest.fixture
def clip(tmp_path, paint_video, texture) -> Path:
    return paint_video(tmp_path / "clip.mp4", 30, texture(1))


def test_a_written_clip_has_the_wanted_format_and_comes_back_nearly_unchanged(clip, texture):
    info = probe(clip)
    assert (info.width, info.height, info.fps, info.frames, info.codec) == (160, 96, 24, 30, "h264")
    times, frames = zip(*decode(clip), strict=True)
    assert times == pytest.approx([n / 24 for n in range(30)], abs=1e-4)
    painted = np.stack([texture(1)(n) for n in range(30)])
    assert np.abs(np.stack(frames).astype(int) - painted).mean() < 12  # colour is stored at half resolution
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert sum(packet.is_keyframe for packet in packets) >= 2
    data = clip.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_equal_frames_give_equal_bytes(tmp_path, paint_video, texture):
    first = paint_video(tmp_path / "a.mp4", 20, texture(1)).read_bytes()
    assert first == paint_video(tmp_path / "b.mp4", 20, texture(1)).read_bytes()


def test_a_video_can_be_read_from_memory(clip):
    assert len(list(decode(clip.read_bytes()))) == 30


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"this is no video at all\n" * 40,
        lambda data: b"",
        lambda data: data[: len(data) * 2 // 3],
        lambda data: data[: len(data) // 2] + bytes(400) + data[len(data) // 2 + 400 :],
    ],
    ids=["text", "empty", "truncated", "zeroed"],
)
def test_a_damaged_file_is_unreadable(clip, damage):
    clip.write_bytes(damage(clip.read_bytes()))
    with pytest.raises(Unreadable):
        list(decode(clip))


def test_fewer_frames_than_promised_are_noticed(clip, monkeypatch):
    from videotrain_trainer.data import video

    whole = video._frames
    monkeypatch.setattr(video, "_frames", lambda stream: (frame for n, frame in enumerate(whole(stream)) if n < 20))
    with pytest.raises(Unreadable, match="20 frames could be decoded, the header promises 30"):
        list(decode(clip))


def test_a_turned_video_is_put_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.set_display_rotation(90)
        picture = np.zeros((96, 160, 3), np.uint8)
        picture[:24] = 255  # a white bar at the top of what the sensor wrote
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert (probe(path).width, probe(path).height) == (96, 160)
    _, frame = next(decode(path))
    assert frame.shape == (160, 96, 3)
    assert frame[:, :20].mean() > 240  # turned counter-clockwise, the top is on the left
    assert frame[:, 30:].mean() < 15
    assert read_covering(path, (80, 48)).shape == (5, 80, 48, 3)


@pytest.mark.parametrize("case", GEOMETRY, ids=lambda case: f"{case['height']}x{case['width']}")
def test_resizing_and_cropping_have_the_published_geometry(case):
    rows, columns = cover_size(case["height"], case["width"], tuple(case["target"]))
    assert [rows, columns] == case["resized"]
    frames = np.zeros((1, rows, columns, 3), np.uint8)
    top, left = case["video_offset"]
    frames[0, top, left] = 255
    pixels_CTHW = crop_window(frames, Window(0, 1, 1), tuple(case["target"]), (0.5, 0.5))
    assert pixels_CTHW.shape == (3, 1, *case["target"])
    assert pixels_CTHW[0, 0, 0, 0] == 1.0
    assert pixels_CTHW.sum() == -pixels_CTHW.numel() + 6


def test_a_window_takes_every_nth_frame_and_must_lie_in_the_clip():
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    pixels_CTHW = crop_window(frames, Window(3, 4, 5), (1, 1), (0.5, 0.5))
    # Stored in [-1, 1], so a step of that scale is rounded, 127.5 times as large here.
    found, expected = (pixels_CTHW[0, :, 0, 0].double() + 1) * 127.5, torch.tensor([3.0, 8.0, 13.0, 18.0])
    assert apart(found, expected) <= 127.5 * 2 * torch.finfo().eps
    with pytest.raises(Exception, match="reaches beyond the 20 frames"):
        crop_window(frames, Window(5, 4, 5), (1, 1), (0.5, 0.5))


def test_sizes_are_even_and_never_scaled_up():
    assert even_size(1080, 1920, 1080) == (608, 1080)
    assert even_size(97, 161, 1080) == (96, 160) or even_size(97, 161, 1080) == (98, 160)
    assert even_size(1, 400, 100) == (2, 100)


def test_nothing_written_is_no_frames(tmp_path):
    assert write_mp4(iter(()), tmp_path / "x.mp4", Fraction(24)) == 0
