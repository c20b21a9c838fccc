"""From the results of all raw videos to the clip manifest and the drop report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from videotrain_api.resource.stages import CurateTask
from videotrain_api.storage.artifacts import DroppedItem, DropReport
from videotrain_trainer.curation.dedup import first_of_content, near_duplicates
from videotrain_trainer.data.manifest import CLIP_SCHEMA
from videotrain_trainer.errors import DataError

Row = dict[str, Any]


def merge(results: Sequence[Mapping[str, Any]], task: CurateTask) -> tuple[list[Row], DropReport]:
    """Clip rows (kept or not) and the report.

    Args:
        results: per raw video `name`, `content`, `caption`, `dropped` and `clips`.
        task: its dedup_distance is read.
    """
    again = first_of_content((result["name"], result["content"]) for result in results)
    videos = [_whole_video(result, again.get(result["name"])) for result in results]
    rows = [_row(result, clip) for result in results if result["name"] not in again for clip in result["clips"]]
    _mark_duplicates(rows, task.dedup_distance)
    dropped = [item for item in videos if item] + [_piece(row) for row in rows if not row["kept"]]
    dropped.sort(key=lambda item: (item.source, item.span or []))
    report = DropReport(
        videos=len(results),
        clips=sum(row["kept"] for row in rows),
        dropped=dropped,
        counts=dict(sorted(Counter(item.reason for item in dropped).items())),
    )
    return rows, report


def refuse_empty(report: DropReport, uri: str) -> None:
    """Raises DataError if nothing was kept; the message counts the reasons."""
    if not report.clips:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.counts.items())
        raise DataError(
            f"spec.dataset.videos: none of the {report.videos} videos in {uri} gave a clip; dropped: {reasons}. "
            "drop-report.json has the measured value of each; loosen the bounds of the curate stage or add videos"
        )


def _whole_video(result: Mapping[str, Any], same_as: str | None) -> DroppedItem | None:
    if same_as is not None:
        return DroppedItem(source=result["name"], reason="duplicate", detail=f"same bytes as {same_as}")
    if result["dropped"] is None:
        return None
    reason, detail = result["dropped"]
    return DroppedItem(source=result["name"], reason=reason, detail=detail)


def _row(result: Mapping[str, Any], clip: Mapping[str, Any]) -> Row:
    row = {**clip, "source": result["name"], "caption": result["caption"]}
    row["uri"] = f"clips/{clip['uid']}.mp4" if clip["kept"] else ""
    return {name: row[name] for name in CLIP_SCHEMA.names}


def _mark_duplicates(rows: list[Row], distance: int) -> None:
    kept = [row for row in rows if row["kept"]]
    sources = {row["uid"]: row["source"] for row in kept}
    for uid, (twin, bits) in near_duplicates(kept, distance).items():
        row = next(row for row in kept if row["uid"] == uid)
        detail = f"{bits} of 64 bits differ from clip {twin} of {sources[twin]}, more than {distance} needed"
        row.update(kept=False, uri="", reason="duplicate", detail=detail)


def _piece(row: Row) -> DroppedItem:
    span = [row["start"], row["end"]]
    return DroppedItem(source=row["source"], span=span, reason=row["reason"], detail=row["detail"])
