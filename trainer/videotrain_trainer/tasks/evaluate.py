"""The evaluate stage: clips, drawn videos and scores of these, one per rank and round, then held-out samples.

What a round measured is stored, so a stage that was stopped goes on where it was: rows of the very same configuration,
weights, clips and videos are kept. The whole table is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime
from typing import Final

import torch
from pydantic import TypeAdapter

from videotrain_api.config import aspect
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.records import Measures
from videotrain_api.resource.evaluation import EvaluateTask, Reconstruction
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import MeasuredRows
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.data.sets import set_info_uri
from videotrain_trainer.errors import ConfigError, DamagedObject, DataError
from videotrain_trainer.evaluation.autoencoder import Evaluation, Row
from videotrain_trainer.evaluation.metrics import SMALLEST_SIDE, averaged
from videotrain_trainer.evaluation.vbench import totals
from videotrain_trainer.evaluation.videos import Item, clip_item, first_clips, uri_of
from videotrain_trainer.networks.build import load_autoencoder
from videotrain_trainer.networks.losses.lpips_files import load_perceptual
from videotrain_trainer.networks.weights import autoencoder_uri, open_weights, weights_uri
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.sampling.contents import Contents
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.evaluate_held_out import AT_TIME, HELD_OUT, MEAN, OF_BUCKET, held_out_rows
from videotrain_trainer.tasks.evaluate_videos import PREFERENCE, VBENCH, VIDEOS, Unit, video_units
from videotrain_trainer.worker.stage_context import Outcome, StageContext
from videotrain_trainer.worker.stage_reporter import Work

CLIPS: Final = "clips/"
_NAMES: Final = TypeAdapter(list[str])
_ROWS: Final = TypeAdapter(dict[str, dict[str, float]])
_CLIPS: Final = TypeAdapter(list[tuple[str, str]])


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
    asked = _task_of(config).held_out is not None
    told_rows = peers.from_first(_NAMES, [*rows] if first_rank else None)
    missing = [name for name in units if name not in told_rows]
    # Together they ask the held-out samples, last; so that counts as one unit.
    answered, kept, total = MEAN in told_rows and not missing, len(units) - len(missing), len(units) + asked
    context.reporter.started(world.size, kept + answered, total)
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
        if context.drain.agreed() and done < total:
            return "drained"
    if asked and not answered:
        rows |= _answered(context, store, peers, inputs, total)
    if first_rank:
        rows = {name: row for name, row in rows.items() if name in units or name.startswith(HELD_OUT)}
        _store(store, layout.evaluation(config.paths.output), inputs, dict(sorted(rows.items())))
        context.reporter.evaluated(measures_of(rows))
    return "completed"


def _answered(context: StageContext, store: ObjectStore, peers: WorldPeers, inputs: str, number: int) -> dict[str, Row]:
    """The loss on held-out samples, stored as a part. Collective."""
    began = datetime.now(UTC)
    found = {name: _finite(name, row) for name, row in held_out_rows(context, store, peers).items()}
    if context.world.rank == 0:
        place = f"held-out.g{context.generation:06d}.json"
        _store(store, f"{layout.measured_rows(context.config.paths.output)}/{place}", inputs, found)
    peers.wait_for_first()
    _record(context, began, 1, number)
    return found


def measures_of(rows: dict[str, Row]) -> Measures:
    """Means over all clips and over all videos, scores and losses."""
    clips = [row for name, row in rows.items() if name.startswith(CLIPS)]
    videos = [row for name, row in rows.items() if name.startswith(VIDEOS)]
    scores = {
        dimension: score for name, row in rows.items() if name.startswith(VBENCH) for dimension, score in row.items()
    }
    means = averaged([*clips]) | {name: _mean(videos, name) for row in videos for name in row}
    return Measures(
        clips=len(clips),
        videos=len(videos),
        vbench=scores | totals(scores),
        pairs=int(rows[PREFERENCE]["pairs"]) if PREFERENCE in rows else 0,
        loss_by_bucket=_losses(rows, OF_BUCKET),
        loss_by_time=_losses(rows, AT_TIME),
        **means,
        **rows.get(MEAN, {}),
    )


def _mean(rows: list[Row], measure: str) -> float:
    """Over the videos that have it: only those that were drawn from clips compare with them."""
    found = [row[measure] for row in rows if measure in row]
    return math.fsum(found) / len(found)


def _losses(rows: dict[str, Row], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): row["validation_loss"] for name, row in rows.items() if name.startswith(prefix)}


def _units(context: StageContext, store: ObjectStore, peers: WorldPeers) -> dict[str, Unit]:
    """All that is measured, by name; the same on every rank. Collective."""
    task, units = _task_of(context.config), dict[str, Unit]()
    if task.reconstruction is not None:
        evaluation = _evaluation(context, store, task.reconstruction)
        for item in _clips(context.config, store, task.reconstruction, peers):
            units[CLIPS + item.name] = _reconstructed(evaluation, item)
    return units | video_units(context, store)


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


def _inputs(context: StageContext, store: ObjectStore) -> str:
    """Names all that the rows depend on."""
    config, contents = context.config, Contents(store, context.cache)
    task, named = _task_of(config), [config.hash()]
    if task.reconstruction is not None:
        named += [contents.of_weights(_weights_uri(config)), contents.of(layout.clip_manifest(str(config.paths.clips)))]
    if task.held_out is not None:
        weights = weights_uri(str(config.paths.model_weights))
        named += [contents.of_weights(weights), contents.of(set_info_uri(str(config.paths.latents)))]
    # The tags of the files: the index tells how videos were drawn, not from what weights.
    folders = [f"{config.paths.videos}/videos"] if config.paths.videos is not None else []
    folders += [uri_of(task.preference.videos)] if task.preference is not None else []
    for folder in folders:
        found = sorted(store.list(folder), key=lambda video: video.uri)
        named += [f"{video.uri} {video.etag} {video.size}" for video in found]
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
