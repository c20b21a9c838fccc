from __future__ import annotations

import pytest

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.merge import merge, refuse_empty
from videotrain_trainer.errors import DataError


def piece(uid: str, phash: str, kept: bool = True) -> dict:
    row = {"uid": uid, "start": 0.0, "end": 2.0, "bytes": 1, "crc32c": 1, "width": 8, "height": 8, "frames": 20}
    row |= {"fps": 10.0, "motion": 1.0, "blur": 9.0, "duration": 2.0, "aspect": 1.0, "phash": phash * 3, "kept": kept}
    return row | {"reason": "" if kept else "still", "detail": "" if kept else "motion 0, at least 0.05"}


def video(name: str, content: str, clips: list, dropped: list | None = None) -> dict:
    return {"name": name, "content": content, "caption": name, "clips": clips, "dropped": dropped}


RESULTS = [
    video("b.mp4", "x", [piece("1", "0" * 16)]),
    video("a.mp4", "x", [piece("1", "0" * 16)]),
    video("c.mp4", "y", [piece("0", "0" * 15 + "1"), piece("2", "f" * 16), piece("3", "a" * 16, kept=False)]),
    video("d.mp4", "z", [], ["unreadable", "no"]),
]


def test_every_video_and_piece_is_a_clip_or_has_a_reason_in_the_report():
    rows, report = merge(RESULTS, CurateTask())
    assert {row["uid"]: (row["source"], row["kept"], row["reason"]) for row in rows} == {
        "0": ("c.mp4", True, ""),
        "1": ("a.mp4", False, "duplicate"),
        "2": ("c.mp4", True, ""),
        "3": ("c.mp4", False, "still"),
    }
    assert (report.videos, report.clips) == (4, 2)
    assert report.counts == {"duplicate": 2, "still": 1, "unreadable": 1}
    assert [(item.source, item.reason) for item in report.dropped] == [
        ("a.mp4", "duplicate"),
        ("b.mp4", "duplicate"),
        ("c.mp4", "still"),
        ("d.mp4", "unreadable"),
    ]
    assert report.dropped[0].detail == "1 of 64 bits differ from clip 0 of c.mp4, more than 4 needed"
    assert report.dropped[1].detail == "same bytes as a.mp4"


def test_the_result_does_not_depend_on_the_order_of_the_videos():
    by_uid = sorted(merge(RESULTS, CurateTask())[0], key=lambda row: row["uid"])
    assert sorted(merge(RESULTS[::-1], CurateTask())[0], key=lambda row: row["uid"]) == by_uid


def test_nothing_kept_is_an_error_that_counts_the_reasons():
    _, report = merge([RESULTS[3], video("e.mp4", "w", [piece("9", "0" * 16, kept=False)])], CurateTask())
    with pytest.raises(
        DataError, match="none of the 2 videos in s3://b/raw gave a clip; dropped: 1 still, 1 unreadable"
    ):
        refuse_empty(report, "s3://b/raw")
