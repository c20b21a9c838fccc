"""The curate stage: raw videos to normalised clips, a manifest and a drop report.

A unit is one raw video, so a restarted stage of any world size goes on where it was; rank 0 puts the results together.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import xxhash

from videotrain_api.records import CurationCounts
from videotrain_api.resource.stages import CaptionEndpoint, CurateTask
from videotrain_api.resource.trainrun import Dataset, Storage
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CaptionReport, DropReport
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.curation import captions
from videotrain_trainer.curation.bounds import LOOSE_FIELDS
from videotrain_trainer.curation.caption_table import read_captions
from videotrain_trainer.curation.clips import FILE_VERSION
from videotrain_trainer.curation.merge import merge, refuse_empty
from videotrain_trainer.curation.pictures import read_pictures
from videotrain_trainer.curation.sandbox import MOST_MEMORY, Sandbox, container_memory
from videotrain_trainer.curation.scores import table as scores
from videotrain_trainer.curation.source import RawVideo, VideoFolder, content_hash
from videotrain_trainer.data.manifest import CLIP_SCHEMA, to_parquet
from videotrain_trainer.engines.board import wait_for
from videotrain_trainer.engines.interface import FactUnit, cut_ranges
from videotrain_trainer.engines.local import LocalRun
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.worker.linux import container_cpus
from videotrain_trainer.worker.shared_work import Tick
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
    scores.check(task)
    if task.captions is not None:
        captions.check(task.captions)
    store = ObjectStore.for_storage(config.storage)
    store.check()
    work = CurateWork(config.dataset.videos, config.storage, config.paths.output, task)
    ranges = cut_ranges(_units(work, config.dataset))
    engine = LocalRun(context, store, work, ranges, _threads(config.gpus_per_node))
    finished = engine.run()
    manifest = layout.clip_manifest(config.paths.output)
    if finished and context.world.rank == 0:
        results = engine.board.results(engine.names(), context)
        finished = _publish(context, store, list(results), task, config.dataset.videos)
    if not (finished and wait_for(context, store, manifest)):
        return "drained"
    if context.world.rank != 0:
        uri = layout.drop_report(config.paths.output)
        _tell(context, read_checked(store, uri, lambda data: DropReport.from_wire(unsealed_json(data))))
    return "completed"


@dataclass(frozen=True)
class CurateWork:
    """Curation of raw videos, one a unit."""

    videos: str
    """spec.dataset.videos."""
    storage: Storage
    output: str
    """Prefix of the stage's output."""
    task: CurateTask

    def open(self, scratch: Path) -> _Curator:
        """A decoder process, started when the first video comes."""
        return _Curator(self, scratch)


class _Curator:
    """Does raw videos, one after the other."""

    def __init__(self, work: CurateWork, scratch: Path) -> None:
        self._work = work
        self._scratch = scratch
        self._store = ObjectStore.for_storage(work.storage)
        self._folder = VideoFolder(work.videos, work.storage)
        self._sandbox = Sandbox()

    def do(self, unit: FactUnit, tick: Tick) -> dict[str, Any]:
        """One raw video; its clips are in the store when this returns."""
        video = RawVideo.from_fields(unit.facts)
        if pattern := _unwanted(video, self._work.task):
            dropped = ["source", f"fits {pattern!r} of dropSources", None, None]
            return {"name": video.name, "content": "", "caption": "", "dropped": dropped, "clips": []}
        out = self._clean_scratch()
        path = self._folder.fetch(video, self._scratch)
        content = content_hash(path)
        with disk_full_is_clear(self._scratch):
            done = lambda share: tick(int(share * unit.weight))  # noqa: E731
            result = self._sandbox.curate(path, content, out, self._work.task, done)
        for clip in result["clips"]:
            if clip["kept"]:  # by what was read; bounds on its scores are applied once all are known
                self._store.put(f"{self._work.output}/clips/{clip['uid']}.mp4", out / f"{clip['uid']}.mp4")
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


def _units(work: CurateWork, dataset: Dataset) -> Iterator[FactUnit]:
    """A unit per raw video, each as soon as its listing is believed; text files are read with their videos."""
    captions = dict(dataset.captions)
    if dataset.caption_table is not None:
        store = ObjectStore.for_storage(work.storage)
        captions = read_captions(store, dataset.caption_table, work.videos) | captions
    # Other bounds on scores find the same results again.
    reading = work.task.model_dump(mode="json", exclude=set(LOOSE_FIELDS))
    for video in VideoFolder(work.videos, work.storage).videos(captions):
        facts = [FILE_VERSION, video.name, video.found.size, video.tag, video.caption, reading]
        facts.append(_unwanted(video, work.task))
        name = xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())
        yield FactUnit(str(name), 1 + video.found.size // STEP_BYTES, video.fields())


def _threads(processes: int) -> int:
    """Videos that a process does at the same time: its share of the pod's cores, as far as all decoders have room."""
    most = min(container_cpus(), container_memory() // MOST_MEMORY)
    return max(1, most // max(1, processes))


def _unwanted(video: RawVideo, task: CurateTask) -> str | None:
    """The pattern of drop_sources that a video's path fits."""
    return next((pattern for pattern in task.drop_sources if fnmatchcase(video.name, pattern)), None)


def _publish(
    context: StageContext, store: ObjectStore, results: list[dict[str, Any]], task: CurateTask, videos: str
) -> bool:
    """Report first, manifest last: the manifest makes the set exist. False if the world is asked to leave meanwhile."""
    prefix = context.config.paths.output
    rows, report = merge(results, task)
    if task.captions is not None:
        report = report.model_copy(update={"captions": _caption(context, store, rows, task.captions)})
        if context.drain.requested():
            return False
    store.put(layout.drop_report(prefix), sealed_json(report.to_wire()))
    _tell(context, report)  # before a set without clips is refused: that is when the reasons are needed most
    refuse_empty(report, videos)
    _remove_unused(store, prefix, {row["uri"] for row in rows})
    store.put(layout.clip_manifest(prefix), to_parquet(rows, CLIP_SCHEMA))
    return True


def _caption(
    context: StageContext, store: ObjectStore, rows: list[dict[str, Any]], endpoint: CaptionEndpoint
) -> CaptionReport:
    """Have kept clips captioned, as far as the world is not asked to leave meanwhile."""
    prefix = context.config.paths.output
    wanted = [row for row in rows if row["kept"] and (endpoint.replace or captions.has_no_text(row))]
    captioner = captions.Captioner(
        endpoint,
        store,
        f"{prefix}/captions",
        os.environ.get(endpoint.key_env, ""),
        lambda row: read_pictures(store, prefix, row, endpoint.frames, endpoint.frame_side),
    )
    found = captioner.captions(
        wanted, context.drain.requested, lambda done: context.reporter.phase("captions", done, len(wanted))
    )
    for row in wanted:
        row["caption"] = found.get(row["uid"], row["caption"])
    return captioner.report(len(wanted), len(found))


def _tell(context: StageContext, report: DropReport) -> None:
    """The counts outlive this process in the run's status."""
    context.reporter.curated(CurationCounts(clips=report.clips, dropped=report.counts))


def _remove_unused(store: ObjectStore, prefix: str, wanted: set[str]) -> None:
    """Files of no clip: other settings made them. Those of dropped clips stay, for bounds may change."""
    for found in store.list(f"{prefix}/clips"):
        if found.uri.removeprefix(f"{prefix}/") not in wanted:
            store.delete(found.uri)
