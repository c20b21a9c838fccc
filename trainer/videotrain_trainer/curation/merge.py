"""From the results of all raw videos to the clip catalogue and the drop report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from videotrain_api.resource.stages import CurateTask
from videotrain_api.storage.artifacts import DroppedItem, DropReport
from videotrain_trainer.curation.bounds import SCORE_REASONS, drop_by
from videotrain_trainer.curation.dedup import first_of_content, near_duplicates
from videotrain_trainer.curation.dedup_embeddings import decoded, look_alikes
from videotrain_trainer.data.manifest import CLIP_SCHEMA
from videotrain_trainer.errors import DataError

Row = dict[str, Any]
DUPLICATE = "duplicate"
_STAYS = {"kept": True, "reason": "", "detail": "", "value": None, "bound": None}


def merge(results: Sequence[Mapping[str, Any]], task: CurateTask) -> tuple[list[Row], DropReport]:
    """Clip rows (kept or not) and the report.

    Args:
        results: per raw video `name`, `content`, `caption`, `dropped` and `clips`.
        task: its bounds on scores, dedup_distance and dedup_cosine are read.
    """
    again = first_of_content((result["name"], result["content"]) for result in results if result["content"])
    videos = [_whole_video(result, again.get(result["name"])) for result in results]
    rows = [_row(result, clip) for result in results if result["name"] not in again for clip in result["clips"]]
    return rows, decide(rows, [item for item in videos if item], len(results), task, embeddings_of(results))


def embeddings_of(results: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Embeddings of clips by uid, as int8, where an image model has seen them."""
    return {
        clip["uid"]: decoded(clip["embedding"])
        for result in results
        for clip in result["clips"]
        if clip.get("embedding")
    }


def decide(
    rows: Sequence[Row],
    videos: Iterable[DroppedItem],
    count: int,
    task: CurateTask,
    embeddings: Mapping[str, bytes] = MappingProxyType({}),
) -> DropReport:
    """Keep or drop every clip by its scores and its look-alikes, whatever was decided before.

    Args:
        rows: of the catalogue; changed in place.
        videos: raw videos that were dropped whole.
        count: all raw videos.
        task: bounds on scores, dedup_distance and dedup_cosine.
        embeddings: of clips by uid.
    """
    for row in rows:
        if row["kept"] or row["reason"] in SCORE_REASONS or row["reason"] == DUPLICATE:
            row.update(_STAYS)
            if drop := drop_by(row, task):
                row.update(drop, kept=False)
    _mark_duplicates(rows, task.dedup_distance)
    _mark_look_alikes(rows, embeddings, task.dedup_cosine)
    dropped = [*videos, *(_piece(row) for row in rows if not row["kept"])]
    dropped.sort(key=lambda item: (item.source, item.span or []))
    return DropReport(
        videos=count,
        clips=sum(row["kept"] for row in rows),
        dropped=dropped,
        counts=dict(sorted(Counter(item.reason for item in dropped).items())),
        curate=task.to_wire(),
    )


def refuse_empty(report: DropReport, uri: str) -> None:
    """Raises DataError if nothing was kept; the message counts the reasons."""
    if not report.clips:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.counts.items())
        raise DataError(
            f"spec.dataset: none of the {report.videos} videos in {uri} gave a clip; dropped: {reasons}. "
            "drop-report.json has the measured value of each; loosen the bounds of the curate stage or add videos"
        )


def _whole_video(result: Mapping[str, Any], same_as: str | None) -> DroppedItem | None:
    if same_as is not None:
        return DroppedItem(source=result["name"], reason=DUPLICATE, detail=f"same bytes as {same_as}")
    if result["dropped"] is None:
        return None
    reason, detail, value, bound = result["dropped"]
    return DroppedItem(source=result["name"], reason=reason, detail=detail, value=value, bound=bound)


def _row(result: Mapping[str, Any], clip: Mapping[str, Any]) -> Row:
    row = {**clip, "source": result["name"], "caption": result["caption"]}
    row["uri"] = clip.get("uri") or (f"clips/{clip['uid']}.mp4" if clip["kept"] else "")
    return {name: row.get(name) for name in CLIP_SCHEMA.names}


def _mark_duplicates(rows: Sequence[Row], distance: int) -> None:
    kept = {row["uid"]: row for row in rows if row["kept"]}
    for uid, (twin, bits) in near_duplicates(list(kept.values()), distance).items():
        source = kept[twin]["source"]
        detail = f"{bits} of 64 bits differ from clip {twin} of {source}, more than {distance} needed"
        kept[uid].update(kept=False, reason=DUPLICATE, detail=detail, value=float(bits), bound=float(distance))


def _mark_look_alikes(rows: Sequence[Row], embeddings: Mapping[str, bytes], cosine: float) -> None:
    """Of clips that the hashes have left."""
    kept = {row["uid"]: row for row in rows if row["kept"]}
    for uid, (twin, found) in look_alikes(list(kept.values()), embeddings, cosine).items():
        detail = f"cosine {found:.4f} with clip {twin} of {kept[twin]['source']}, less than {cosine:g} needed"
        kept[uid].update(kept=False, reason=DUPLICATE, detail=detail, value=found, bound=cosine)


def _piece(row: Row) -> DroppedItem:
    told = {name: row[name] for name in ("source", "reason", "detail", "value", "bound")}
    return DroppedItem(span=[row["start"], row["end"]], **told)
