"""The end of curation: a manifest and a drop report from the results of all raw videos."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from videotrain_api.records import CurationCounts
from videotrain_api.resource.stages import CaptionEndpoint
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CaptionReport, DropReport
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.curation import captions
from videotrain_trainer.curation.merge import embeddings_of, merge, refuse_empty
from videotrain_trainer.curation.pictures import read_pictures
from videotrain_trainer.curation.work import CurateWork
from videotrain_trainer.data.manifest import CLIP_SCHEMA, EMBEDDING_SCHEMA, to_parquet
from videotrain_trainer.engines.interface import Member
from videotrain_trainer.storage import ObjectStore


def publish(member: Member, store: ObjectStore, work: CurateWork, results: Iterable[dict[str, Any]]) -> bool:
    """Put the results of all videos together: the report first, the manifest last, which makes the set exist.

    Returns:
        Whether it exists; False if the world is asked to leave meanwhile.

    Raises:
        DataError: nothing is kept.
    """
    found = list(results)
    rows, report = merge(found, work.task)
    if embeddings := embeddings_of(found):
        table = [{"uid": uid, "embedding": data} for uid, data in embeddings.items()]
        store.put(layout.clip_embeddings(work.output), to_parquet(table, EMBEDDING_SCHEMA))
    if work.task.captions is not None:
        report = report.model_copy(update={"captions": _caption(member, store, rows, work.task.captions)})
        if member.asked_to_leave():
            return False
    store.put(layout.drop_report(work.output), sealed_json(report.to_wire()))
    tell(member, report)  # before a set without clips is refused: that is when the reasons are needed most
    refuse_empty(report, ", ".join(work.dataset.raw.values()))
    _remove_unused(store, work.output, {row["uri"] for row in rows})
    store.put(layout.clip_manifest(work.output), to_parquet(rows, CLIP_SCHEMA))
    return True


def _caption(
    member: Member, store: ObjectStore, rows: list[dict[str, Any]], endpoint: CaptionEndpoint
) -> CaptionReport:
    """Have kept clips captioned, as far as the world is not asked to leave meanwhile."""
    prefix = member.prefix
    wanted = [row for row in rows if row["kept"] and (endpoint.replace or captions.has_no_text(row))]
    captioner = captions.Captioner(
        endpoint,
        store,
        f"{prefix}/captions",
        os.environ.get(endpoint.key_env, ""),
        lambda row: read_pictures(store, prefix, row, endpoint.frames, endpoint.frame_side),
    )
    found = captioner.captions(
        wanted, member.asked_to_leave, lambda done: member.reporter.phase("captions", done, len(wanted))
    )
    for row in wanted:
        row["caption"] = found.get(row["uid"], row["caption"])
    return captioner.report(len(wanted), len(found))


def tell(member: Member, report: DropReport) -> None:
    """The counts outlive this process in the run's status."""
    member.reporter.curated(CurationCounts(clips=report.clips, dropped=report.counts))


def _remove_unused(store: ObjectStore, prefix: str, wanted: set[str]) -> None:
    """Files of no clip: other settings made them. Those of dropped clips stay, for bounds may change."""
    for found in store.list(f"{prefix}/clips"):
        if found.uri.removeprefix(f"{prefix}/") not in wanted:
            store.delete(found.uri)
