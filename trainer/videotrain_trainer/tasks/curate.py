"""The curate stage: raw videos to normalised clips, a manifest and a drop report.

A unit is one raw video, so a restarted stage of any world size goes on where it was; rank 0 puts the results together.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import xxhash

from videotrain_api.records import CurationCounts
from videotrain_api.resource.stages import CurateTask
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import DropReport
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.curation.caption_table import read_captions
from videotrain_trainer.curation.merge import merge, refuse_empty
from videotrain_trainer.curation.normalise import FILE_VERSION
from videotrain_trainer.curation.sandbox import Sandbox
from videotrain_trainer.curation.source import RawVideo, VideoFolder, content_hash
from videotrain_trainer.data.manifest import CLIP_SCHEMA, to_parquet
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.worker.shared_work import JSON, Tick, Unit, UnitRun
from videotrain_trainer.worker.stage_context import Outcome, StageContext

STEP_BYTES = 16 * 1024 * 1024
"""A raw video counts as one step of progress for every such piece that it has or begins."""


def run(context: StageContext) -> Outcome:
    """Curate the raw videos of the dataset.

    Raises:
        DataError: there is no video, or nothing is kept.
    """
    config, task = context.config, context.config.stage.curate
    if task is None or config.dataset.videos is None:
        raise ConfigError(f"stage {config.stage.name!r}: curate and spec.dataset.videos must be set")
    store = ObjectStore.for_storage(config.storage)
    store.check()
    captions = dict(config.dataset.captions)
    if config.dataset.caption_table is not None:
        captions = read_captions(store, config.dataset.caption_table, config.dataset.videos) | captions
    folder = VideoFolder(config.dataset.videos, config.storage, captions)
    videos = {_unit_name(video, task, folder.caption(video)): video for video in folder.videos()}
    units = [Unit(name, 1 + video.found.size // STEP_BYTES) for name, video in videos.items()]
    board = UnitRun(context, store, units, JSON)
    curator = _Curator(context, store, folder, task)
    try:
        finished = board.run(lambda unit, tick: curator.curate(videos[unit.name], unit.weight, tick))
    finally:
        curator.close()
    manifest = layout.clip_manifest(config.paths.output)
    if finished and context.world.rank == 0:
        _publish(context, store, list(board.results()), task, config.dataset.videos)
    if not (finished and board.wait_for(manifest)):
        return "drained"
    if context.world.rank != 0:
        uri = layout.drop_report(config.paths.output)
        _tell(context, read_checked(store, uri, lambda data: DropReport.from_wire(unsealed_json(data))))
    return "completed"


class _Curator:
    """Does the raw videos of one rank."""

    def __init__(self, context: StageContext, store: ObjectStore, folder: VideoFolder, task: CurateTask) -> None:
        self._prefix = context.config.paths.output
        self._scratch = context.scratch / "curate"
        self._store = store
        self._folder = folder
        self._task = task
        self._sandbox = Sandbox()

    def curate(self, video: RawVideo, weight: int, tick: Tick) -> dict[str, Any]:
        """One raw video; its clips are in the store when this returns."""
        out = self._clean_scratch()
        path = self._folder.fetch(video, self._scratch)
        content = content_hash(path)
        with disk_full_is_clear(self._scratch):
            result = self._sandbox.curate(path, content, out, self._task, lambda share: tick(int(share * weight)))
        for clip in result["clips"]:
            if clip["kept"]:
                self._store.put(f"{self._prefix}/clips/{clip['uid']}.mp4", out / f"{clip['uid']}.mp4")
        return {"name": video.name, "content": content, "caption": self._folder.caption(video), **result}

    def close(self) -> None:
        """End the decoder process and remove temporary files."""
        self._sandbox.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _clean_scratch(self) -> Path:
        shutil.rmtree(self._scratch, ignore_errors=True)
        out = self._scratch / "clips"
        with disk_full_is_clear(out):
            out.mkdir(parents=True)
        return out


def _unit_name(video: RawVideo, task: CurateTask, caption: str) -> str:
    facts = [FILE_VERSION, video.name, video.found.size, video.tag, caption, task.to_wire()]
    text = json.dumps(facts, sort_keys=True)
    return str(xxhash.xxh3_128_hexdigest(text.encode()))


def _publish(
    context: StageContext, store: ObjectStore, results: list[dict[str, Any]], task: CurateTask, videos: str
) -> None:
    """Report first, manifest last: the manifest makes the set exist."""
    prefix = context.config.paths.output
    rows, report = merge(results, task)
    store.put(layout.drop_report(prefix), sealed_json(report.to_wire()))
    _tell(context, report)  # before a set without clips is refused: that is when the reasons are needed most
    refuse_empty(report, videos)
    _remove_unused(store, prefix, {row["uri"] for row in rows if row["kept"]})
    store.put(layout.clip_manifest(prefix), to_parquet(rows, CLIP_SCHEMA))


def _tell(context: StageContext, report: DropReport) -> None:
    """The counts outlive this process in the run's status."""
    context.reporter.curated(CurationCounts(clips=report.clips, dropped=report.counts))


def _remove_unused(store: ObjectStore, prefix: str, wanted: set[str]) -> None:
    """Files of clips that turned out to be duplicates."""
    for found in store.list(f"{prefix}/clips"):
        if found.uri.removeprefix(f"{prefix}/") not in wanted:
            store.delete(found.uri)
