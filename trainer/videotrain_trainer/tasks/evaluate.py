"""The evaluate stage: measures of reconstructed clips and of drawn videos, one per rank and round.

What a round measured is stored, so a stage that was stopped goes on where it was: rows of the very same configuration,
weights, clips and videos are kept. The whole table is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import torch
from pydantic import TypeAdapter

from videotrain_api.config import aspect
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.records import Measures
from videotrain_api.resource.stages import EvaluateTask, Reconstruction
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import MeasuredRows, VideosIndex
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.errors import ConfigError, DamagedObject, DataError, ObjectMissing
from videotrain_trainer.evaluation.autoencoder import Evaluation, Row
from videotrain_trainer.evaluation.metrics import SMALLEST_SIDE, averaged, described
from videotrain_trainer.evaluation.videos import Item, clip_item, first_clips, read_frames
from videotrain_trainer.networks.build import load_autoencoder
from videotrain_trainer.networks.losses.lpips_files import load_perceptual
from videotrain_trainer.networks.weights import autoencoder_uri, open_weights
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.sampling.contents import Contents
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import Outcome, StageContext
from videotrain_trainer.worker.stage_reporter import Work

CLIPS: Final = "clips/"
VIDEOS: Final = "videos/"
_NAMES: Final = TypeAdapter(list[str])
_ROWS: Final = TypeAdapter(dict[str, dict[str, float]])
_CLIPS: Final = TypeAdapter(list[tuple[str, str]])
Unit = Callable[[], Row]
"""Measures one clip or video."""


def run(context: StageContext) -> Outcome:
    """Measure what is missing and write the table.

    Raises:
        ConfigError: the autoencoder or its weights do not fit.
        DataError: there is nothing to measure.
    """
    config, world, store = context.config, context.world, ObjectStore.for_storage(context.config.storage)
    peers, first_rank = WorldPeers(), world.rank == 0
    units = _units(context, store, peers)
    inputs = _inputs(context, store) if first_rank else ""
    rows = _stored(store, config.paths.output, inputs) if first_rank and context.restore else {}
    missing = peers.from_first(_NAMES, [name for name in units if name not in rows] if first_rank else None)
    kept = len(units) - len(missing)
    context.reporter.started(world.size, kept, len(units))
    for first in range(0, len(missing), world.size):
        names = missing[first : first + world.size]
        began, mine = datetime.now(UTC), names[world.rank : world.rank + 1]
        told = peers.to_first(_ROWS, {name: _finite(name, units[name]()) for name in mine})
        done = kept + first + len(names)
        if first_rank:
            found = {name: row for part in told for name, row in part.items()}
            place = f"{kept + first + 1:08d}-{done:08d}.g{context.generation:06d}.json"
            _store(store, f"{layout.measured_rows(config.paths.output)}/{place}", inputs, found)
            rows |= found
        peers.wait_for_first()
        _record(context, began, len(names), done)
        if context.drain.agreed() and done < len(units):
            return "drained"
    if first_rank:
        rows = {name: rows[name] for name in units}
        _store(store, layout.evaluation(config.paths.output), inputs, rows)
        context.reporter.evaluated(measures_of(rows))
    return "completed"


def measures_of(rows: dict[str, Row]) -> Measures:
    """Means over all clips and over all videos."""
    clips = [row for name, row in rows.items() if name.startswith(CLIPS)]
    videos = [row for name, row in rows.items() if name.startswith(VIDEOS)]
    return Measures(clips=len(clips), videos=len(videos), **averaged([*clips]), **averaged([*videos]))


def _units(context: StageContext, store: ObjectStore, peers: WorldPeers) -> dict[str, Unit]:
    """All that is measured, by name; the same on every rank. Collective."""
    task, units = _task_of(context.config), dict[str, Unit]()
    if task.reconstruction is not None:
        evaluation = _evaluation(context, store, task.reconstruction)
        for item in _clips(context.config, store, task.reconstruction, peers):
            units[CLIPS + item.name] = _reconstructed(evaluation, item)
    if task.videos is not None:
        for video in _videos(context.config, store).videos:
            units[f"{VIDEOS}{video.number:04d}"] = _described(store, video.uri)
    if not units:
        raise DataError(f"{context.config.paths.videos}: the sample stage {task.videos!r} has drawn no video")
    return units


def _finite(name: str, row: Row) -> Row:
    wrong = [measure for measure, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise DataError(f"{name}: {', '.join(wrong)} cannot be calculated; are the weights of the autoencoder whole?")
    return row


def _task_of(config: StageConfig) -> EvaluateTask:
    if config.stage.evaluate is None:
        raise ConfigError(f"stage {config.stage.name!r}: the member `evaluate` is not set")
    return config.stage.evaluate


def _reconstructed(evaluation: Evaluation, item: Item) -> Unit:
    return lambda: next(row for _, row in evaluation.rows([item], lambda *_: None))


def _described(store: ObjectStore, uri: str) -> Unit:
    return lambda: described(read_frames(store, uri))


def _clips(config: StageConfig, store: ObjectStore, task: Reconstruction, peers: WorldPeers) -> list[Item]:
    grid = config.autoencoder.spatial_compression
    assert config.paths.clips is not None, "admission has seen to it"
    assert grid is not None, "the configuration is resolved"
    try:
        size = aspect.shape_of(task.resolution, task.aspect_ratio, grid)
    except ValueError as error:
        raise ConfigError(f"evaluate.reconstruction.resolution, aspectRatio: {error}") from error
    if min(size) < SMALLEST_SIDE:
        raise ConfigError(
            f"evaluate.reconstruction.resolution: {task.resolution}: SSIM needs sides of {SMALLEST_SIDE} pixels or more"
        )
    # One rank reads the table, which may have a hundred million rows.
    first = first_clips(store, config.paths.clips, task.frames, task.clips) if peers.rank == 0 else None
    return [clip_item(store, uid, uri, size, task.frames) for uid, uri in peers.from_first(_CLIPS, first)]


def _evaluation(context: StageContext, store: ObjectStore, task: Reconstruction) -> Evaluation:
    device, field = context.world.device, "evaluate.reconstruction.lpips"
    # As encoding and drawing have it: what is measured is what training and videos get.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = open_weights(_weights_uri(context.config), store=store)
    module = load_autoencoder(context.config.autoencoder, weights).to(device, dtype).eval()
    perceptual = load_perceptual(store, task.lpips, field).to(device) if task.lpips else None
    return Evaluation(module.requires_grad_(False), perceptual)


def _weights_uri(config: StageConfig) -> str:
    assert config.paths.autoencoder_weights is not None, "admission has seen to it"
    return autoencoder_uri(config.autoencoder.kind, config.paths.autoencoder_weights)


def _videos(config: StageConfig, store: ObjectStore) -> VideosIndex:
    assert config.paths.videos is not None, "admission has seen to it"
    uri = layout.videos_index(config.paths.videos)
    try:
        return read_checked(store, uri, lambda data: VideosIndex.from_wire(unsealed_json(data)))
    except ObjectMissing as error:
        raise DataError(f"{uri}: missing; the sample stage has not finished there") from error


def _inputs(context: StageContext, store: ObjectStore) -> str:
    """Names all that the rows depend on."""
    config, contents = context.config, Contents(store, context.cache)
    task, named = _task_of(config), [config.hash()]
    if task.reconstruction is not None:
        named += [contents.of_weights(_weights_uri(config)), contents.of(layout.clip_manifest(str(config.paths.clips)))]
    if task.videos is not None:
        # The tags of the files: the index tells how videos were drawn, not from what weights.
        found = [*store.list(f"{config.paths.videos}/videos")]
        named += [f"{video.uri} {video.etag} {video.size}" for video in sorted(found, key=lambda video: video.uri)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _stored(store: ObjectStore, output: str, inputs: str) -> dict[str, Row]:
    """Rows of earlier generations; what is damaged is measured again."""
    rows: dict[str, Row] = {}
    for found in store.list(layout.measured_rows(output)):
        try:
            part = read_checked(store, found.uri, lambda data: MeasuredRows.from_wire(unsealed_json(data)))
        except DamagedObject:
            continue
        rows |= part.rows if part.inputs == inputs else {}
    return rows


def _store(store: ObjectStore, uri: str, inputs: str, rows: dict[str, Row]) -> None:
    store.put(uri, sealed_json(MeasuredRows(inputs=inputs, rows=rows).to_wire()))


def _record(context: StageContext, began: datetime, measured: int, done: int) -> None:
    now = datetime.now(UTC)
    context.reporter.step(done, began, now, Work(samples=measured, tokens=0, model_flops=0.0))
    # Rows are stored: the bill must not count them as lost work, whatever happens next.
    context.reporter.checkpoint(done, now, now, layout.measured_rows(context.config.paths.output))
