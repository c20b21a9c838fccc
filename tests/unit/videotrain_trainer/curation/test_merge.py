from __future__ import annotations

import pytest

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.bounds import drop_by
from videotrain_trainer.curation.merge import decide, merge, refuse_empty
from videotrain_trainer.errors import DataError


def piece(uid: str, phash: str, kept: bool = True) -> dict:
    row = {"uid": uid, "start": 0.0, "end": 2.0, "bytes": 1, "crc32c": 1, "width": 8, "height": 8, "frames": 20}
    row |= {"fps": 10.0, "motion": 1.0, "blur": 9.0, "duration": 2.0, "aspect": 1.0, "phash": phash * 3, "kept": kept}
    return row | {"reason": "" if kept else "too-short", "detail": "" if kept else "shot of 1 s, at least 2 s"}


def video(name: str, content: str, clips: list, dropped: list | None = None) -> dict:
    return {"name": name, "content": content, "caption": name, "clips": clips, "dropped": dropped}


RESULTS = [
    video("b.mp4", "x", [piece("1", "0" * 16)]),
    video("a.mp4", "x", [piece("1", "0" * 16)]),
    video("c.mp4", "y", [piece("0", "0" * 15 + "1"), piece("2", "f" * 16), piece("3", "a" * 16, kept=False)]),
    video("d.mp4", "z", [], ["unreadable", "no", None, None]),
]


def test_every_video_and_piece_is_a_clip_or_has_a_reason_in_the_report():
    rows, report = merge(RESULTS, CurateTask())
    assert {row["uid"]: (row["source"], row["kept"], row["reason"]) for row in rows} == {
        "0": ("c.mp4", True, ""),
        "1": ("a.mp4", False, "duplicate"),
        "2": ("c.mp4", True, ""),
        "3": ("c.mp4", False, "too-short"),
    }
    assert (report.videos, report.clips) == (4, 2)
    assert report.counts == {"duplicate": 2, "too-short": 1, "unreadable": 1}
    assert [(item.source, item.reason) for item in report.dropped] == [
        ("a.mp4", "duplicate"),
        ("b.mp4", "duplicate"),
        ("c.mp4", "too-short"),
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
        DataError, match="none of the 2 videos in s3://b/raw gave a clip; dropped: 1 too-short, 1 unreadable"
    ):
        refuse_empty(report, "s3://b/raw")


def test_other_bounds_decide_again_what_scores_had_decided():
    rows, strict = merge(RESULTS, CurateTask(min_blur=10))
    assert strict.counts == {"blurred": 3, "duplicate": 1, "too-short": 1, "unreadable": 1}
    assert {row["uri"] for row in rows} == {"clips/0.mp4", "clips/1.mp4", "clips/2.mp4", ""}
    (blurred, *_) = [item for item in strict.dropped if item.reason == "blurred"]
    assert (blurred.value, blurred.bound, blurred.detail) == (9.0, 10.0, "sharpness 9, at least 10")
    whole = [item for item in strict.dropped if item.span is None]
    assert decide(rows, whole, strict.videos, CurateTask()) == merge(RESULTS, CurateTask())[1]
    assert rows == merge(RESULTS, CurateTask())[0]


def test_what_was_not_measured_drops_nothing():
    assert drop_by(piece("1", "0" * 16), CurateTask(max_text=0.0)) is None
    assert drop_by(piece("1", "0" * 16) | {"text": 0.1}, CurateTask())["reason"] == "text"


def test_a_picture_needs_no_motion():
    still = piece("1", "0" * 16) | {"motion": 0.0}
    assert drop_by(still, CurateTask())["reason"] == "still"
    assert drop_by(still | {"frames": 1}, CurateTask()) is None
