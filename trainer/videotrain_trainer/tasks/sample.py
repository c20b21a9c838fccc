"""The sample stage: videos drawn from the trained model, spread over the ranks, one per rank and round.

A video that is already in the store and was made by this very configuration from these very weights and references is
kept, so a stage that was stopped goes on where it was. The index is written last.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Final

import torch
from pydantic import TypeAdapter

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.cost import flops
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import VideosIndex
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.buckets import bucket_name
from videotrain_trainer.networks.attention_kernels import attention_case, attention_kernel
from videotrain_trainer.parallel.peers import WorldPeers, first_choice
from videotrain_trainer.sampling.outputs import read_metadata, write_video
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.sample_draw import StageSampler, request_of
from videotrain_trainer.tasks.sample_plan import Drawing, frame_size, plan_drawings, task_of
from videotrain_trainer.worker.stage_context import Outcome, StageContext
from videotrain_trainer.worker.stage_reporter import Work

_NUMBERS: Final = TypeAdapter(list[int])


def run(context: StageContext) -> Outcome:
    """Draw what is missing and write the index.

    Raises:
        ConfigError: the task cannot be done with this model.
        DataError: there are no clips to draw from.
    """
    device = context.world.device
    case = attention_case(context.config.model, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    with attention_kernel("auto", case, first_choice) as kernel:
        return _run(context, kernel)


def _run(context: StageContext, attention: str) -> Outcome:
    config, world = context.config, context.world
    store = ObjectStore.for_storage(config.storage)
    sampler = StageSampler(config, store, world.device, context.cache)
    drawings = plan_drawings(config, store, sampler.conditioned)
    for drawing in drawings:
        request_of(config, drawing)  # refused before anything is drawn
    peers = WorldPeers()
    missing = peers.from_first(_NUMBERS, _missing(context, store, sampler, drawings) if world.rank == 0 else None)
    by_number, kept = {drawing.video.number: drawing for drawing in drawings}, len(drawings) - len(missing)
    context.reporter.started(world.size, kept, len(drawings), attention=attention)
    for first in range(0, len(missing), world.size):
        numbers = missing[first : first + world.size]
        _round(context, peers, store, sampler, by_number, numbers, kept + first)
        if context.drain.agreed() and first + world.size < len(missing):
            return "drained"
    if world.rank == 0:
        index = VideosIndex(videos=[drawing.video for drawing in drawings])
        store.put(layout.videos_index(config.paths.output), sealed_json(index.to_wire()))
    return "completed"


def _round(
    context: StageContext,
    peers: WorldPeers,
    store: ObjectStore,
    sampler: StageSampler,
    drawings: dict[int, Drawing],
    numbers: list[int],
    done: int,
) -> None:
    """Every rank draws one of the numbers, or nothing if there are fewer."""
    started_at = datetime.now(UTC)
    rank, written = context.world.rank, 0
    if rank < len(numbers):
        written = _draw_one(context, store, sampler, drawings[numbers[rank]])
    total_bytes = int(peers.table([written]).sum())
    _record_round(context, started_at, len(numbers), done + len(numbers), total_bytes)


def _draw_one(context: StageContext, store: ObjectStore, sampler: StageSampler, drawing: Drawing) -> int:
    """Draw, write and upload a video; returns its bytes."""
    video = drawing.video
    path = context.scratch / f"video-{video.number:04d}.mp4"
    write_video(sampler.draw(drawing), path, video.fps, _comment(sampler, drawing))
    size = path.stat().st_size
    store.put(video.uri, path)
    path.unlink()
    return size


def _comment(sampler: StageSampler, drawing: Drawing) -> dict[str, object]:
    return {"videotrain": drawing.video.to_wire(), "text": drawing.text, "hash": sampler.request_hash(drawing)}


def _missing(context: StageContext, store: ObjectStore, sampler: StageSampler, drawings: list[Drawing]) -> list[int]:
    """Numbers of the videos that are not there yet, or were made otherwise."""
    if not context.restore:
        return [drawing.video.number for drawing in drawings]
    present = {found.uri for found in store.list(f"{context.config.paths.output}/videos")}
    return [d.video.number for d in drawings if d.video.uri not in present or not _is_ours(context, store, sampler, d)]


def _is_ours(context: StageContext, store: ObjectStore, sampler: StageSampler, drawing: Drawing) -> bool:
    path = context.scratch / "existing.mp4"
    path.write_bytes(store.get(drawing.video.uri))
    try:
        same: bool = read_metadata(path) == json.loads(json.dumps(_comment(sampler, drawing)))
        return same
    finally:
        path.unlink()


def _record_round(context: StageContext, started_at: datetime, videos: int, done: int, total_bytes: int) -> None:
    config, task, now = context.config, task_of(context.config), datetime.now(UTC)
    tokens, model_flops = _work(config)
    work = Work(samples=videos, tokens=tokens * videos, model_flops=model_flops * videos)
    context.reporter.step(
        done, started_at, now, work, bucket=bucket_name(task.resolution, task.frames, task.aspect_ratio)
    )
    # Uploaded videos are kept whatever happens next; the bill must not count them as lost work.
    context.reporter.checkpoint(done, now, now, f"{config.paths.output}/videos", total_bytes)


def _work(config: StageConfig) -> tuple[int, float]:
    """Tokens of one video, and FLOPs of drawing it with two branches per step, which is what most steps compute."""
    task = task_of(config)
    height, width = frame_size(config)
    image = flops.image_tokens(config.model, config.autoencoder, task.frames, height, width)
    text = config.text_encoder.max_tokens
    shape = flops.mmdit_shape(config.model, config.autoencoder, config.text_encoder)
    branches = 1 if config.model.guidance_embed else 2
    passes = branches * task.sampling_steps * task.candidates
    return image + text, float(passes * flops.forward_flops(shape, image, text))
