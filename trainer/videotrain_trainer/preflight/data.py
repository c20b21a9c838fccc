"""Whether what a run learns from is there, readable, and of sizes that its stages can use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.references import Reference
from videotrain_api.resource.stages import Bucket, CurateTask
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_trainer.curation.caption_table import read_captions
from videotrain_trainer.curation.source import RawVideo
from videotrain_trainer.curation.source_forms import open_sources
from videotrain_trainer.data.buckets import FPS_MAX, fits_area, row_name, windows
from videotrain_trainer.data.clip_table import ClipTable
from videotrain_trainer.data.sample_index import open_index
from videotrain_trainer.data.sets import check_info, read_set_info
from videotrain_trainer.data.video import Unreadable, even_size, probe
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.files import local_path
from videotrain_trainer.storage import ObjectStore

PROBED = 64
"""Videos of a local folder whose headers are read."""


@dataclass(frozen=True)
class ClipSize:
    """What decides which rows a clip fits."""

    height: int
    width: int
    frames: int
    fps: float


@dataclass(frozen=True)
class Row:
    """A row of a bucket table, and where it stands."""

    path: str
    bucket: Bucket
    step: int
    """The autoencoder's temporal compression."""
    any_area: bool
    """An autoencoder stage enlarges clips, an encode stage leaves small ones out."""

    def takes(self, clip: ClipSize) -> bool:
        """Whether a clip gives a sample."""
        large = self.any_area or fits_area(clip.height, clip.width, self.bucket.resolution)
        return large and bool(windows(clip.frames, clip.fps, self.bucket, self.step))


def rows_of(run: VideoTrainingRun, stages: Sequence[StageConfig], indices: Sequence[int]) -> list[Row]:
    """The rows of some stages that train."""
    found = []
    for index in indices:
        stage, step = run.spec.stages[index], stages[index].autoencoder.temporal_compression
        if stage.train is not None:
            path = f"spec.stages[{index}].train.buckets"
            found += [Row(f"{path}[{n}]", bucket, step, False) for n, bucket in enumerate(stage.train.buckets)]
        if stage.autoencoder is not None:
            found.append(Row(f"spec.stages[{index}].autoencoder.bucket", stage.autoencoder.bucket, step, True))
    return found


def without_clips(rows: Sequence[Row], clips: Sequence[ClipSize]) -> Iterator[Row]:
    """The rows that no clip fits."""
    return (row for row in rows if not any(row.takes(clip) for clip in clips))


def largest(clips: Sequence[ClipSize]) -> str:
    """The longest and the largest clip, for a message."""
    longest = max(clips, key=lambda clip: clip.frames / clip.fps if clip.fps else 0.0)
    area = max(clips, key=lambda clip: clip.height * clip.width)
    return (
        f"the longest has {longest.frames} frames at {longest.fps:.4g} fps (at most {FPS_MAX} are kept), the largest "
        f"{area.width}x{area.height} pixels"
    )


def largest_possible(task: CurateTask) -> ClipSize:
    """The clip that fits most, of all that curation may make."""
    return ClipSize(task.long_side, task.long_side, int(task.max_seconds * FPS_MAX) + 1, float(FPS_MAX))


def some_videos(run: VideoTrainingRun, name: str) -> list[RawVideo]:
    """The first videos of a raw source; `dataset.videos` has the empty name.

    Raises:
        DataError: there are none.
    """
    folder = open_sources(run.spec.dataset, run.spec.storage)[name]
    return list(islice(folder.videos(run.spec.dataset.captions), PROBED))


def clips_of(videos: Sequence[RawVideo], task: CurateTask) -> list[ClipSize]:
    """The longest clip that curation may make of each video on this machine that can be decoded.

    Raises:
        DataError: none of them can.
    """
    found, refused = [], ""
    local = [local_path(video.found.uri) for video in videos if video.found.uri.startswith("file://")]
    for path in local:
        try:
            info = probe(path)
        except Unreadable as error:
            refused = f"{path.name}: {error}"
            continue
        fps = float(info.fps)
        frames = info.frames or int(info.seconds * fps)
        height, width = even_size(info.height, info.width, task.long_side)
        found.append(
            ClipSize(height, width, frames if frames == 1 else min(frames, int(task.max_seconds * fps) + 1), fps)
        )
    if local and not found:
        raise DataError(f"none of {len(local)} videos can be decoded; the last: {refused}")
    return found


def captions_told(reference: Reference, run: VideoTrainingRun, store: ObjectStore) -> str:
    """How many captions a table has.

    Raises:
        DataError: none, or it is no such table.
    """
    captions = read_captions(store, reference.uri, run.spec.dataset.videos)
    if not captions:
        raise DataError(f"{reference.path}: {reference.uri}: no row has a text")
    return f"{len(captions):,} captions"


def curated_clips(uri: str, store: ObjectStore) -> list[ClipSize]:
    """Sizes of the kept clips of a curated set, each once.

    Raises:
        DataError: it is no curated set, or keeps nothing.
    """
    table = ClipTable(store, uri)
    if not len(table):
        raise DataError(f"{uri}: the curated set has no clip that was kept; see its drop-report.json")
    names = ["height", "width", "frames", "fps"]
    counted = table.columns(names).group_by(names).aggregate([])
    return [ClipSize(**row) for row in counted.to_pylist()]


def encoded_rows(uri: str, stages: Sequence[StageConfig], store: ObjectStore) -> Mapping[str, int]:
    """Samples of an encoded set by the name of their row, once it is known that the stages can read it.

    Raises:
        DataError: it is no encoded set, was made for another model, or is empty.
    """
    info = read_set_info(store, uri)
    for config in stages:
        if config.stage.train is not None:
            check_info(info, uri, config, config.stage.train)
    if not info.samples:
        raise DataError(f"{uri}: the encoded set has no sample")
    try:
        index = open_index(store, uri, None)
    except ObjectMissing:
        return dict.fromkeys(info.rows, info.samples)  # an older set; only its catalogue, which is large, tells more
    found = dict.fromkeys(info.rows, 0)
    for bucket in index.buckets:
        for kind in bucket.info.kinds:
            found[kind.row] = found.get(kind.row, 0) + kind.samples
    return found


def rows_without_samples(rows: Sequence[Row], samples: Mapping[str, int]) -> Iterator[Row]:
    """The rows for which nothing was encoded."""
    return (row for row in rows if not samples.get(row_name(row.bucket)))
